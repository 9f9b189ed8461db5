"""Transfer results sorted into groups that may stand in one table, and the cells of such tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from classification.datasets.specs import DATASETS, SUITE
from classification.report import published
from classification.report.records import Merged, Record
from classification.transfer.protocols import MODES, PROTOCOLS
from robust_backbones.zoo import ARCHS

REFERENCE = "imagenet"  # what the paper's networks were pretrained on


@dataclass(frozen=True)
class Key:
    """What results must have in common to be compared.

    Attributes:
        protocol: its name.
        pretrained_on: data set of the networks.
        norm: of the robust networks' ball.
        shots: training images of each class, or None for all.
        adversarial: radius that the transfer itself was trained against.
        simulated: no run was made.
    """

    protocol: str
    pretrained_on: str
    norm: str = "l2"
    shots: int | None = None
    adversarial: float = 0.0
    simulated: bool = False

    @property
    def order(self) -> tuple:
        """The clean protocol and the paper's networks first."""
        known = [*PROTOCOLS]
        place = known.index(self.protocol) if self.protocol in known else len(known)
        origin = (self.pretrained_on != REFERENCE, self.pretrained_on)
        more = (self.norm != "l2", self.shots or 0, self.adversarial)
        return (self.simulated, place, self.protocol, *origin, *more)

    @property
    def words(self) -> list[str]:
        """What is to be said of it."""
        found = [f"protocol {self.protocol}"]
        found.append(f"networks pretrained on {self.pretrained_on or 'something unknown'}")
        if self.norm != "l2":
            found.append(f"{self.norm} networks")
        if self.shots:
            found.append(f"{self.shots} training images of each class")
        if self.adversarial:
            found.append(f"trained against attacks of eps {self.adversarial:g}")
        return found + ["simulated"] * self.simulated


@dataclass(frozen=True, eq=False)
class Group:
    """Transfer results that may be compared.

    Attributes:
        key: what they have in common.
        suffix: of its sections' names; empty for the first group.
        runs: task's label -> its runs.
    """

    key: Key
    suffix: str
    runs: dict[str, list[Merged]] = field(repr=False)

    @property
    def reference(self) -> bool:
        """Whether the networks are such as the paper has."""
        return self.key.pretrained_on == REFERENCE and self.key.norm == "l2"

    @cached_property
    def _cells(self) -> dict[tuple, list[Merged]]:
        cells: dict[tuple, list[Merged]] = {}
        for task, runs in self.runs.items():
            for run in runs:
                r = run.first
                cells.setdefault((r.mode, task, r.arch, r.eps, r.downscale), []).append(run)
        return cells

    def configurations(
        self, mode: str, task: str, arch: str, eps: float | None, downscale: int | None = None
    ) -> list[Merged]:
        """All runs of a cell: they differ in hyper-parameters, or in the file of the weights."""
        return self._cells.get((mode, task, arch, eps, downscale), [])

    def cell(
        self, mode: str, task: str, arch: str, eps: float | None, downscale: int | None = None
    ) -> Merged | None:
        """The best of them, which is the paper's definition of a cell."""
        found = self.configurations(mode, task, arch, eps, downscale)
        return max(found, key=lambda run: run.mean, default=None)

    @cached_property
    def ambiguous(self) -> frozenset[int]:
        """`id` of each run that shares its cell with others."""
        shared = (own for own in self._cells.values() if len(own) > 1)
        return frozenset(id(run) for own in shared for run in own)

    @cached_property
    def modes(self) -> tuple[str, ...]:
        have = {key[0] for key in self._cells}
        return tuple(mode for mode in MODES if mode in have)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The twelve, if there is any of them from the paper's kind of networks; and what else
        there is. Stylized images have an exhibit of their own."""
        suite = SUITE if self.reference and set(SUITE) & set(self.runs) else ()
        others = sorted(set(self.runs) - set(suite), key=_dataset_order)
        others = [task for task in others if not stylized(task)]
        return (*suite, *others)

    @cached_property
    def archs(self) -> tuple[str, ...]:
        """Those of Table 1; of networks of one's own those that there are."""
        have = {key[2] for key in self._cells}
        if self.reference and have & set(published.ARCHS):
            return published.ARCHS
        return tuple(sorted(have, key=_arch_order))

    @cached_property
    def eps(self) -> tuple[float, ...]:
        """Of the robust networks: likewise."""
        have = {key[3] for key in self._cells if key[3]}
        return tuple(sorted(have | set(published.EPS if self.reference else ())))

    def networks(self, mode: str, task: str) -> list[Merged]:
        """The cells of all networks there are, those included that Table 1 does not have."""
        keys = (k for k in self._cells if k[:2] == (mode, task) and k[4] is None)
        keys = sorted(keys, key=lambda k: (_arch_order(k[2]), k[3]))
        return [cell for key in keys if (cell := self.cell(*key))]

    @cached_property
    def downscales(self) -> tuple[int, ...]:
        """Pixels that images were taken down to."""
        return tuple(sorted({key[4] for key in self._cells if key[4]}))

    def row(
        self, mode: str, task: str, arch: str, downscale: int | None = None
    ) -> dict[float, Merged]:
        """eps -> the cell, for all that there are, the standard network included."""
        found = {eps: self.cell(mode, task, arch, eps, downscale) for eps in (0.0, *self.eps)}
        return {eps: run for eps, run in found.items() if run}


