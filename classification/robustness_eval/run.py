"""Run a plan of attacks, batch by batch; what is found goes to a journal, attack by attack."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from classification.robustness_eval import checks as sanity
from classification.robustness_eval import plan as attack_plan
from classification.robustness_eval.autoattack import autoattack
from classification.robustness_eval.plan import Attack, Outcome
from classification.training.evaluate import Adversary
from robust_backbones.attacks import pgd
from robust_backbones.core.eps import STEP_FACTOR

COUNTS = ("outside_ball", "outside_range", "nan_images", "nan_logits")


def generator(seed: int, attack: Attack, batch: int) -> torch.Generator:
    """The CPU generator of one attack on one batch: a function of the three, hence resumable.

    The parts of an AutoAttack share theirs, as in the package's own run.
    """
    text = f"{seed}/{attack.constraint}/{attack.group}/{batch}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.Generator().manual_seed(number)


def adversary(attack: Attack, seed: int, batch: int, classes: int) -> Adversary:
    """The attack of one row, bound for one batch.

    Args:
        seed: of the evaluation.
        batch: number of the batch, from 0.
        classes: length of the logits.
    """
    own = generator(seed, attack, batch)
    if attack.family == attack_plan.CLEAN:
        return lambda model, x, y: x
    if attack.family == attack_plan.AUTOATTACK:
        assert attack.part is not None
        return partial(
            autoattack,
            constraint=attack.constraint,
            eps=attack.eps,
            part=attack.part,
            classes=classes,
            seed=own.initial_seed(),
        )
    assert attack.steps is not None  # only AutoAttack leaves them to the family
    return partial(
        pgd,
        constraint=attack.constraint,
        eps=attack.eps,
        steps=attack.steps,
        step_size=STEP_FACTOR * attack.eps / attack.steps,
        random_start=True,
        restarts=attack.restarts,
        generator=own,
    )


def attack_batch(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, attacker: Adversary, alive: Tensor
) -> dict:
    """Attack one batch and test the model on what comes out.

    Args:
        model: `(N, 3, H, W)` in [0, 1] -> logits, in eval mode.
        x, y: the batch, on the model's device.
        attack: the row, for its ball.
        attacker: the attack, bound.
        alive: `(N,)` bool: the images to attack. The others stay as they are and count as wrong.

    Returns:
        `right` (0 or 1 per image), `norms`, `seconds`, and the `COUNTS`. Where a logit is NaN,
        the image counts as wrong.
    """
    start = time.perf_counter()
    x_adv = x.clone()
    if alive.any():
        x_adv[alive] = attacker(model, x[alive], y[alive])
    with torch.no_grad():
        logits = model(x_adv)
    right = alive & (logits.argmax(1) == y) & ~logits.isnan().any(1)
    norms = sanity.norms(x_adv - x, attack.constraint)
    return {
        "right": right.int().tolist(),
        "norms": [_short(norm) for norm in norms.tolist()],
        "seconds": round(time.perf_counter() - start, 3),
    } | sanity.inspect(x, x_adv, logits, attack.constraint, attack.eps)


def _short(norm: float) -> float | None:
    return float(f"{norm:.6g}") if math.isfinite(norm) else None  # JSON has no NaN


def run(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    plan: list[Attack],
    *,
    seed: int,
    classes: int,
    records: list[dict],
    add: Callable[[dict], None],
    first_batch: int = 0,
    progress: Callable[[int, str], None] = lambda images, doing: None,
) -> None:
    """Attack every batch by every row of the plan, but for what the records have already.

    Args:
        model: the classifier, in eval mode.
        batches: `(x, y)` as in the attack contract, on any device, from number `first_batch` on.
        plan: rows as `attack_plan.make` gives them, the clean one first.
        seed: of all attacks.
        classes: length of the logits.
        records: of an earlier start; one per attack and batch.
        add: keeps a record, and puts it to the end of `records`.
        first_batch: number of the first of `batches`.
        progress: called with the images done and with what goes on.
    """
    device = next(model.parameters()).device
    known = {(record["attack"], record["batch"]): record for record in records}
    for batch, (x, y) in enumerate(batches, first_batch):
        x, y = x.to(device), y.to(device)
        everything = torch.ones(len(y), dtype=torch.bool, device=device)
        left: dict[str, Tensor] = {}  # of each group of rows: what its rows so far have left
        for attack in plan_of(plan, batch):
            progress(0, attack.name)
            # The parts of an AutoAttack share the work: each gets what the one before it left.
            alive = left.get(attack.group, left[attack_plan.CLEAN]) if attack.part else everything
            record = known.get((attack.name, batch))
            if record is None:
                attacker = adversary(attack, seed, batch, classes)
                record = {"attack": attack.name, "batch": batch}
                record |= attack_batch(model, x, y, attack, attacker, alive)
                if attack.family == attack_plan.CLEAN:
                    own = generator(seed, attack, batch)
                    record |= {"labels": y.tolist()} | sanity.probe(model, x, y, plan, own)
                add(record)
            left[attack.group] = torch.tensor(record["right"], dtype=torch.bool, device=device)
        progress(len(y), attack.name)


def plan_of(plan: list[Attack], batch: int) -> list[Attack]:
    """The rows that a batch gets: the unbounded attack is a check, for which one batch will do."""
    return [row for row in plan if batch == 0 or row.family != attack_plan.UNBOUNDED]


def complete(plan: list[Attack], records: list[dict], batches: int) -> int:
    """Number of batches, from the first on, of which the records have every attack."""
    known = {(record["attack"], record["batch"]) for record in records}
    for batch in range(batches):
        if any((row.name, batch) not in known for row in plan_of(plan, batch)):
            return batch
    return batches


def outcomes(plan: list[Attack], records: list[dict]) -> list[Outcome]:
    """The records of a whole run, put together: one outcome per row of the plan, in its order."""
    by_row = {row.name: {} for row in plan}
    for record in records:  # of two equal ones, which two processes may write, one counts
        by_row[record["attack"]][record["batch"]] = record
    return [_outcome(row, [found for _, found in sorted(by_row[row.name].items())]) for row in plan]


def _outcome(attack: Attack, records: list[dict]) -> Outcome:
    keys = [*COUNTS, *(sanity.PROBED if attack.family == attack_plan.CLEAN else ())]
    return Outcome(
        attack=attack,
        right=[bool(flag) for record in records for flag in record["right"]],
        norms=[norm for record in records for norm in record["norms"]],
        seconds=sum(record["seconds"] for record in records),
        counts={key: sum(record[key] for record in records) for key in keys},
        labels=[label for record in records for label in record.get("labels", ())],
    )
