"""AutoAttack, compared with pyautoattack's own run, and free of side effects."""

import logging
import sys

import pytest
import torch

from classification.robustness_eval import execute
from classification.robustness_eval.autoattack import run_autoattack_part
from classification.robustness_eval.plan import Attack, autoattack_parts
from tests.support.small_models import digits, trained

pyautoattack = pytest.importorskip("pyautoattack")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The same attacks with fewer queries and steps."""
    for name, attribute, value in [
        ("SquareAttack", "n_queries", 50),
        ("FABAttack_PT", "n_iter", 5),
        ("APGDAttack", "n_iter", 10),
        ("APGDAttack_targeted", "n_iter", 10),
    ]:
        cls = getattr(pyautoattack.autoattack, name)

        def perturb(self, *args, whole=cls.perturb, attribute=attribute, value=value, **kwargs):
            setattr(self, attribute, value)
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(cls, "perturb", perturb)


@pytest.mark.parametrize("constraint, eps, norm", [("l2", 1.0, "L2"), ("linf", 0.1, "Linf")])
def test_the_parts_together_are_the_packages_own_run(constraint, eps, norm):
    model, (x, y) = trained(), digits(12)
    plan = [Attack("clean", constraint, 0.0), Attack("pgd", constraint, eps, 10)]
    plan += [Attack("autoattack", constraint, eps, None, part=p) for p in autoattack_parts(10)]
    records = []
    execute.execute_plan(
        model, [(x, y)], plan, seed=0, classes=10, records=records, add=records.append
    )
    outcomes = execute.collect_results(plan, records)
    seed = execute.generator(0, plan[-1], 0, torch.device("cpu")).initial_seed()
    suite = pyautoattack.AutoAttack(model, norm=norm, eps=eps, seed=seed, version="standard")
    _, y_adv = suite.run_standard_evaluation(x, y, batch_size=12)
    assert outcomes[-1].right == (y_adv == y).tolist()
    assert sum(outcomes[-1].right) <= sum(outcomes[1].right) < sum(outcomes[0].right)
    assert max(outcomes[2].norms) <= eps + 1e-5


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_few_classes(classes):
    torch.manual_seed(0)
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4) % classes
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes))
    for part in autoattack_parts(classes):
        x_adv = run_autoattack_part(
            model, x, y, constraint="linf", eps=0.05, part=part, classes=classes, seed=0
        )
        assert (x_adv - x).abs().max() <= 0.05 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1


def test_it_is_quiet_and_leaves_everything_as_it_was(capfd):
    model, (x, y) = trained(), digits(4)
    model.train().zero_grad()
    state, trace, logger = torch.get_rng_state(), sys.gettrace(), logging.getLogger("auto-attack")
    for part in ("apgd-ce", "fab-t"):
        run_autoattack_part(model, x, y, constraint="l2", eps=0.1, part=part, classes=10, seed=1)
    assert all(m.training for m in model.modules()) and not logger.disabled
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and sys.gettrace() is trace
    assert capfd.readouterr() == ("", "")
