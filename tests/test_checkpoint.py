"""Reading: wrappings that must give the same tensors, and files that must be refused."""

import collections
import pickle

import pytest
import torch
from conftest import random_network, robustness_contents

from robust_backbones import checkpoint
from robust_backbones.checkpoint import key_names as convert
from robust_backbones.core.errors import UserError


def write(path, contents):
    torch.save(contents, path)
    return path


@pytest.fixture(scope="module")
def state():
    return random_network("resnet18").state_dict()


def prefixed(prefix):
    return lambda s: {prefix + k: v for k, v in s.items()}


def moco(s):
    contents = {f"module.encoder_q.{k}": v for k, v in s.items() if not k.startswith("fc.")}
    contents |= {f"module.encoder_k.{k}": v + 1 for k, v in s.items()}
    contents |= {"module.encoder_q.fc.0.weight": torch.ones(2, 2), "module.queue": torch.ones(2, 2)}
    return {"epoch": 199, "arch": "resnet18", "state_dict": contents}


def backbone_of(s):
    return convert.to_detectron2(s)[0]


def detector_of(s):
    backbone = {f"backbone.bottom_up.{k}": v for k, v in backbone_of(s).items()}
    return {"model": backbone | {"backbone.fpn_lateral2.weight": torch.ones(1)}, "iteration": 9}


# name -> (how the file wraps the network, what the reader calls it)
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
def test_every_wrapping_gives_the_same_tensors(tmp_path, state, wrapping):
    wrap, layout = WRAPPINGS[wrapping]
    read = checkpoint.read(write(tmp_path / "a.pth", wrap(state)), assume_rgb=True)
    assert (read.arch, read.layout) == ("resnet18", layout)
    without_head = layout in ("moco", "detectron2")
    expected = {k for k in state if not (without_head and k.startswith("fc."))}
    if layout == "detectron2":  # FrozenBN counts nothing
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
    read = checkpoint.read(tmp_path / "a.pkl", assume_rgb=True)
    assert torch.equal(read.tensors["layer2.0.conv1.weight"], state["layer2.0.conv1.weight"])


def test_pytorchs_old_format_is_read(tmp_path, state):
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert checkpoint.read(tmp_path / "a.pth").tensors.keys() == state.keys()


def test_a_robustness_file_says_what_it_is(tmp_path, state):
    read = checkpoint.read(write(tmp_path / "a.ckpt", robustness_contents(state)))
    assert (read.mean, read.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert read.metadata == {"epoch": 90, "nat_prec1": 62.83}
    assert len(read.dropped) == len(state) + 4  # the attacker's copies, and 4 statistics


def test_a_detectors_backbone_is_taken_out_on_request(tmp_path, state):
    path = write(tmp_path / "a.pth", detector_of(state))
    with pytest.raises(UserError, match="does not say what images it takes; .*--assume-rgb"):
        checkpoint.read(path, from_detector=True)
    with pytest.raises(UserError, match="is a whole detector .1 tensors besides .*--from-detector"):
        checkpoint.read(path, assume_rgb=True)
    read = checkpoint.read(path, from_detector=True, assume_rgb=True)
    assert torch.equal(read.tensors["conv1.weight"], state["conv1.weight"])
    assert list(read.dropped) == ["backbone.fpn_lateral2.weight"]


def test_our_detectors_say_what_they_take(tmp_path, state):
    contents = detector_of(state) | {
        "metadata": {"channel_order": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.2]},
        "model_ema": {"conv1.weight": state["conv1.weight"]},
    }
    read = checkpoint.read(write(tmp_path / "a.pth", contents), from_detector=True)
    assert read.std == (0.2, 0.2, 0.2)
    assert read.dropped["model_ema"] == "another set of tensors (averaged weights, optimizer)"


