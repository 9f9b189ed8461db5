"""Test that checkpoints of other programs are read exactly, or refused with their kind."""

import argparse
import sys

import numpy as np
import pytest
import torch

from robust_backbones.checkpoint import containers, formats, wrappers
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import load_file, read_checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.file_kinds import foreign_kind
from tests.support import foreign_checkpoints
from tests.support.foreign_checkpoints import KINDS


@pytest.fixture(scope="module")
def state():
    return foreign_checkpoints.resnet18_state()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_checkpoint(tmp_path, state, kind):
    path = tmp_path / "a.pth"
    kind.write(state, path)
    if kind.without:
        with pytest.raises(UserError, match=kind.without):
            read_checkpoint(path)
    if kind.refused:
        with pytest.raises(UserError, match=kind.refused):
            read_checkpoint(path, **kind.options)
        return
    read = read_checkpoint(path, **kind.options)
    assert read.arch == "resnet18"
    assert (read.statistics.source == "file") == kind.statistics
    expected = {k: v for k, v in state.items() if kind.head or not k.startswith("fc.")}
    counters = "num_batches_tracked"
    assert read.tensors.keys() >= {k for k in expected if not k.endswith(counters)}
    for name, tensor in read.tensors.items():
        exact = expected[name].bfloat16().float() if "bfloat16" in kind.name else expected[name]
        if not name.endswith(counters):
            assert torch.equal(tensor, exact), name


# Names of tensors around a network, with the reason for which they are dropped.
AROUND = {
    "criterion.pos_weight": "part of the loss",
    "loss_fn.weight": "part of the loss",
    "train_loss.0.weight": "part of the loss",
    "val_acc.confmat": "metric of the training run",
    "metrics.count": "metric of the training run",
    "predictor.0.weight": "layer of contrastive training",
    "projector.layers.0.weight": "layer of contrastive training",
    "model_ema.conv1.weight": "averaged copy of the network",
    "ema.module.conv1.weight": "averaged copy of the network",
    "momentum_encoder.conv1.weight": "momentum encoder, not the trained network",
    "linear.weight": wrappers.OUTSIDE,
    "fc.weight": wrappers.OUTSIDE,
    "heads.0.weight": wrappers.OUTSIDE,
}


@pytest.mark.parametrize("outer", ["", "module."])
@pytest.mark.parametrize("key", AROUND)
def test_known_parts_around_a_network_are_dropped_with_their_reason(small_state, key, outer):
    state = {f"{outer}backbone.{k}": v for k, v in small_state.items()}
    found = wrappers.unwrap_network(state | {outer + key: torch.ones(2)}, "file")
    assert found.tensors == small_state
    assert found.dropped == {outer + key: AROUND[key]}


@pytest.mark.parametrize("key", ["neck.0.weight", "lossy.weight", "schema.weight", "avgpool.x"])
def test_one_unknown_tensor_is_the_one_that_the_error_names(small_state, key):
    state = {f"model.{k}": v for k, v in small_state.items()} | {key: torch.ones(2)}
    with pytest.raises(UserError, match=f"file: '{key}' is outside the network.*--key model"):
        wrappers.unwrap_network(state, "file")
    assert containers.find_state(state, "file", "model")[0] == small_state
    state |= {"neck.1.bias": torch.ones(2)}
    with pytest.raises(UserError, match=f"'{key}' and 1 more keys are outside"):
        wrappers.unwrap_network(state, "file")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ("normalize.mean", "normalize.std"),
        ("0._mean", "0._std"),
        ("mu", "sigma"),
        ("norm.means", "norm.sds"),
        ("image_mean", "image_std"),
        ("model.normalizer.new_mean", "model.normalizer.new_std"),
    ],
)
def test_normalization_layers_are_recognized_by_their_buffers(small_state, mean, std):
    state = {f"model.{k}": v for k, v in small_state.items()}
    state |= {mean: torch.full((1, 3, 1, 1), 0.5), std: torch.full((3,), 0.25)}
    found = formats.unwrap(state, "file")
    assert (found.mean.tolist(), found.std.tolist()) == ([0.5] * 3, [0.25] * 3)
    with pytest.raises(UserError, match="only one of mean and std"):
        formats.unwrap({k: v for k, v in state.items() if k != std}, "file")
    with pytest.raises(UserError, match=f"'other.{mean}' differs from the first"):
        formats.unwrap(state | {f"other.{mean}": torch.zeros(3)}, "file")


