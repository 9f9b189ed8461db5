"""What many tests need: a private cache with the digit scenes, and small checkpoints."""

import os
import tempfile

# Several workers with several threads each get in each other's way, many times slower.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import setuptools  # noqa: F401  (fails if the standard distutils was imported before)
import torch

from tests.support import device_table, stand_in
from tests.support.networks import random_network


def pytest_configure(config):
    """All caches of the tests are their own; nothing of the user's is read or written."""
    config.cache_folder = tempfile.TemporaryDirectory(prefix="robust_backbones_test_cache_")
    os.environ["ROBUST_BACKBONES_CACHE"] = config.cache_folder.name  # subprocesses inherit it


def pytest_collection_modifyitems(items):
    """Start with the files of slow tests: at the end, other processes would wait for them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure(config):
    config.cache_folder.cleanup()


@pytest.fixture(scope="session")
def resnet18_file(tmp_path_factory):
    """A torchvision checkpoint of a ResNet-18."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(random_network("resnet18").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def resnet18_backbone(resnet18_file):
    """The same, converted for Detectron2."""
    from robust_backbones.checkpoint import export
    from robust_backbones.checkpoint.io import read_checkpoint, save_file

    path = resnet18_file.with_name("backbone.pth")
    save_file(export.detectron2_contents(read_checkpoint(resnet18_file)), path)
    return path


@pytest.fixture(scope="session")
def library():
    """The real `robustness` library."""
    from tests.support import robustness_bridge

    try:
        return robustness_bridge.import_library()
    except ImportError:
        pytest.skip("the robustness library is not installed")


@pytest.fixture(scope="module")
def device_outcomes(request, tmp_path_factory):
    """The outcomes of the file's `CHECKS` on a GPU or the stand-in device; see `device_table`."""
    if not (torch.cuda.is_available() or stand_in.AVAILABLE):
        pytest.skip("there is no GPU, and this PyTorch cannot register a device from Python")
    return device_table.outcomes(request.path, tmp_path_factory.mktemp("devices"))


@pytest.fixture
def host():
    """A web server on this machine; see `fake_hub`."""
    from tests.support.fake_hub import serve

    with serve() as server:
        yield server


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """The folder of an empty cache; no mirror, no proxy, quick repetitions."""
    from robust_backbones import download, weights

    for name in (weights.MIRROR, "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    return tmp_path / "cache"
