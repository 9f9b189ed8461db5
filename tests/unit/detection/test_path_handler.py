"""`robust://` in Detectron2: one conversion, whoever asks; and in `classification`."""

import os
import subprocess
import sys

import pytest
import torch
from detectron2.utils.file_io import PathManager

from classification.models import load_classifier
from robust_backbones import weights
from robust_backbones.core.errors import UserError
from robust_backbones.detection import config, model_weights, path_handler, run_checks
from robust_backbones.detection.training import trainer
from tests.support import ROOT
from tests.support.networks import random_network, robustness_contents

DIGITS = ROOT / "configs/digits_mask_rcnn_robust.yaml"
NAME = "robust://resnet18_linf_eps8"  # its digest is not published, so ours may stand for it


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A mirror with one model, random, as the `robustness` library saves it; and a wrong one."""
    folder = tmp_path_factory.mktemp("mirror")
    state = random_network("resnet18", 1000).state_dict()
    torch.save(robustness_contents(state), folder / "resnet18_linf_eps8.0.ckpt")
    torch.save(state, folder / "resnet50_linf_eps1.0.ckpt")  # not what its name says
    return folder


@pytest.fixture(autouse=True)
def places(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(weights.MIRROR, str(mirror))
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))


def load(*overrides):
    return config.load_config(DIGITS, ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "()", *overrides])


def test_a_name_gives_the_converted_file(mirror, monkeypatch):
    path = PathManager.get_local_path(NAME)
    contents = torch.load(path, weights_only=True)
    source = random_network("resnet18", 1000).state_dict()
    assert torch.equal(contents["model"]["stem.conv1.weight"], source["conv1.weight"])
    metadata = contents["metadata"]
    assert (metadata["name"], metadata["constraint"]) == ("resnet18_linf_eps8", "linf")
    assert metadata["eps"] == 8 / 255
    assert metadata["source_sha256"] == weights.digest(NAME)
    assert metadata["source_sha256"][:16] in path
    assert PathManager.isfile(NAME) and PathManager.exists(NAME)
    with PathManager.open(NAME, "rb") as file:
        assert file.read(2) == b"PK"
    monkeypatch.setattr(path_handler, "_convert", None)  # a second conversion would fail
    monkeypatch.setattr(weights, "fetch_weights", None)  # the published file is not needed any more
    assert PathManager.get_local_path("robust://resnet18_linf_eps8.0") == path


def test_another_version_or_source_converts_anew(monkeypatch):
    made = []
    monkeypatch.setattr(path_handler, "_convert", lambda *args: made.append(args[2]))
    path_handler.converted(NAME)
    monkeypatch.setattr(path_handler, "__version__", "99")
    path_handler.converted(NAME)
    monkeypatch.setattr(weights, "digest", lambda name: "f" * 64)
    path_handler.converted(NAME)
    assert len(set(made)) == 3


def test_conversion_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    path_handler.converted(NAME)
    assert torch.equal(torch.rand(3), expected)


def test_a_detector_starts_from_a_name(tmp_path):
    cfg = load("MODEL.WEIGHTS", NAME, "OUTPUT_DIR", str(tmp_path))
    made = trainer.Trainer(cfg)
    made.resume_or_load(resume=False)
    loaded = torch.load(path_handler.converted(NAME), weights_only=True)["model"]
    state = made.model.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(state[f"backbone.bottom_up.{name}"], tensor)


def test_inputs_are_fetched_before_the_run(tmp_path):
    cfg = load("MODEL.WEIGHTS", NAME)
    run_checks.check_inputs(cfg, train=False)
    assert list((tmp_path / "cache/detectron2").glob("*.pth"))


REFUSED = [
    ("robust://resnet18_l2_eps7", "no published model is named 'resnet18_l2_eps7'. Did you mean"),
    (
        "robust://vgg16_bn_l2_eps3",
        "is a vgg16_bn, which has no backbone for Detectron2. Choose a model with a b",
    ),
    (
        "robust://resnet50_l2_eps3",
        "ROBUST.ARCH is resnet18, but robust://resnet50_l2_eps3 is a res",
    ),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_wrong_names_are_refused_before_any_download(monkeypatch, name, message):
    monkeypatch.setattr(weights, "fetch_weights", None)
    with pytest.raises(UserError, match=message):
        load("MODEL.WEIGHTS", name)


def test_names_are_checked_under_other_builders_too(monkeypatch):
    with pytest.raises(UserError, match="has no backbone for Detectron2"):
        PathManager.get_local_path("robust://vgg16_bn_l2_eps3")
    assert not PathManager.isfile("robust://vgg16_bn_l2_eps3")
    with pytest.raises(UserError, match="is a published model and cannot be written"):
        PathManager.open(NAME, "wb")


def test_weights_that_cannot_be_had_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cfg = load("MODEL.WEIGHTS", "robust://resnet18_l2_eps3")
    with pytest.raises(
        UserError, match="robust://resnet18_l2_eps3: .*HF_HUB_OFFLINE is set, and .*"
    ):
        run_checks.check_inputs(cfg, train=False)


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    with pytest.raises(UserError, match="eps1.0.ckpt: the network is a resnet18, not a resnet50"):
        path_handler.converted("robust://resnet50_linf_eps1")
    assert not list((tmp_path / "cache/detectron2").glob("*.pth"))


def test_the_same_name_gives_the_classifier():
    model = load_classifier("resnet18_linf_eps8")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = random_network("resnet18", 1000)(model.normalize(x))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("config_file", sorted((ROOT / "configs").glob("*.yaml")), ids=str)
def test_names_in_configs_are_published(config_file):
    name = config.load_config(config_file).MODEL.WEIGHTS
    if not config_file.name.startswith(("digits", "own_data")):  # weights of the user
        assert model_weights.named(name) is not None


RANKS = """
import os, sys
from robust_backbones.detection import path_handler

convert = path_handler._convert

def counted(*args):
    os.write(log, b"converted\\n")
    convert(*args)

path_handler._convert = counted
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(20):
    if os.fork() == 0:
        line = f"{path_handler.converted(sys.argv[2])}\\n"
        os.write(1, line.encode())  # one call: lines stay whole
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in range(20)]))
"""


def test_twenty_processes_convert_once(tmp_path):
    """Forked after the imports, which would take minutes for twenty on two cores."""
    call = [sys.executable, "-c", RANKS, str(tmp_path / "log"), NAME]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "converted\n"
    lines = done.stdout.split()
    assert len(lines) == 20
    assert len(set(lines)) == 1