HALF, THIRD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"mean": HALF, "std": THIRD}, (HALF, THIRD)),
        ({"mean": tuple(HALF), "std": torch.tensor(THIRD)}, (HALF, THIRD)),
        ({"default_cfg": {"mean": HALF, "std": THIRD, "input_size": (3, 64, 64)}}, (HALF, THIRD)),
        ({"image_mean": [127.5] * 3, "image_std": [63.75] * 3}, (HALF, THIRD)),
        ({"mean": [127.5] * 3, "std": [1, 1, 1]}, (HALF, [1 / 255] * 3)),
        ({"a": {"mean": HALF, "std": THIRD}, "b": {"mean": THIRD, "std": HALF}}, None),
        ({"a": {"mean": HALF, "std": THIRD}, "b": {"mean": HALF, "std": THIRD}}, (HALF, THIRD)),
        ({"mean": 0.5, "std": 0.25}, None),
        ({"mean": HALF}, None),
        ({"mean": HALF, "std": [0, 1, 1]}, None),
        ({"mean": [-1, 0, 1], "std": THIRD}, None),
        ({"mean": ["a", "b", "c"], "std": THIRD}, None),
    ],
)
def test_mean_and_std_next_to_the_network_are_read(small_state, more, found):
    layout = formats.unwrap({"state_dict": small_state} | more, "file")
    if found is None:
        assert layout.mean is None and layout.std is None
    else:
        torch.testing.assert_close(layout.mean, torch.tensor(found[0]))
        torch.testing.assert_close(layout.std, torch.tensor(found[1]))


