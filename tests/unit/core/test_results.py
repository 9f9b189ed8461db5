import json
import math

import torch
import torchvision

from robust_backbones.core import resources, results


def test_a_result_is_plain_json_and_traceable(tmp_path):
    path = tmp_path / "result.json"
    results.write(
        path,
        kind="pretrain",
        metrics={"clean_top1": 97.5, "AP": {"APl": math.nan}},
        settings={"eps": 1.0, "steps": (1, 2)},
        weights_sha256=None,
        data={"train": {"images": 3, "fingerprint": "ab"}},
        seed=1,
        seconds=2.345,
        device="cpu",
    )
    read = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)  # no NaN in the file
    assert read["metrics"] == {"clean_top1": 97.5, "AP": {"APl": None}}
    assert read["settings"] == {"eps": 1.0, "steps": [1, 2]}
    assert (read["code_version"], read["seed"]) == (resources.version(), 1)
    expected = {"device": "cpu", "precision": "float32", "gpus": [], "processes": 1}
    expected |= {"torch": torch.__version__, "torchvision": torchvision.__version__}
    assert expected.items() <= read["hardware"].items()
    assert {"cpu", "threads", "python", "system"} <= set(read["hardware"])


def test_the_hardware_of_several_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    found = results.hardware(torch.device("cuda", 0), "bfloat16", processes=2)
    expected = {"device": "cuda:0", "precision": "bfloat16", "gpus": ["GPU 0"] * 2, "processes": 2}
    assert (expected | {"cuda": "13.0", "cudnn": 91900}).items() <= found.items()


def test_nested_dictionaries_are_flattened():
    nested = {"a": {"b": 1, "c": {"d": [1]}}, "e": {}}
    assert results.flatten(nested) == {"a.b": 1, "a.c.d": [1]}
    assert results.flatten(nested, "/") == {"a/b": 1, "a/c/d": [1]}
