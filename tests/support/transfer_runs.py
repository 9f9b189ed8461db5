"""Runs of the transfer command, small networks in files, and result tables."""

import csv
import json

from classification.models import Classifier
from classification.transfer import __main__ as transfer
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import save_file
from robust_backbones.core.input_statistics import InputStatistics
from tests.support.networks import random_network

TINY = [
    "--dataset",
    "digits",
    "--limit",
    "40",
    "--test-limit",
    "30",
    "--device",
    "cpu",
    "--trials",
    "1",
]
UNUSUAL = InputStatistics((0.4, 0.45, 0.5), (0.25, 0.3, 0.35))
FAST = ["--epochs", "2", "--batch-size", "8"]


def write_network(path, arch: str = "resnet18", classes: int = 7, image_size: int = 32, **metadata):
    """Save a classifier with random weights and unusual statistics; return `path`."""
    model = Classifier.build(arch, classes, UNUSUAL)
    model.net.load_state_dict(random_network(arch, classes).state_dict())
    contents = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "model": model.state_dict(),
        "metadata": {"image_size": image_size, "eps": 0.5} | metadata,
    }
    save_file(contents, path)
    return path


def run(weights, output, *options) -> dict:
    """Run the command, by default on a few digits, and return its result."""
    transfer.main([*TINY, "--weights", str(weights), "--output", str(output), *options])
    return json.loads((output / "result.json").read_text())


def table(path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))
