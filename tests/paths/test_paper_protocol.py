"""`--protocol paper` against the authors' procedure, re-created with the `robustness` library.

Normalization, BatchNorm mode, loss, and weights after some steps are equal.
"""

import copy
import dataclasses

import pytest
import torch

from classification.datasets.open import open_split
from classification.datasets.specs import SUITE
from classification.models import Pretrained, fill
from classification.training.evaluate import evaluate
from classification.training.learner import Learner
from classification.transfer import options as transfer_options
from classification.transfer.settings import SourceNetwork
from classification.transfer.task import Task
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.input_statistics import IMAGENET
from tests.support import robustness_bridge
from tests.support.networks import random_network
from tests.support.small_models import trained_on
from tests.support.transfer_runs import FAST, run, write_network

CLASSES, LR = 4, 0.05


@pytest.fixture
def weights(tmp_path):
    """A checkpoint with ImageNet's normalization, like the published models."""
    path = tmp_path / "resnet18.pth"
    torch.save(random_network("resnet18", 7).state_dict(), path)
    return read_checkpoint(path)


def batches(count: int = 3):
    g = torch.Generator().manual_seed(3)
    return [
        (torch.rand(6, 3, 32, 32, generator=g).double(), torch.randint(CLASSES, (6,), generator=g))
        for _ in range(count)
    ]


def task(found, dataset: str, mode: str, *options) -> Task:
    args = transfer_options.parser("").parse_args(
        ["--weights", "w", "--dataset", dataset, "--mode", mode, "--protocol", "paper", *options]
    )
    images = open_split("digits", "test", limit=40)
    images = dataclasses.replace(images, classes=CLASSES)
    settings = transfer_options.make_settings(
        args, SourceNetwork(found.arch, 32, found.statistics, found.sha256, {})
    )
    network = Pretrained(fill(found), found, "w")
    return Task(network, images, images, settings, {}, None, torch.device("cpu"))


