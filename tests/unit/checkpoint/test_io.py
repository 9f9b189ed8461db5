"""Test reading: layouts that must give the same tensors, and files that must be rejected."""

import collections
import pickle

import pytest
import torch

from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET
from tests.support.bad_checkpoints import BAD_BYTES, BAD_CONTENTS, Bomb, backbone_of, prefixed
from tests.support.networks import random_network, robustness_contents


def write(path, contents):
    torch.save(contents, path)
    return path


@pytest.fixture(scope="module")
def state():
    return random_network("resnet18").state_dict()


def moco(s):
    contents = {f"module.encoder_q.{k}": v for k, v in s.items() if not k.startswith("fc.")}
    contents |= {f"module.encoder_k.{k}": v + 1 for k, v in s.items()}
    contents |= {"module.encoder_q.fc.0.weight": torch.ones(2, 2), "module.queue": torch.ones(2, 2)}
    return {"epoch": 199, "arch": "resnet18", "state_dict": contents}


def detector_of(s):
    backbone = {f"backbone.bottom_up.{k}": v for k, v in backbone_of(s).items()}
    return {"model": backbone | {"backbone.fpn_lateral2.weight": torch.ones(1)}, "iteration": 9}


# name -> (function that creates the layout, name of the layout)
WRAPPINGS = {
    "torchvision": (lambda s: s, "torchvision"),
    "ordered": (lambda s: collections.OrderedDict(s), "torchvision"),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "torchvision"),
    "ddp": (prefixed("module."), "torchvision"),
    "lightning": (lambda s: {"state_dict": prefixed("model.net.")(s), "epoch": 3}, "torchvision"),
    "non-ResNet level": (lambda s: robustness_contents(prefixed("model.")(s)), "robustness"),
    "robustness": (robustness_contents, "robustness"),
    "half": (
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
        "torchvision",
    ),
    "moco": (moco, "moco"),
    "detectron2": (lambda s: {"model": backbone_of(s), "__author__": "me"}, "detectron2"),
    "prefixed": (lambda s: {"model": prefixed("backbone.")(backbone_of(s))}, "detectron2"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_layout_gives_the_same_tensors(tmp_path, state, wrapping):
    wrap, layout = WRAPPINGS[wrapping]
    read = read_checkpoint(write(tmp_path / "a.pth", wrap(state)), assume_rgb=True)
    assert (read.arch, read.layout) == ("resnet18", layout)
    without_head = layout in ("moco", "detectron2")
    expected = {k for k in state if not (without_head and k.startswith("fc."))}
    if layout == "detectron2":  # FrozenBN has no counter
        expected = {k for k in expected if not k.endswith("num_batches_tracked")}
    assert read.tensors.keys() == expected
    for name, tensor in read.tensors.items():
        original = state[name].half().float() if wrapping == "half" else state[name]
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, original), name
            assert tensor.dtype == torch.float32


@pytest.mark.parametrize("protocol", [2, 4])
def test_detectron2s_pickles_of_arrays_are_read_without_executing_them(tmp_path, state, protocol):
    contents = {
        "model": {k: v.numpy() for k, v in backbone_of(state).items()},
        "__author__": "me",
        "matching_heuristics": True,
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents, protocol))
    read = read_checkpoint(tmp_path / "a.pkl", assume_rgb=True)
    assert torch.equal(read.tensors["layer2.0.conv1.weight"], state["layer2.0.conv1.weight"])


def test_pytorchs_old_format_is_read(tmp_path, state):
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "a.pth").tensors.keys() == state.keys()


def test_a_robustness_file_has_statistics_and_metadata(tmp_path, state):
    read = read_checkpoint(write(tmp_path / "a.ckpt", robustness_contents(state)))
    assert read.statistics == IMAGENET.of("file")
    assert read.metadata == {"epoch": 90, "nat_prec1": 62.83}
    assert len(read.dropped) == len(state) + 4  # the attacker's copies, and 4 statistics


def test_a_detectors_backbone_is_extracted_on_request(tmp_path, state):
    path = write(tmp_path / "a.pth", detector_of(state))
    with pytest.raises(UserError, match="channel order is not recorded. .*--assume-rgb"):
        read_checkpoint(path, from_detector=True)
    with pytest.raises(UserError, match="is a whole detector .1 tensor outside .*--from-detector"):
        read_checkpoint(path, assume_rgb=True)
    read = read_checkpoint(path, from_detector=True, assume_rgb=True)
    assert torch.equal(read.tensors["conv1.weight"], state["conv1.weight"])
    assert list(read.dropped) == ["backbone.fpn_lateral2.weight"]


def test_our_detectors_record_their_input(tmp_path, state):
    contents = detector_of(state) | {
        "metadata": {"channel_order": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.2]},
        "model_ema": {"conv1.weight": state["conv1.weight"]},
    }
    read = read_checkpoint(write(tmp_path / "a.pth", contents), from_detector=True)
    assert read.statistics.std == (0.2, 0.2, 0.2)
    assert read.dropped["model_ema"] == "another set of tensors (averaged weights, optimizer)"


def test_timms_resnet50_equals_torchvisions(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from safetensors.torch import save_file

    model = timm.create_model("resnet50", num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    image = torch.randn(1, 3, 64, 64)
    for name in ("a.pth", "a.safetensors"):
        read = read_checkpoint(tmp_path / name)
        assert read.arch == "resnet50"
        network = build_network("resnet50", 5).eval()
        network.load_state_dict(read.tensors)
        with torch.no_grad():
            torch.testing.assert_close(network(image), model(image), rtol=1e-5, atol=1e-6)


def test_code_runs_only_on_request(tmp_path, state):
    mark = tmp_path / "executed"
    path = write(tmp_path / "a.pth", {"model": dict(state), "args": Bomb(mark)})
    with pytest.raises(UserError, match="would execute code .exec.. .*--allow-pickle"):
        read_checkpoint(path)
    assert not mark.exists()
    assert read_checkpoint(path, allow_pickle=True).arch == "resnet18"
    assert mark.exists()


@pytest.mark.parametrize("case", BAD_CONTENTS)
def test_bad_contents_are_refused_by_name(tmp_path, state, case):
    change, message = BAD_CONTENTS[case]
    with pytest.raises(UserError, match=message):
        read_checkpoint(write(tmp_path / "a.pth", change(dict(state))))


def flipped(data: bytes, at: float) -> bytes:
    i = int(len(data) * at)
    return data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]


@pytest.mark.parametrize("case", BAD_BYTES)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_bad_bytes_are_refused_by_name(tmp_path, resnet18_file, case, suffix):
    make, message = BAD_BYTES[case]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make(resnet18_file.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["README.md", "photo.png", "weights"])
def test_a_file_of_another_kind_is_not_called_incomplete(tmp_path, name):
    (tmp_path / name).write_text("# A heading\n")
    with pytest.raises(UserError, match=f"{name}: the file is not a checkpoint.*safetensors"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 0.9, 0.99])
def test_flipped_bits_are_detected(tmp_path, resnet18_file, at):
    path = tmp_path / "a.pth"
    path.write_bytes(flipped(resnet18_file.read_bytes(), at))
    with pytest.raises(UserError):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_pickles_execute_no_code(tmp_path, state, protocol, suffix):
    mark, path = tmp_path / "executed", tmp_path / f"a{suffix}"
    path.write_bytes(pickle.dumps({"model": Bomb(mark)}, protocol))
    with pytest.raises(UserError, match="exec|not a checkpoint"):
        read_checkpoint(path)
    assert not mark.exists()
