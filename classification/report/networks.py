"""Tell networks of the same architecture and eps apart: by publication, weights or recipe."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from classification.report.records import Merged, Record
from robust_backbones import sources, weights, zoo

published = cache(zoo.known)


def variant(record: Record) -> str:
    """Name what distinguishes a network from others of its architecture and eps.

    Networks that differ only in the seed of their pretraining have the same name. The paper's
    networks have an empty name.
    """
    if model := published(record.weights):
        return model.variant
    if tag := sources.tag(record.weights):
        return tag
    recipe = record.settings.get("source") or {}
    if recipe.get("seed") is not None:
        return f"{recipe.get('method')}, {recipe.get('epochs')} epochs"
    return str(record.labels.get("weights") or weights.short_name(record.weights))


def is_twin(robust: str, standard: str) -> bool:
    """Return whether the table of published models names a network as the twin of another.

    Args:
        robust, standard: weights of both, as the user gave them.
    """
    model = published(robust)
    if model is None or model.twin is None:
        return False
    return standard == model.twin or published(standard) is published(model.twin) is not None


def name_networks(runs: Iterable[Merged]) -> dict[int, str]:
    """Map Python's `id` of each run to the name of its network.

    The name is the architecture. If networks of an architecture have the same eps, the variant is
    added, such as `resnet50 (wong2020)`.
    """
    by_arch: dict[str, list[Merged]] = {}
    for run in runs:
        by_arch.setdefault(run.first.arch, []).append(run)
    names = {}
    for arch, own in by_arch.items():
        variants = {id(run): variant(run.first) for run in own}
        networks = {(run.first.eps, variants[id(run)]) for run in own}
        several = len(networks) > len({eps for eps, _ in networks})
        names |= {key: f"{arch} ({v})" if several and v else arch for key, v in variants.items()}
    return names


def rows(runs: list[Merged], names: dict[int, str]) -> dict[str, list[Merged]]:
    """Map the rows of tables of networks and eps to their runs.

    Each robust network has a row of its name. The row also has its standard networks: with
    the same name, else its published twins, which may have another architecture, else all with the
    same architecture. Other standard networks have rows of their own.

    Args:
        runs: transfer runs.
        names: names of their networks, from `name_networks`.
    """
    found: dict[str, list[Merged]] = {}
    for run in runs:
        if run.first.eps:
            found.setdefault(names[id(run)], []).append(run)
    standard = [run for run in runs if not run.first.eps]
    for name, own in found.items():
        arch, robust = own[0].first.arch, {run.first.weights for run in own}
        own += (
            [run for run in standard if names[id(run)] == name]
            or [run for run in standard if any(is_twin(w, run.first.weights) for w in robust)]
            or [run for run in standard if run.first.arch == arch]
        )
    placed = {id(run) for own in found.values() for run in own}
    for run in standard:
        if id(run) not in placed:
            found.setdefault(names[id(run)], []).append(run)
    return found