def stylized(name: str) -> bool:
    """Whether a data set is of images whose textures were exchanged: Figure 8."""
    return "stylized" in name.lower()


def groups_of(runs: Iterable[Merged]) -> list[Group]:
    """Sort the transfer runs whose networks are known."""
    by_key: dict[Key, list[Merged]] = {}
    for run in runs:
        if run.first.kind == "transfer" and run.first.eps is not None:
            by_key.setdefault(_key(run.first), []).append(run)
    _share_standard(by_key)
    ordered = sorted(by_key, key=lambda key: key.order)
    suffixes = _suffixes(ordered)
    return [Group(key, suffixes[key], _by_task(by_key[key])) for key in ordered]


def _key(record: Record) -> Key:
    settings = record.settings
    return Key(
        record.protocol,
        record.pretrained_on,
        record.constraint if record.eps else "l2",
        settings.get("shots"),
        settings.get("adversarial") or 0.0,
        record.simulated,
    )


def _share_standard(by_key: dict[Key, list[Merged]]) -> None:
    """Networks of each norm are compared with the same standard ones."""
    for key in [*by_key]:
        if key.norm == "l2":
            continue
        usual = Key(**(vars(key) | {"norm": "l2"}))
        by_key[key] = [r for r in by_key.get(usual, []) if r.first.eps == 0] + by_key[key]


def _suffixes(keys: list[Key]) -> dict[Key, str]:
    """Short and different: words that the first group has as well say nothing."""
    found, used = {}, set()
    for key in keys:
        words = [word for word in key.words if word not in keys[0].words]
        name = re.sub(r"[^\w.=]+", "-", "-".join(words)).strip("-").lower()
        name = re.sub(r"(protocol|networks-pretrained-on|networks)-?", "", name).strip("-")
        name = name[:40].rstrip("-")  # it becomes a part of file names, which have 255 bytes
        suffix, number = f"-{name}" if key != keys[0] else "", 2
        while suffix in used:
            suffix, number = f"-{name or 'other'}-{number}", number + 1
        used.add(suffix)
        found[key] = suffix
    return found


def _by_task(runs: list[Merged]) -> dict[str, list[Merged]]:
    """Runs on other images are another task, even if the data set is called the same. The one with
    most training images, then with most trials, has the plain name."""
    datasets: dict[str, dict[tuple, list[Merged]]] = {}
    for run in runs:
        parts = datasets.setdefault(run.first.dataset, {})
        parts.setdefault(_images(run.first), []).append(run)
    found: dict[str, list[Merged]] = {}
    for dataset, parts in datasets.items():
        ordered = sorted(parts.values(), key=lambda own: (_size(own[0].first), _trials(own)))
        ordered.reverse()
        for number, own in enumerate(ordered, 1):
            record = own[0].first
            named = record.labels.get("task") if dataset == "folder" else None
            label = str(named or dataset)
            if label in found:
                label = f"{label} ({_size(record)} images, {number})"
            found[label] = own
    return found


def _images(record: Record) -> tuple:
    parts = (record.data.get("train") or {}, record.data.get("test") or {})
    return tuple((part.get("images"), part.get("fingerprint")) for part in parts)


def _trials(runs: list[Merged]) -> int:
    return sum(len(run.accuracies) for run in runs)


def _size(record: Record) -> int:
    return (record.data.get("train") or {}).get("images") or 0


def _dataset_order(task: str) -> tuple:
    name = task.split(" ")[0]
    names = [*DATASETS]
    return (names.index(name) if name in names else len(names), task)


def _arch_order(arch: str) -> tuple:
    names = [*ARCHS]
    return (names.index(arch) if arch in names else len(names), arch)