def test_a_normalization_layer_for_pixels_is_scaled_and_precedes_entries(small_state):
    state = {f"model.{k}": v for k, v in small_state.items()}
    state |= {"mean": torch.tensor([123.675, 116.28, 103.53]), "std": torch.full((3, 1, 1), 51.0)}
    layout = formats.unwrap({"state_dict": state, "mean": HALF, "std": HALF}, "file")
    torch.testing.assert_close(layout.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(layout.std.flatten(), torch.full((3,), 0.2))
    state["mean"] = state["mean"].flip(0)
    with pytest.raises(UserError, match="expects BGR images"):
        formats.unwrap(state, "file")


def test_a_layer_for_other_channels_is_no_normalization(small_state):
    state = {f"model.{k}": v for k, v in small_state.items()} | {"mean": torch.ones(1)}
    with pytest.raises(UserError, match="'mean' is outside the network"):
        formats.unwrap(state, "file")


@pytest.fixture(scope="module")
def small_state():
    """A state dict with the names of a ResNet-18, without its values."""
    with torch.device("meta"):
        shapes = build_network("resnet18", 10).state_dict()
    return {name: torch.empty(0) for name in shapes}


@pytest.mark.parametrize("key", ["teacher", "ema.shadow", "student.backbone"])
def test_a_key_chooses_an_entry_or_a_prefix(small_state, key):
    contents = {
        "teacher": small_state,
        "ema": {"shadow": small_state, "decay": 0.9},
        "student": {f"backbone.{k}": v for k, v in small_state.items()},
        "epoch": 3,
    }
    state, rest, _ = containers.find_state(contents, "file", key)
    assert state == small_state
    assert rest["epoch"] == 3
    with pytest.raises(UserError, match="several sets of tensors: teacher, student. Choose one"):
        containers.find_state(contents, "file")
    with pytest.raises(UserError, match="--key x: no such network. Choose from model, teacher, "):
        containers.find_state({"model": small_state} | contents, "file", "x")


def test_a_dropped_head_is_the_reason_for_its_absence(tmp_path, state):
    torch.save(foreign_checkpoints.several_layers(state), tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read.dropped["fc.1.weight"] == wrappers.NOT_LINEAR
    with pytest.raises(UserError, match="no last layer .fc.weight.: .* not one linear layer"):
        read.require_head("a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_become_numbers_of_python(tmp_path, zipped):
    numbers = [np.float64(0.5), np.float32(0.25), np.int64(-3), np.uint8(7), np.bool_(True)]
    torch.save({"a": numbers}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = load_file(tmp_path / "a.pth")["a"]
    assert found == [0.5, 0.25, -3, 7, True]
    assert [type(x) for x in found] == [float, float, int, int, bool]
    for refused in (np.zeros(2), np.str_("x"), np.datetime64("2020"), np.void(b"ab")):
        torch.save({"a": refused}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError):
            load_file(tmp_path / "a.pth")


def test_metadata_that_was_loaded_with_code_is_plain(tmp_path, state):
    contents = {"model": state, "acc": np.float64(0.5), "epoch": np.int64(3)}
    torch.save(contents | {"args": argparse.Namespace()}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth", allow_pickle=True)
    assert read.metadata == {"acc": 0.5, "epoch": 3}
    assert [type(x) for x in read.metadata.values()] == [float, int]


@pytest.mark.parametrize("case", ["shared", "circular"])
def test_metadata_of_too_many_entries_are_refused(state, case):
    metadata = {"a": 0.5}
    for _ in range(19):
        metadata = {"a": metadata, "b": metadata}
    if case == "circular":
        metadata = {"eps": 0.5}
        metadata["self"] = metadata
    with pytest.raises(UserError, match="more than 100000 entries or 20 levels"):
        formats.unwrap({"model": state, "metadata": metadata}, "file")


def test_a_missing_dill_is_named_with_its_extra(tmp_path, state, monkeypatch):
    dill = pytest.importorskip("dill", reason="dill is not installed")
    torch.save({"model": state, "f": lambda: 0}, tmp_path / "a.pth", pickle_module=dill)
    monkeypatch.setitem(sys.modules, "dill", None)
    message = "needs the module 'dill', which is missing. Run: pip install dill"
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "a.pth", allow_pickle=True)


@pytest.mark.parametrize("code", [True, False])
@pytest.mark.parametrize("at", [0.3, 0.99, 0.99999])
def test_a_truncated_file_of_the_old_container_is_called_incomplete(tmp_path, state, at, code):
    path = tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])
    with pytest.raises(UserError, match="not a complete checkpoint .* Download it again"):
        read_checkpoint(path, allow_pickle=code)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (b"\n<html>", "an HTML page"),
        (b"<?xml version", "an XML message"),
        (b'{"error": 1}', "a JSON message"),
        (b'{"weight_map": {"a": "b"}}', "the index of a sharded safetensors model"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"GGUF\x03\0", "a GGUF model"),
        (b"a" * 257 + b"ustar\0", "a tar archive"),
        (b"PK\x03\x04", ""),
        (b"\x80\x02\x8a\nl", ""),
        (b"{\n\0\0\0\0\0\0{}", ""),  # safetensors with a header of 2683 bytes
        (b"\x1f\x8b\x08\0\0\0\0\0{}", ""),
        (bytes(100), ""),
    ],
)
def test_files_of_other_kinds_are_recognized_by_their_first_bytes(head, kind):
    assert foreign_kind(head)[0] == kind


def test_other_zip_archives_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    with pytest.raises(UserError, match="is a zip archive without data.pkl"):
        load_file(tmp_path / "a.npz")