def theirs(library, found, dataset: str, mode: str, head):
    """The network as their `main.py` builds it, with a new last layer and the dataset's statistics,
    and the parameters that their optimizer gets."""
    network = build_network(found.arch, 7)
    network.load_state_dict(network.state_dict() | found.tensors)
    network.fc = copy.deepcopy(head)
    if dataset == "cifar10":
        wrapping = library.datasets.CIFAR("/nowhere")
    else:  # ten of the twelve tasks
        wrapping = library.datasets.ImageNet("/nowhere")
        wrapping.mean, wrapping.std = torch.zeros(3), torch.ones(3)
    model = library.attacker.AttackerModel(library.model_utils.DummyModel(network), wrapping)
    if mode == "full-network":
        return model, list(model.parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "fc." in name
    return model, [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("dataset", ["cifar10", "aircraft"])
@pytest.mark.parametrize("mode", ["fixed-feature", "full-network"])
def test_some_steps_agree(library, monkeypatch, weights, dataset, mode):
    robustness_bridge.stay_on_the_cpu(monkeypatch.setattr)
    ours = task(weights, dataset, mode)
    # In float64: BatchNorm over six values amplifies rounding in each step.
    model = ours.classifier(0).double()
    reference, trained = theirs(library, weights, dataset, mode, model.head)
    reference.double()
    before = copy.deepcopy(model.net.state_dict())
    settings = dataclasses.replace(ours.settings.sgd.train, lr=LR)
    optimizer = torch.optim.SGD(
        trained, LR, momentum=settings.momentum, weight_decay=settings.weight_decay
    )

    _, expected = library.train._model_loop(
        robustness_bridge.loop_settings(), "train", batches(), reference, optimizer, 0, False, None
    )
    learner = Learner(model, settings)
    sums = [trained_on(learner, x, y, LR) for x, y in batches()]
    assert sum(s.loss for s in sums) / 18 == pytest.approx(expected, rel=1e-6)

    network = reference.model.model
    moved = set()
    for name, tensor in network.state_dict().items():
        found = model.net.state_dict()[name]
        torch.testing.assert_close(found, tensor, rtol=1e-6, atol=1e-6, msg=name)
        if not torch.equal(found, before[name]):
            moved.add(name)
    assert "layer1.0.bn1.running_var" in moved and "fc.weight" in moved
    assert ("conv1.weight" in moved) == (mode == "full-network")

    accuracy, loss = library.train._model_loop(
        robustness_bridge.loop_settings(), "val", batches(), reference, None, 0, False, None
    )
    outcome = evaluate(model, batches())  # with the adapted statistics, as in their code
    assert outcome.top1 == pytest.approx(float(accuracy))
    assert outcome.loss == pytest.approx(float(loss), rel=1e-6)


def test_statistics_of_the_datasets(library):
    """0 and 1 for ten of the twelve tasks, CIFAR's statistics for two."""
    for dataset in SUITE:
        found = transfer_options.target_statistics(dataset)
        mean, std = found.mean, found.std
        if dataset == "cifar10":
            expected = library.datasets.CIFAR("/nowhere")
            torch.testing.assert_close(torch.tensor(mean), expected.mean)
            torch.testing.assert_close(torch.tensor(std), expected.std)
        elif dataset != "cifar100":
            assert (mean, std) == ((0.0,) * 3, (1.0,) * 3), dataset


def test_the_weights_own_statistics_on_demand(tmp_path):
    """One part of the paper's protocol is replaced."""
    found = read_checkpoint(write_network(tmp_path / "w.pt"))
    kept = task(found, "aircraft", "fixed-feature", "--normalization", "weights").classifier(0)
    assert kept.normalize.mean.flatten().tolist() == pytest.approx([0.4, 0.45, 0.5])
    dropped = task(found, "aircraft", "fixed-feature").classifier(0)
    assert dropped.normalize.std.flatten().tolist() == [1.0, 1.0, 1.0]


def test_reweighted_accuracy_is_the_mean_over_classes():
    """Their formula: each image has the weight N / (n_c * C)."""
    from classification import metrics

    g = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (46,), generator=g)])
    predictions = torch.randint(CLASSES, (50,), generator=g)
    counts = torch.bincount(labels)
    weights = 50 / (counts * CLASSES)
    total = 0.0
    for start in range(0, 50, 8):
        chosen = slice(start, start + 8)
        right = (predictions[chosen] == labels[chosen]).float() * weights[labels[chosen]]
        total += right.sum() * 100 / len(labels[chosen]) * len(labels[chosen])
    expected = total / 50
    found = metrics.mean_per_class(predictions, labels, CLASSES)
    assert found == pytest.approx(float(expected), rel=1e-5)


def settings(*options):
    parsed = transfer_options.parser("").parse_args(["--weights", "w", *options])
    return transfer_options.make_settings(
        parsed, SourceNetwork("resnet18", None, IMAGENET, "0", {})
    ).to_json()


def test_the_paper_protocol_has_the_papers_hyperparameters():
    """hyperparameters.yaml: transfer."""
    found = settings("--dataset", "aircraft", "--protocol", "paper")
    assert {
        "mode": "fixed-feature",
        "protocol": "paper",
        "normalization": "target",
        "batchnorm": "adapting",
        "probe": "sgd",
        "selection": "test",
        "image_size": 224,
        "epochs": 150,
        "batch_size": 64,
        "lr": [0.01, 0.001],
        "lr_schedule": "step",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        "augmentation": "imagenet_plain",
        "precision": "float32",
        "eval_every": 5,
        "method": "standard",
        "ema": 0.0,
        "warmup": 0.0,
    }.items() <= found.items()


def test_networks_that_the_papers_code_cannot_freeze(tmp_path, capsys):
    weights = write_network(tmp_path / "w.pt", "shufflenet_v2_x1_0")
    with pytest.raises(SystemExit):
        run(weights, tmp_path / "run", "--protocol", "paper", *FAST)
    assert "supports ResNets only, not shufflenet_v2_x1_0. Choose --" in capsys.readouterr().err
