"""Every check warns about a small defense that masks gradients, and not about a plain model."""

import pytest
import torch
from torch import nn

from classification.robustness_eval import checks, execute
from classification.robustness_eval.plan import Attack, AttackResult, make_plan
from tests.support.small_models import digits, trained

RADII = {"l2": [0.5, 1.0], "linf": [8 / 255, 0.1]}


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _noise(x):
    return x + 0.3 * torch.randn_like(x)


def _quantize(x):
    return (4 * x).round() / 4  # its derivative is zero


def _nan_if_bright(logits):
    return torch.where(logits[:, :1] > 0, torch.nan, logits)


def _two_levels(logits):
    """Confident wherever it looks: the loss of a right image is exactly 0."""
    return 1e4 * logits


DEFENSES = {
    "noise layer": ([_noise], [], {"randomized"}),
    "quantized input": ([_quantize], [], {"zero_gradients", "unbounded_attack_fails"}),
    "saturated logits": ([], [_two_levels], {"zero_gradients", "unbounded_attack_fails"}),
    "softmax at the end": ([], [lambda z: z.softmax(1)], {"probabilities"}),
    "NaN for some": ([], [_nan_if_bright], {"nan_logits"}),
}


@pytest.fixture(scope="module")
def plain():
    return trained()


def evaluate(model, constraint="l2", n=40, steps=(10,), autoattack=(), radii=None):
    x, y = digits(n)
    plan = make_plan(
        constraint, radii or RADII[constraint], list(steps), 1, autoattack, x.shape[1:]
    )
    records = []
    execute.execute_plan(
        model, [(x, y)], plan, seed=0, classes=10, records=records, add=records.append
    )
    return execute.collect_results(plan, records)


def found(outcomes):
    return {warning["check"] for warning in checks.find_warnings(outcomes, 10)}


@pytest.mark.parametrize("constraint", RADII)
def test_silent_on_an_plain_model(plain, constraint):
    outcomes = evaluate(plain, constraint, n=60, steps=(5, 10))
    assert sum(outcomes[0].right) > 55
    assert checks.find_warnings(outcomes, 10) == []


@pytest.fixture
def short_square(monkeypatch):
    """The black-box part with 100 queries instead of 5000."""
    square = pytest.importorskip("pyautoattack.square").SquareAttack
    whole = square.perturb

    def perturb(self, x, y=None):
        self.n_queries = 100
        return whole(self, x, y)

    monkeypatch.setattr(square, "perturb", perturb)


def test_silent_on_an_plain_model_under_autoattack(plain, short_square):
    parts = ("apgd-ce", "square")
    outcomes = evaluate(plain, "linf", n=12, autoattack=parts, radii=[8 / 255])
    assert checks.find_warnings(outcomes, 10) == []


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_that_deserves_it(plain, name):
    before, after, expected = DEFENSES[name]
    model = nn.Sequential(*map(Layer, before), plain, *map(Layer, after)).eval()
    torch.manual_seed(0)  # the noise layer draws from the global generator
    assert expected <= found(evaluate(model))


def test_a_periodic_model_is_right_again_further_out():
    """One step of gradient ascent jumps over the stripe of wrong answers, into the next right one.

    The logits depend on the brightness only, so that everything is known: 0.5 is right, 0.6 is
    wrong, 0.7 is right again. From any start one step ends at the rim of the ball.
    """

    def wave(x):
        phase = torch.cos(torch.pi * (x.mean((1, 2, 3)) - 0.5) / 0.1)
        return torch.stack([phase, -phase], 1)

    model = nn.Sequential(Layer(wave), nn.Identity())
    model.register_parameter("device", nn.Parameter(torch.zeros(1)))
    x, y = torch.full((40, 3, 8, 8), 0.5), torch.zeros(40, dtype=torch.long)
    plan = [Attack("clean", "linf", 0.0)]
    plan += [Attack("pgd", "linf", eps, 1) for eps in (0.1, 0.2)]
    records = []
    execute.execute_plan(
        model, [(x, y)], plan, seed=0, classes=2, records=records, add=records.append
    )
    outcomes = execute.collect_results(plan, records)
    accuracies = [sum(o.right) for o in outcomes]
    assert accuracies[0] == 40 and accuracies[1] < accuracies[2]
    assert "rising_with_eps" in {w["check"] for w in checks.find_warnings(outcomes, 2)}


