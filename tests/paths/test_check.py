"""The whole check of this installation, and of weights from a Hub with a small ImageNet."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from robust_backbones import zoo
from robust_backbones.commands.check import command, installation
from tests.support import ROOT
from tests.support.fake_hub import Page, hub_page
from tests.support.networks import random_network, robustness_contents

NAME = "resnet18_l2_eps0.03"  # has no published digest


def test_this_installation_passes(tmp_path, capsys):
    assert command.main(["--output", str(tmp_path / "check.json")]) == 0
    shown = capsys.readouterr().out
    assert "all steps passed" in shown and "FAILED" not in shown
    [table] = json.loads((tmp_path / "check.json").read_text())["tables"]
    facts = {step["step"]: step["facts"] for step in table["steps"]}
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert facts["attack"]["attacked_loss"] > facts["attack"]["loss"]


def test_faults_of_an_installation(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installation.metadata, "version", lambda name: "0.1")
    assert command.main([]) == 1
    lines = {
        line.split()[1]: line
        for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[1:10]
    }
    assert "missing: Detectron2. Run: robust-backbones install-detectron2" in lines["versions"]
    assert "torch is 0.1, but >=2.6 is required; " in lines["packages"]
    assert "Set ROBUST_BACKBONES_CACHE to another folder" in lines["cache"]
    assert lines["classifier"].startswith("  ok")
    assert "skipped" in lines["conversion"] and "needs Detectron2. Run" in lines["conversion"]


def test_an_installation_for_classification_passes(monkeypatch, capsys):
    """The extra `detection` and Detectron2 are absent."""
    present, find = installation.metadata.version, installation.importlib.util.find_spec
    absent = {"fvcore", "pycocotools", "hotcoco", "iopath", "yacs", "detectron2"}

    def version(name):
        if name in absent:
            raise installation.metadata.PackageNotFoundError(name)
        return present(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    monkeypatch.setattr(
        installation.importlib.util, "find_spec", lambda n: None if n in absent else find(n)
    )
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    assert "FAILED" not in shown and shown.count("needs Detectron2. Run") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("empty_cache")
def test_weights_from_a_hub_and_their_accuracy(tmp_path, host):
    """All 50,000 images are links to ten files. The random network gives another accuracy."""
    torch.save(robustness_contents(random_network("resnet18", 1000).state_dict()), tmp_path / "net")
    page = hub_page(zoo.find_model(NAME).place)
    host.pages[page] = Page((tmp_path / "net").read_bytes())
    generator = np.random.default_rng(0)
    for label in range(1000):
        folder = tmp_path / f"ImageNet/val/n{label:08d}"
        folder.mkdir(parents=True)
        if label % 100 == 0:
            source = str(folder / "0.JPEG")
            cv2.imwrite(source, generator.integers(0, 255, (64, 64, 3), np.uint8))
        for number in range(label % 100 == 0, 50):
            os.link(source, folder / f"{number}.JPEG")
    words = ["check", "--online", "--weights", NAME, "--output", str(tmp_path / "check.json")]
    words += ["--imagenet", str(tmp_path / "ImageNet/val"), "--images", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "robust_backbones", *words],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": host.url},
        capture_output=True,
        text=True,
    )
    tables = json.loads((tmp_path / "check.json").read_text())["tables"]
    states = {step["step"]: step["state"] for step in tables[1]["steps"]}
    assert done.returncode == 1 and [s for s in states if states[s] != "ok"] == ["accuracy"]
    assert host.count("GET", page) == 1
    text = tables[1]["steps"][-1]["text"]
    assert "on 20 images; the published 69.24 % is outside the 95 % interval" in text
    assert "Repeat with --images all" in text
