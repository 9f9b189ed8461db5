import json
import math

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
    )
    read = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)  # no NaN in the file
    assert read["metrics"] == {"clean_top1": 97.5, "AP": {"APl": None}}
    assert read["settings"] == {"eps": 1.0, "steps": [1, 2]}
    assert (read["code_version"], read["seed"]) == (resources.version(), 1)
    assert {"gpus", "cpu", "threads", "torch"} <= set(read["hardware"])


def test_nested_dictionaries_are_flattened():
    nested = {"a": {"b": 1, "c": {"d": [1]}}, "e": {}}
    assert results.flatten(nested) == {"a.b": 1, "a.c.d": [1]}
    assert results.flatten(nested, "/") == {"a/b": 1, "a/c/d": [1]}
