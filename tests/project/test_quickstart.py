"""The examples of the quickstart run, with random weights in place of the published ones."""

import torch

from robust_backbones.weights import MIRROR
from tests.support import ROOT, documents
from tests.support.networks import random_network, robustness_contents

SMALL = "resnet18_l2_eps0.03"  # no SHA-256 is published, so any weights are accepted


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    net = random_network("resnet18").state_dict()
    torch.save(robustness_contents(net), tmp_path / f"{SMALL}.ckpt")
    monkeypatch.setenv(MIRROR, str(tmp_path))
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    values = {}
    for block in documents.blocks(ROOT / "docs/quickstart.md"):
        if block.language == "python":
            exec(block.text.replace("resnet50_l2_eps3", SMALL), values)
    assert values["features"].shape == (1, 512)
    assert (values["x_adv"] - values["x"]).norm() <= 3 + 1e-5
    assert values["cfg"].MODEL.ROBUST.ARCH in ("", "resnet18")
    assert next(values["detector"].parameters()).device.type == "cpu"
    assert capsys.readouterr().out.count("\n") == 2
