"""Reading: formats that must give the same tensors, and files that must be refused."""

import pickle

import pytest
import torch
from conftest import random_network, robustness_contents

from robust_backbones import checkpoint
from robust_backbones.errors import UserError
from robust_backbones.zoo import ARCHS


def write(path, contents):
    torch.save(contents, path)
    return path


@pytest.fixture(scope="module")
def state():
    return random_network("resnet18").state_dict()


WRAPPINGS = {
    "torchvision": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "ddp": lambda s: {f"module.{k}": v for k, v in s.items()},
    "encoder only": lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")},
    "robustness": robustness_contents,
    "half precision": lambda s: {k: v.half().float().half() if v.is_floating_point() else v
                                 for k, v in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_gives_the_same_tensors(tmp_path, state, wrapping):
    read = checkpoint.read(write(tmp_path / "a.pth", WRAPPINGS[wrapping](state)))
    assert read.arch == "resnet18"
    expected = WRAPPINGS["encoder only"](state) if wrapping == "encoder only" else state
    assert read.tensors.keys() == expected.keys()
    for name, tensor in read.tensors.items():
        original = state[name].half().float() if wrapping == "half precision" else state[name]
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, original), name
            assert tensor.dtype == torch.float32


def test_a_robustness_file_says_what_it_is(tmp_path, state):
    read = checkpoint.read(write(tmp_path / "a.ckpt", robustness_contents(state)))
    assert read.layout == "robustness"
    assert (read.mean, read.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert read.metadata == {"epoch": 90, "nat_prec1": 62.83}
    assert len(read.dropped) == len(state) + 4  # the attacker's copies, and 4 statistics


@pytest.mark.parametrize("arch", ARCHS)
def test_an_architecture_is_recognised_from_its_tensors(arch):
    with torch.device("meta"):
        state = checkpoint.build_network(arch, 7).state_dict()
    assert checkpoint._recognise(state, None, "file") == arch


def test_a_wrong_belief_names_the_right_architecture(resnet18_file):
    with pytest.raises(UserError, match="is a resnet18, not a resnet50; pass --arch resnet18"):
        checkpoint.read(resnet18_file, "resnet50")
    with pytest.raises(UserError, match="architecture 'resnet9' is unknown; one of: resnet18"):
        checkpoint.read(resnet18_file, "resnet9")


def changed(name, value):
    return lambda s: {**s, name: value}


NAN = torch.full((64,), float("nan"))
BAD = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "layer3.0.conv1.weight"},
                "missing 'layer3.0.conv1.weight'"),
    "extra": (changed("layer9.weight", torch.zeros(1)), "unknown 'layer9.weight'"),
    "shape": (changed("bn1.weight", torch.zeros(65)),
              r"'bn1.weight' has shape \(65,\) instead of \(64,\)"),
    "head": (changed("fc.bias", torch.zeros(3)), "different numbers of classes"),
    "nan": (changed("bn1.bias", NAN), "'bn1.bias' holds NaN or infinity"),
    "integers": (changed("bn1.bias", torch.zeros(64, dtype=torch.int32)),
                 "'bn1.bias' has type torch.int32"),
    "no tensor": (changed("bn1.bias", "x"), "'bn1.bias' is a str; save a state_dict"),
    "a list": (lambda s: list(s.values()), "holds a list, not a dictionary"),
    "empty": (lambda s: {}, "it is empty"),
    "copy differs": (
        lambda s: robustness_contents(s)["model"] | {"module.attacker.model.bn1.bias": NAN},
        "'module.attacker.model.bn1.bias' is not a copy"),
    "newer format": (lambda s: {"format": checkpoint.FORMAT, "version": 99, "model": s},
                     "format version 99; this release reads 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_contents_are_refused_by_name(tmp_path, state, case):
    change, message = BAD[case]
    with pytest.raises(UserError, match=message):
        checkpoint.read(write(tmp_path / "a.pth", change(state)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is an HTML page"),
        (b"PK\x03\x04 cut off", "is not a complete PyTorch checkpoint"),
        (b"nonsense", "is not a complete PyTorch checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        checkpoint.read(path)


def test_a_truncated_checkpoint_is_refused(tmp_path, resnet18_file):
    whole = resnet18_file.read_bytes()
    for size in (100, 10_000, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"{size}.pth"
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a complete PyTorch checkpoint"):
            checkpoint.read(path)


class Bomb:
    """Pickles into a call that leaves a mark when it is executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("writer", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c))])
def test_code_in_a_file_is_not_executed_but_named(tmp_path, state, writer):
    mark = tmp_path / "executed"
    path = tmp_path / "a.pth"
    writer({"model": dict(state), "args": Bomb(mark)}, path)
    with pytest.raises(UserError) as caught:
        checkpoint.read(path)
    assert not mark.exists()
    if writer is torch.save:
        assert "would execute code (exec)" in str(caught.value)
        assert "--allow-pickle" in str(caught.value)
        assert checkpoint.read(path, allow_pickle=True).arch == "resnet18"
        assert mark.exists()  # the user asked for it
