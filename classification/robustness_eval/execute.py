"""Execute a plan of attacks batch by batch. The caller stores one record per attack and batch."""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from classification.datasets.loader import load_batches
from classification.datasets.split import ImageSplit
from classification.robustness_eval import checks
from classification.robustness_eval.autoattack import run_autoattack_part
from classification.robustness_eval.plan import AUTOATTACK, CLEAN, UNBOUNDED, Attack, AttackResult
from classification.shared_batches import Journals, Share, run_batches
from classification.training.evaluate import Adversary
from robust_backbones.attacks import CONSTRAINTS, pgd
from robust_backbones.core.signals import StopSignals


def generator(seed: int, attack: Attack, batch: int, device: torch.device) -> torch.Generator:
    """Return a generator on the device for one attack on one batch.

    Its seed does not depend on earlier batches, so that a run can resume at any batch, and several
    processes can share the batches. All parts of an AutoAttack get the same seed, as in the
    package's own run.
    """
    text = f"{seed}/{attack.constraint}/{attack.group}/{batch}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.Generator(device).manual_seed(number)


def adversary(
    attack: Attack, seed: int, batch: int, classes: int, device: torch.device
) -> Adversary:
    """Return a function that runs an attack with all its parameters on one batch.

    Args:
        attack: attack to run.
        seed: seed of the evaluation.
        batch: index of the batch, from 0.
        classes: number of logits.
        device: device of the images, on which random starts are drawn.
    """
    own = generator(seed, attack, batch, device)
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
    assert attack.steps is not None  # None only for AutoAttack, which sets its own steps
    return partial(
        pgd,
        constraint=attack.constraint,
        eps=attack.eps,
        steps=attack.steps,
        random_start=True,
        restarts=attack.restarts,
        generator=own,
    )


def attack_batch(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, attacker: Adversary, alive: Tensor
) -> dict:
    """Attack one batch and classify the adversarial images.

    Args:
        model: classifier in eval mode, from images `(N, 3, H, W)` in [0, 1] to logits.
        x, y: images `(N, 3, H, W)` and labels `(N,)`, on the model's device.
        attack: attack whose constraint and radius the adversarial images should satisfy.
        attacker: function that runs the attack, as `adversary` returns it.
        alive: mask of the images to attack, `(N,)` bool. Other images stay unchanged and count as
            wrong.

    Returns:
        Dictionary of `right` (0 or 1 per image), `norms`, `seconds`, and the counts of
        `checks.count_faults`. An image with a NaN logit counts as wrong.
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
    numbers: Iterable[int] | None = None,
    progress: Callable[[int, str], None] = lambda images, doing: None,
) -> None:
    """Attack every batch with every attack of the plan, unless the batch's record already exists.

    Args:
        model: classifier in eval mode.
        batches: images `(n, 3, H, W)`, float RGB in [0, 1], and labels `(n,)`, on any device.
        plan: attacks, the clean images first.
        seed: seed of the evaluation.
        classes: number of logits.
        records: existing records of an interrupted run, one per attack and batch.
        add: function that stores a record and appends it to `records`.
        numbers: index of each batch; None: 0, 1, ...
        progress: function called with the number of new images and the name of the current attack.
    """
    device = next(model.parameters()).device
    known = {(record["attack"], record["batch"]): record for record in records}
    indices = itertools.count() if numbers is None else numbers
    for batch, (x, y) in zip(indices, batches, strict=False):
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        everything = torch.ones(len(y), dtype=torch.bool, device=device)
        alive: dict[str, Tensor] = {}  # maps an attack group to the images not broken so far
        for attack in attacks_of(plan, batch):
            progress(0, attack.name)
            # A part of AutoAttack attacks only the images that the previous part did not break.
            targets = alive.get(attack.group, alive[CLEAN]) if attack.part else everything
            record = known.get((attack.name, batch))
            if record is None:
                attacker = adversary(attack, seed, batch, classes, device)
                record = {"attack": attack.name, "batch": batch}
                record |= attack_batch(model, x, y, attack, attacker, targets)
                if attack.family == CLEAN:
                    record["labels"] = y.tolist()
                    if len(plan) > 1:  # without attacks, masked gradients do not matter
                        own = generator(seed, attack, batch, device)
                        record |= checks.probe_model(model, x, y, plan, own)
                add(record)
            alive[attack.group] = torch.tensor(record["right"], dtype=torch.bool, device=device)
        progress(len(y), attack.name)


def attack_images(
    model: nn.Module,
    source: ImageSplit,
    plan: list[Attack],
    journals: Journals,
    *,
    seed: int,
    batch_size: int,
    workers: int,
    say: Callable[[str], None],
    stop: StopSignals | None = None,
    prefix: str = "",
) -> list[AttackResult]:
    """Attack all images of a split in all processes, or resume from the journals.

    Args:
        model: classifier in eval mode.
        source: images to attack.
        plan: attacks, the clean images first.
        journals: journals of the evaluation.
        seed: seed of the evaluation.
        batch_size: images per batch.
        workers: number of processes that read images, for each process.
        say: function that prints a line.
        stop: stop signals.
        prefix: text before the name of the attack in the progress line.

    Raises:
        UserError: the journals have different settings, or an image is unreadable.
        Stopped: a process received a stop signal.
    """
    device = next(model.parameters()).device

    def work(share: Share) -> None:
        images = source.subset(share.images)
        execute_plan(
            model,
            load_batches(images, batch_size, workers=workers, device=device),
            plan,
            seed=seed,
            classes=source.classes,
            records=share.records,
            add=share.add,
            numbers=share.batches,
            progress=lambda count, attack: share.progress(count, prefix + attack),
        )

    incomplete = partial(find_incomplete, plan)
    records = run_batches(
        journals, len(source), batch_size, incomplete, work, device=device, say=say, stop=stop
    )
    return collect_results(plan, records)


def attacks_of(plan: list[Attack], batch: int) -> list[Attack]:
    """Return the attacks of a batch. The unbounded attack is a check that runs on batch 0 only."""
    return [attack for attack in plan if batch == 0 or attack.family != UNBOUNDED]


def find_incomplete(plan: list[Attack], records: list[dict], batches: int) -> list[int]:
    """Return the indices of the batches for which the record of an attack is missing."""
    known = {(record["attack"], record["batch"]) for record in records}
    return [
        batch
        for batch in range(batches)
        if any((attack.name, batch) not in known for attack in attacks_of(plan, batch))
    ]


def collect_results(plan: list[Attack], records: list[dict]) -> list[AttackResult]:
    """Merge the records of a complete run into one result per attack, in the plan's order."""
    by_attack: dict[str, dict[int, dict]] = {attack.name: {} for attack in plan}
    for record in records:  # two processes may have written the same record; the last counts
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
        counts={key: sum(record.get(key, 0) for record in records) for key in keys},
        labels=[label for record in records for label in record.get("labels", ())],
    )