def test_timms_resnet50_is_torchvisions(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from safetensors.torch import save_file

    model = timm.create_model("resnet50", num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    image = torch.randn(1, 3, 64, 64)
    for name in ("a.pth", "a.safetensors"):
        read = checkpoint.read(tmp_path / name)
        assert read.arch == "resnet50"
        network = checkpoint.build_network("resnet50", 5).eval()
        network.load_state_dict(read.tensors)
        with torch.no_grad():
            torch.testing.assert_close(network(image), model(image), rtol=1e-5, atol=1e-6)


class Bomb:
    """Pickles into a call that leaves a mark when it is executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def test_code_is_executed_on_request_only(tmp_path, state):
    mark = tmp_path / "executed"
    path = write(tmp_path / "a.pth", {"model": dict(state), "args": Bomb(mark)})
    with pytest.raises(UserError, match="would execute code .exec. .*--allow-pickle"):
        checkpoint.read(path)
    assert not mark.exists()
    assert checkpoint.read(path, allow_pickle=True).arch == "resnet18"
    assert mark.exists()


NAN = torch.full((64,), float("nan"))


def without(*names):
    return lambda s: {k: v for k, v in s.items() if k not in names}


def changed(name, value):
    return lambda s: {**s, name: value}


def robust_with(name, value):
    return lambda s: robustness_contents(s)["model"] | {name: value}


def d2(tensors=None, **metadata):
    metadata = {"channel_order": "RGB"} | metadata
    return lambda s: {"model": backbone_of(s) | (tensors or {}), "metadata": metadata}


BAD_CONTENTS = {
    "missing": (without("layer3.0.conv1.weight"), "missing 'layer3.0.conv1.weight'"),
    "missing statistics": (without("bn1.running_var"), "missing 'bn1.running_var'"),
    "half a head": (without("fc.bias"), "missing 'fc.bias'"),
    "extra": (changed("layer9.weight", torch.zeros(1)), "unknown 'layer9.weight'"),
    "colliding after stripping": (
        lambda s: s | prefixed("module.")({"conv1.weight": s["conv1.weight"]}),
        "unknown 'module.conv1.weight'",
    ),
    "shape off by one": (
        changed("bn1.weight", torch.zeros(65)),
        r"'bn1.weight' has shape \(65,\) instead of \(64,\)",
    ),
    "kernel": (changed("conv1.weight", torch.zeros(64, 3, 3, 3)), "'conv1.weight' has shape"),
    "grey network": (changed("conv1.weight", torch.zeros(64, 1, 7, 7)), "'conv1.weight' has shape"),
    "scalar": (changed("bn1.weight", torch.tensor(1.0)), "'bn1.weight' has shape"),
    "heads differ": (changed("fc.bias", torch.zeros(3)), "different numbers of classes"),
    "nan": (changed("bn1.bias", NAN), "'bn1.bias' holds NaN or infinity"),
    "infinity": (changed("bn1.bias", NAN.nan_to_num(float("inf"))), "holds NaN or infinity"),
    "integers": (changed("bn1.bias", torch.zeros(64, dtype=torch.int32)), "type torch.int32"),
    "double": (changed("bn1.bias", torch.zeros(64).double()), "type torch.float64; allowed are"),
    "complex": (changed("bn1.bias", torch.zeros(64, dtype=torch.complex64)), "torch.complex64"),
    "text": (changed("bn1.bias", "x"), "'bn1.bias' is a str; save a state_dict"),
    "none": (changed("bn1.bias", None), "'bn1.bias' is a NoneType"),
    "numbers as names": (lambda s: dict(enumerate(s.values())), "keys that are not names"),
    "a list": (lambda s: list(s.values()), "holds a list, not a dictionary"),
    "a tensor": (lambda s: s["fc.bias"], "holds a Tensor, not a dictionary"),
    "empty": (lambda s: {}, "it is empty"),
    "empty model": (lambda s: {"model": {}}, "it is empty"),
    "copy differs": (robust_with("module.attacker.model.bn1.bias", NAN), "is not a copy"),
    "copy of nothing": (robust_with("module.attacker.model.x", NAN), "is not a copy"),
    "normalisers differ": (
        robust_with("module.normalizer.new_mean", torch.zeros(3, 1, 1)),
        "differs from the other normaliser's",
    ),
    "newer format": (
        lambda s: {"format": checkpoint.FORMAT, "version": 99, "model": s},
        "format version 99; this release reads 1",
    ),
    "another architecture": (
        lambda s: {"features.0.weight": torch.zeros(64, 3, 11, 11)},
        "is no supported network",
    ),
    "three blocks less": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer4")},
        "missing 'layer4",
    ),
    "BGR by metadata": (d2(channel_order="BGR"), "takes BGR images"),
    "BGR by mean": (d2(mean=[0.406, 0.456, 0.485], std=[0.225, 0.224, 0.229]), "takes BGR images"),
    "unknown order": (lambda s: {"model": backbone_of(s)}, "does not say what images it takes"),
    "odd mean": (d2(mean=[123.0, 116.0, 103.0], std=[0.2, 0.2, 0.2]), "three numbers in .0, 1."),
    "text for a mean": (d2(mean="imagenet", std=[0.2, 0.2, 0.2]), "its mean is 'imagenet'; three"),
    "mean without std": (d2(mean=[0.5, 0.5, 0.5]), "but not both"),
    "normaliser and record differ": (
        lambda s: robustness_contents(s) | {"metadata": {"mean": [0.5, 0.5, 0.5]}},
        "the normaliser's mean and the recorded one differ",
    ),
    "sparse": (lambda s: s | {"fc.weight": s["fc.weight"].to_sparse()}, "holds sparse tensors"),
    "negative variance": (changed("bn1.running_var", -torch.ones(64)), "negative variances"),
    "caffe names": (
        lambda s: {"conv1_w": s["conv1.weight"], "res_conv1_bn_s": s["bn1.weight"]},
        "is no supported network",
    ),
    "alien name in Detectron2": (
        d2({"res2.0.convX.weight": NAN}),
        "'res2.0.convX.weight' is no tensor of a Detectron2 ResNet",
    ),
}


@pytest.mark.parametrize("case", BAD_CONTENTS)
def test_bad_contents_are_refused_by_name(tmp_path, state, case):
    change, message = BAD_CONTENTS[case]
    with pytest.raises(UserError, match=message):
        checkpoint.read(write(tmp_path / "a.pth", change(dict(state))))


def flipped(data: bytes, at: float) -> bytes:
    i = int(len(data) * at)
    return data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]


BAD_BYTES = {
    "empty": (lambda good: b"", "is empty"),
    "HTML": (lambda good: b"\n<!DOCTYPE html><html>", "is an HTML page"),
    "JSON error": (lambda good: b'{"error": "Entry not found"}', "is not a complete checkpoint"),
    "nonsense": (lambda good: b"nonsense", "is not a complete checkpoint"),
    "zeros": (lambda good: bytes(1000), "is not a complete checkpoint"),
    "safetensors cut off": (lambda good: b"\xff\0\0\0\0\0\0\0{", "is not a complete checkpoint"),
    "safetensors that claims 2**60 bytes": (lambda good: b"\0\0\0\0\0\0\0\x10{", "not a complete"),
    "pickle cut off": (lambda good: pickle.dumps({"a": 1})[:-3], "is not a complete checkpoint"),
    "LFS pointer": (lambda good: b"version https://git-lfs.github.com/spec/v1\n", "not a complete"),
    **{
        f"cut at {at:.0%}": (lambda good, at=at: good[: int(len(good) * at)], "not a complete")
        for at in (0.0001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999999)
    },
}


@pytest.mark.parametrize("case", BAD_BYTES)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_bad_bytes_are_refused_by_name(tmp_path, resnet18_file, case, suffix):
    make, message = BAD_BYTES[case]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make(resnet18_file.read_bytes()))
    with pytest.raises(UserError, match=message):
        checkpoint.read(path)


@pytest.mark.parametrize("name", ["README.md", "photo.png", "weights"])
def test_a_file_of_another_kind_is_no_broken_checkpoint(tmp_path, name):
    (tmp_path / name).write_text("# A heading\n")
    with pytest.raises(UserError, match=f"{name} is no checkpoint of a known kind .*safetensors"):
        checkpoint.read(tmp_path / name)


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 0.9, 0.99])
def test_flipped_bits_are_noticed(tmp_path, resnet18_file, at):
    path = tmp_path / "a.pth"
    path.write_bytes(flipped(resnet18_file.read_bytes(), at))
    with pytest.raises(UserError):
        checkpoint.read(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_pickles_that_would_execute_code_do_not(tmp_path, state, protocol, suffix):
    mark, path = tmp_path / "executed", tmp_path / f"a{suffix}"
    path.write_bytes(pickle.dumps({"model": Bomb(mark)}, protocol))
    with pytest.raises(UserError, match="exec|not a complete checkpoint"):
        checkpoint.read(path)
    assert not mark.exists()
