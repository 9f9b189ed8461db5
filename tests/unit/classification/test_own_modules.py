"""The user's own modules: attacks, evaluation, features, probe and transfer."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from classification import Classifier, measure_robustness, measure_transfer, open_split
from classification.transfer import features
from robust_backbones import UserError, pgd

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.4, 0.3)}


class Net(nn.Module):
    """A small network with a scale that no tensor shows."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1) * self.scale)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))


def test_inputs_are_normalized_and_features_are_the_heads_input():
    module, x = Net().eval(), torch.rand(2, 3, 32, 32)
    model = Classifier.wrap(module, **STATISTICS, features="fc").eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS.values())
    torch.testing.assert_close(model(x), module((x - mean) / std))
    torch.testing.assert_close(model.head(model.features(x)), model(x))
    assert model.net is module and model.num_classes == 10


def test_a_module_without_features_is_attacked_and_evaluated_only(tmp_path):
    model = Classifier.wrap(Net().eval(), **STATISTICS)
    x = torch.rand(2, 3, 32, 32)
    x_adv = pgd(model, x, torch.tensor([0, 1]), constraint="l2", eps=1.0, steps=2, step_size=0.5)
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= 1 + 1e-5
    found = measure_robustness(
        model, tmp_path / "eval", dataset="digits", images=20, eps=0.5, steps=2
    )
    assert set(found["attacks"]) == {*("clean", "pgd-2 eps 0.5", "unbounded", "worst case eps 0.5")}
    with pytest.raises(UserError, match="own:Net has no features. Name its last linear layer"):
        model.features(x)
    with pytest.raises(UserError, match="own:Net has no features"):
        measure_transfer(model, tmp_path / "transfer", dataset="digits")
    with pytest.raises(UserError, match="own:Net has no linear layer of this name.*Choose from fc"):
        Classifier.wrap(Net(), **STATISTICS, features="head")
    with pytest.raises(UserError, match="--epsi is not an option. Did you mean --eps|arguments"):
        measure_robustness(model, tmp_path / "eval2", dataset="digits", epsi=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "fixed-feature", "penalty": 1.0},
        {"mode": "full-network", "epochs": 1, "lr": [0.01], "batch_size": 32},
    ],
    ids=["fixed", "full"],
)
def test_transfer_as_the_command_does(tmp_path, settings):
    model = Classifier.wrap(Net(), **STATISTICS, features="fc")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = {"dataset": "digits", "image_size": 32, "limit": 64, "test_limit": 20, "trials": 1}
    found = measure_transfer(model, tmp_path / "run", **small, **settings)
    assert found["images"] == 20 and 0 <= found["accuracy"] <= 100
    assert (tmp_path / "run/per_image.csv").is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_cached_features_are_not_those_of_another_code():
    """Tensors do not show the code of a module, so the cache compares the features of noise."""
    source = open_split("digits", "test", limit=10)
    one, other = (Classifier.wrap(Net(scale), **STATISTICS, features="fc") for scale in (1.0, 2.0))
    x, y = (torch.cat([*features.extract(m, source).parts(10)]) for m in (one, other))
    torch.testing.assert_close(2 * x, y)


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "docs/guides/transfer.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {"MyNetwork": Net})
    clean, moved = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert 0 <= clean <= 100 and moved > 10
