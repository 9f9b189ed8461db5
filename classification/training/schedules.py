"""Learning-rate schedules: `(step, total)` -> factor of the highest rate. Steps are updates."""

import math


def constant(step: int, total: int) -> float:
    return 1.0


def step(step: int, total: int) -> float:
    """A tenth after each third of the run: the paper's drops at epochs 30 and 60 of 90."""
    return 0.1 ** (3 * step // total)


def cosine(step: int, total: int) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * step / total)) / 2


def cyclic(step: int, total: int) -> float:
    """One triangle, up until the middle (Wong et al. 2020, arXiv 2001.03994); never 0."""
    half = (total + 1) / 2
    return 1 - abs(step + 1 - half) / half


def one_cycle(step: int, total: int) -> float:
    """A quarter of the run straight up, then a cosine to nearly 0."""
    rise = max(1, total // 4)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step + 1 - rise) / (total + 1 - rise))) / 2


SCHEDULES = {
    "step": step,
    "cosine": cosine,
    "cyclic": cyclic,
    "one-cycle": one_cycle,
    "constant": constant,
}


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: int = 0) -> float:
    """Rate of update `step`.

    Args:
        step: from 0 to total - 1.
        total: updates of the whole run.
        peak: highest rate.
        schedule: key of `SCHEDULES`.
        warmup: updates at the start over which the schedule is multiplied by a straight line up.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return peak * rise * SCHEDULES[schedule](step, total)