def test_masked_gradients_lose_to_the_black_box_part(plain, short_square):
    model = nn.Sequential(Layer(_quantize), plain).eval()
    outcomes = evaluate(model, "linf", n=20, autoattack=("apgd-ce", "square"), radii=[0.3])
    assert {"zero_gradients", "black_box_wins"} <= found(outcomes)


@pytest.mark.parametrize(
    "fault, words",
    [
        (lambda x: (x + 0.5).clamp(0, 1), "are outside the ball"),
        (lambda x: x - 0.1, "leave [0, 1]"),
        (lambda x: x / 0, "have NaN pixels"),
    ],
)
def test_a_broken_attack(plain, monkeypatch, fault, words):
    monkeypatch.setattr(execute, "pgd", lambda model, x, y, **settings: fault(x))
    warnings = checks.find_warnings(evaluate(plain), 10)
    messages = [w["message"] for w in warnings if w["check"] == "faulty_images"]
    assert any(words in message for message in messages), messages


def outcome(attack, right, **counts):
    zero = dict.fromkeys([*checks.FAULTS, *checks.PROBED], 0)
    return AttackResult(attack, right, [0.0] * len(right), 0.0, zero | counts, [])


CLEAN = outcome(Attack("clean", "l2", 0.0), [True] * 20)
PAIRS = [
    (Attack("pgd", "l2", 1.0, 10), Attack("pgd", "l2", 1.0, 20), True),
    (Attack("pgd", "l2", 1.0, 10), Attack("pgd", "l2", 1.0, 10, 5), True),
    (Attack("pgd", "l2", 1.0, 10), Attack("autoattack", "l2", 1.0, None, part="square"), True),
    (Attack("pgd", "l2", 1.0, 20, 1), Attack("pgd", "l2", 1.0, 10, 5), False),  # who knows
    (Attack("pgd", "l2", 0.5, 10), Attack("pgd", "l2", 0.4, 20), False),  # another ball
]


@pytest.mark.parametrize("weak, strong, comparable", PAIRS)
@pytest.mark.parametrize("gained, told", [(0, False), (4, False), (5, True), (20, True)])
def test_a_stronger_attack_that_does_worse(weak, strong, comparable, gained, told):
    broken = outcome(weak, [False] * 20)
    less = outcome(strong, [i < gained for i in range(20)])
    names = {w["check"] for w in checks.find_warnings([CLEAN, broken, less], 10)}
    assert ("stronger_does_worse" in names) == (comparable and told)


@pytest.mark.parametrize(
    "gained, lost, told",
    [(5, 0, True), (4, 0, False), (10, 6, False), (0, 9, False), (30, 10, True)],
)
def test_noise_of_paired_images(gained, lost, told):
    assert checks.beyond_noise(gained, lost) is told


def test_what_inspect_counts():
    x = torch.full((4, 3, 2, 2), 0.9)
    x_adv = x.clone()
    x_adv[1, 0, 0, 0] = 1.05  # in the ball of 0.2, no image
    x_adv[2] -= 0.3  # an image outside the ball
    x_adv[3, 2, 1, 1] = torch.nan
    logits = torch.zeros(4, 2)
    logits[3] = torch.nan
    counted = checks.count_faults(x, x_adv, logits, "linf", 0.2)
    assert counted == dict(outside_ball=1, outside_range=1, nan_images=1, nan_logits=1)


def test_messages_say_symptom_cause_and_remedy(plain):
    model = nn.Sequential(Layer(_quantize), plain).eval()
    messages = {w["check"]: w["message"] for w in checks.find_warnings(evaluate(model), 10)}
    zero = messages["zero_gradients"]
    assert "of 40 correctly" in zero and "overestimated" in zero and "--autoattack" in zero
    assert "plain gray" in messages["unbounded_attack_fails"]
