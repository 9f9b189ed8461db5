"""Against the real `robustness` library: its files load here, ours load there."""

import sys
import types

import pytest
import torch
from conftest import random_network

from classification.models import load_classifier
from robust_backbones import checkpoint, export


@pytest.fixture(scope="module")
def library():
    """The library; its release imports a torchvision module that is gone since 0.13."""
    from torch.hub import load_state_dict_from_url

    gone = types.ModuleType("torchvision.models.utils")
    gone.load_state_dict_from_url = load_state_dict_from_url
    sys.modules.setdefault("torchvision.models.utils", gone)
    pytest.importorskip("robustness", reason="the robustness library is not installed")
    from robustness import datasets, model_utils

    return types.SimpleNamespace(datasets=datasets, model_utils=model_utils)


@pytest.fixture
def as_old_torch(monkeypatch):
    """The library calls torch.load for files with pickles of its own; since PyTorch 2.6 that must
    be asked for. It also moves models to a GPU, which is not needed here."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: load(*a, **{"weights_only": False} | k))
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, device=None: self)


# Those that the library does not have by name.
FOREIGN = ("mobilenet_v2", "shufflenet_v2_x1_0")


def restore(library, arch, path=None):
    """The library's model: by name, or around torchvision's network as the authors do it."""
    dataset = library.datasets.ImageNet("/nowhere")
    dataset.num_classes = 10
    model, _ = library.model_utils.make_and_restore_model(
        arch=checkpoint.build_network(arch, 10) if arch in FOREIGN else arch,
        dataset=dataset,
        resume_path=path,
        parallel=False,
        add_custom_forward=arch in FOREIGN,
    )
    return model.eval()


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet50", "wide_resnet50_2", "densenet161", *FOREIGN]
)
def test_our_file_loads_in_the_library(library, tmp_path, arch):
    network = random_network(arch)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    source = checkpoint.read(tmp_path / "a.pth")
    target = export.TARGETS["robustness"]
    target.write(target.contents(source), tmp_path / "b.pt")
    model = restore(library, arch, str(tmp_path / "b.pt"))  # strict

    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, _ = model(image)
        expected = load_classifier(tmp_path / "b.pt")(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", *FOREIGN])
def test_the_librarys_file_loads_here(library, tmp_path, arch):
    """Saved as its training loop does it: DataParallel, dill, schedule and optimizer."""
    import dill

    torch.manual_seed(1)
    network = random_network(arch)
    model = restore(library, arch)
    inner = model.model.model if arch in FOREIGN else model.model
    inner.load_state_dict(network.state_dict())
    wrapped = torch.nn.DataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    contents = {
        "model": wrapped.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 90,
        "amp": None,
        "nat_prec1": 62.83,
    }
    torch.save(contents, tmp_path / "a.ckpt", pickle_module=dill)

    read = checkpoint.read(tmp_path / "a.ckpt")
    assert (read.arch, read.layout, read.metadata["epoch"]) == (arch, "robustness", 90)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, _ = model(image)
        found = load_classifier(tmp_path / "a.ckpt")(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
