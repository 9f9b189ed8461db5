"""Execute a plan of attacks batch by batch. The caller stores one record per attack and batch."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from classification.robustness_eval import checks
from classification.robustness_eval.autoattack import run_autoattack_part
from classification.robustness_eval.plan import AUTOATTACK, CLEAN, UNBOUNDED, Attack, AttackResult
from classification.training.evaluate import Adversary
from robust_backbones.attacks import CONSTRAINTS, pgd
from robust_backbones.core.eps import STEP_FACTOR


def generator(seed: int, attack: Attack, batch: int) -> torch.Generator:
    """Return the CPU generator of an attack on a batch, so that a run can resume at any batch.

    The parts of an AutoAttack get the same seed, as in the package's own run.
    """
    text = f"{seed}/{attack.constraint}/{attack.group}/{batch}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.Generator().manual_seed(number)


def adversary(attack: Attack, seed: int, batch: int, classes: int) -> Adversary:
    """Return the attack with all its parameters bound, for one batch.

    Args:
        seed: seed of the evaluation.
        batch: index of the batch, from 0.
        classes: number of logits.
    """
    own = generator(seed, attack, batch)
    if attack.family == CLEAN:
        return lambda model, x, y: x
    if attack.family == AUTOATTACK:
        assert attack.part is not None
        return partial(
            run_autoattack_part,
            constraint=attack.constraint,
            eps=attack.eps,
            part=attack.part,
            classes=classes,
            seed=own.initial_seed(),
        )
    assert attack.steps is not None  # None only for AutoAttack, which chooses them itself
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
    """Attack one batch and classify the adversarial images.

    Args:
        model: `(N, 3, H, W)` in [0, 1] -> logits, in eval mode.
        x, y: images and labels, on the model's device.
        attack: attack, whose ball is checked.
        attacker: the attack with its parameters bound.
        alive: images to attack, `(N,)` bool. The others stay unchanged and count as wrong.

    Returns:
        `right` (0 or 1 per image), `norms`, `seconds`, and the counts of `checks.count_faults`. An
        image with a NaN logit counts as wrong.
    """
    start = time.perf_counter()
    x_adv = x.clone()
    if alive.any():
        x_adv[alive] = attacker(model, x[alive], y[alive])
    with torch.no_grad():
        logits = model(x_adv)
    right = alive & (logits.argmax(1) == y) & ~logits.isnan().any(1)
    norms = CONSTRAINTS[attack.constraint].norm(x_adv - x).tolist()
    return {
        "right": right.int().tolist(),
        # JSON has no NaN, and six digits keep the journal small.
        "norms": [float(f"{n:.6g}") if math.isfinite(n) else None for n in norms],
        "seconds": round(time.perf_counter() - start, 3),
    } | checks.count_faults(x, x_adv, logits, attack.constraint, attack.eps)


def execute_plan(
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
    """Attack every batch with every attack of the plan, except where a record exists already.

    Args:
        model: classifier in eval mode.
        batches: images and labels as in the attack contract, on any device, starting with batch
            `first_batch`.
        plan: attacks, the clean images first.
        seed: seed of the evaluation.
        classes: number of logits.
        records: records of an earlier start, one per attack and batch.
        add: function that stores a record and appends it to `records`.
        first_batch: index of the first of `batches`.
        progress: function called with the number of new images and the name of the current attack.
    """
    device = next(model.parameters()).device
    known = {(record["attack"], record["batch"]): record for record in records}
    for batch, (x, y) in enumerate(batches, first_batch):
        x, y = x.to(device), y.to(device)
        everything = torch.ones(len(y), dtype=torch.bool, device=device)
        alive: dict[str, Tensor] = {}  # attack group -> images that it has not broken so far
        for attack in attacks_of(plan, batch):
            progress(0, attack.name)
            # A part of AutoAttack attacks only the images that the previous part did not break.
            targets = alive.get(attack.group, alive[CLEAN]) if attack.part else everything
            record = known.get((attack.name, batch))
            if record is None:
                attacker = adversary(attack, seed, batch, classes)
                record = {"attack": attack.name, "batch": batch}
                record |= attack_batch(model, x, y, attack, attacker, targets)
                if attack.family == CLEAN:
                    own = generator(seed, attack, batch)
                    record |= {"labels": y.tolist()} | checks.probe_model(model, x, y, plan, own)
                add(record)
            alive[attack.group] = torch.tensor(record["right"], dtype=torch.bool, device=device)
        progress(len(y), attack.name)


def attacks_of(plan: list[Attack], batch: int) -> list[Attack]:
    """Return the attacks of a batch. The unbounded attack is a check that needs one batch only."""
    return [attack for attack in plan if batch == 0 or attack.family != UNBOUNDED]


def count_complete(plan: list[Attack], records: list[dict], batches: int) -> int:
    """Return the number of leading batches whose attacks all have a record."""
    known = {(record["attack"], record["batch"]) for record in records}
    for batch in range(batches):
        if any((attack.name, batch) not in known for attack in attacks_of(plan, batch)):
            return batch
    return batches


def collect_results(plan: list[Attack], records: list[dict]) -> list[AttackResult]:
    """Merge the records of a complete run into one result per attack, in the plan's order."""
    by_attack: dict[str, dict[int, dict]] = {attack.name: {} for attack in plan}
    for record in records:  # two processes may have written the same record; only one counts
        by_attack[record["attack"]][record["batch"]] = record
    return [
        _merge(attack, [record for _, record in sorted(by_attack[attack.name].items())])
        for attack in plan
    ]


def _merge(attack: Attack, records: list[dict]) -> AttackResult:
    keys = [*checks.FAULTS, *(checks.PROBED if attack.family == CLEAN else ())]
    return AttackResult(
        attack=attack,
        right=[bool(flag) for record in records for flag in record["right"]],
        norms=[norm for record in records for norm in record["norms"]],
        seconds=sum(record["seconds"] for record in records),
        counts={key: sum(record[key] for record in records) for key in keys},
        labels=[label for record in records for label in record.get("labels", ())],
    )
