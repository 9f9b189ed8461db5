"""Groups of transfer results that can be compared in one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from classification.datasets.specs import DATASETS, SUITE
from classification.report import networks, published
from classification.report.conditions import KINDS
from classification.report.networks import is_twin
from classification.report.records import Merged, Record
from classification.transfer.protocols import MODES, PROTOCOLS
from robust_backbones.archs import ARCHS

REFERENCE = "imagenet"  # dataset that the paper's networks were pretrained on


@dataclass(frozen=True)
class Key:
    """Properties that results must have in common to be compared.

    Attributes:
        protocol: name of the protocol.
        pretrained_on: dataset that the networks were pretrained on.
        norm: norm of the perturbations in adversarial pretraining, `"l2"` or `"linf"`.
        shots: number of training images per class; None: all images.
        fraction: fraction of the training images of each class; None: all images.
        adversarial: perturbation radius eps of adversarial fine-tuning; 0: standard fine-tuning.
        simulated: whether the results are simulated.
    """

    protocol: str
    pretrained_on: str
    norm: str = "l2"
    shots: int | None = None
    fraction: float | None = None
    adversarial: float = 0.0
    simulated: bool = False

    @property
    def order(self) -> tuple:
        """Sort key. Measured results, the clean protocol and the paper's networks come first."""
        known = [*PROTOCOLS]
        position = known.index(self.protocol) if self.protocol in known else len(known)
        origin = (self.pretrained_on != REFERENCE, self.pretrained_on)
        more = (self.norm != "l2", self.shots or 0, self.fraction or 0, self.adversarial)
        return (self.simulated, position, self.protocol, *origin, *more)

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Pairs of a short name and a description, one pair for each property.

        Properties with default values are excluded, except for the protocol and the pretraining
        data.
        """
        data, shots, eps = self.pretrained_on, self.shots, f"{self.adversarial:g}"
        found = [
            (self.protocol, f"protocol {self.protocol}"),
            (data, f"networks pretrained on {data or 'an unknown dataset'}"),
        ]
        if self.norm != "l2":
            found.append((self.norm, f"{self.norm} networks"))
        if shots:
            found.append((f"{shots}-shot", f"{shots} training images per class"))
        if self.fraction:
            part = f"{100 * self.fraction:g}"
            found.append((f"{part}-percent", f"{part} % of the training images of each class"))
        if self.adversarial:
            found.append((f"adversarial-eps{eps}", f"adversarial fine-tuning with eps {eps}"))
        return found + [("simulated", "simulated")] * self.simulated

    @property
    def name(self) -> str:
        """Short name of the group, which also identifies its comparisons in `report.json`."""
        return " ".join(name for name, _ in self.parts)

    @property
    def words(self) -> list[str]:
        """Descriptions of the properties in `parts`."""
        return [description for _, description in self.parts]

    @property
    def family(self) -> Key:
        """Key of the group with all training images."""
        return replace(self, shots=None, fraction=None)

    @property
    def training_set(self) -> tuple:
        """Sort key of groups of a family. The largest training set comes last."""
        return (self == self.family, self.fraction or 0.0, self.shots or 0)


@dataclass(frozen=True, eq=False)
class Group:
    """Transfer results that can be compared.

    A cell is a network on a task: one mode, task, row, eps and size of downscaling. A row is an
    architecture, or one of several networks of an architecture with the same eps.

    Attributes:
        key: properties that the results have in common.
        suffix: suffix for the names of the group's sections; empty for the first group.
        runs: mapping from the name of each task to its runs.
    """

    key: Key
    suffix: str
    runs: dict[str, list[Merged]] = field(repr=False)

    @property
    def reference(self) -> bool:
        """Whether the networks were pretrained like the paper's: on ImageNet, with the L2 norm."""
        return self.key.pretrained_on == REFERENCE and self.key.norm == "l2"

    @cached_property
    def _tasks(self) -> dict[int, str]:
        return {id(run): task for task, runs in self.runs.items() for run in runs}

    @cached_property
    def names(self) -> dict[int, str]:
        """Python's `id` of each run, mapped to the name of its network."""
        return networks.name_networks(run for runs in self.runs.values() for run in runs)

    @cached_property
    def _cells(self) -> dict[tuple, list[Merged]]:
        cells: dict[tuple, list[Merged]] = {}
        rows = networks.rows([r for runs in self.runs.values() for r in runs], self.names)
        for arch, runs in rows.items():
            for run in runs:
                r = run.first
                key = (r.mode, self._tasks[id(run)], arch, r.eps, r.downscale)
                cells.setdefault(key, []).append(run)
        return cells

    @cached_property
    def other_twins(self) -> dict[str, str]:
        """Rows whose standard network has another architecture, mapped to this architecture."""
        return {
            row: run.first.arch
            for (_, _, row, *_), runs in self._cells.items()
            for run in runs
            if run.first.arch != _plain(row)
        }

    def configurations(
        self, mode: str, task: str, arch: str, eps: float | None, downscale: int | None = None
    ) -> list[Merged]:
        """Return all runs of a cell. They differ in hyperparameters or in the pretraining seed.

        If none of several standard networks is the twin of a row's network, the row has all of
        them.
        """
        return self._cells.get((mode, task, arch, eps, downscale), [])

    def cell(
        self, mode: str, task: str, arch: str, eps: float | None, downscale: int | None = None
    ) -> Merged | None:
        """Return the run of a cell with the highest mean accuracy, or None if there is no run."""
        found = self.configurations(mode, task, arch, eps, downscale)
        return max(found, key=lambda run: run.mean, default=None)

    @cached_property
    def ambiguous(self) -> frozenset[int]:
        """Python's `id` of each run whose cell has several runs."""
        return frozenset(map(id, self.ambiguous_runs))

    @property
    def ambiguous_runs(self) -> list[Merged]:
        """Runs whose cell has several runs, of which tables show the best."""
        return [run for own in self._cells.values() if len(own) > 1 for run in own]

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """Transfer modes that have a run."""
        have = {key[0] for key in self._cells}
        return tuple(mode for mode in MODES if mode in have)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a run, except stylized images, which have their own figure.

        For networks like the paper's, all twelve tasks of the paper are listed if one has a run.
        """
        suite = SUITE if self.reference and set(SUITE) & set(self.runs) else ()
        others = sorted(set(self.runs) - set(suite), key=_dataset_order)
        others = [task for task in others if not stylized(task)]
        return (*suite, *others)

    @cached_property
    def archs(self) -> tuple[str, ...]:
        """Rows of networks: Table 1's for networks like the paper's, else all with a run."""
        have = {key[2] for key in self._cells}
        if self.reference and have & set(published.ARCHS):
            have = {arch for arch in have if _plain(arch) in published.ARCHS} | {*published.ARCHS}
        return tuple(sorted(have, key=_arch_order))

    @cached_property
    def eps(self) -> tuple[float, ...]:
        """Values of eps of robust networks that have a run.

        For networks like the paper's, all values of the paper are added.
        """
        have = {key[3] for key in self._cells if key[3]}
        return tuple(sorted(have | set(published.EPS if self.reference else ())))

    def networks(self, mode: str, task: str) -> list[Merged]:
        """Return the best run of each network, including networks that are not in Table 1."""
        found: dict[tuple, Merged] = {}
        for run in sorted(self.runs.get(task, []), key=lambda run: run.mean):
            if (run.first.mode, run.first.downscale) == (mode, None):
                found[_arch_order(self.names[id(run)]), run.first.eps or 0.0] = run
        return [found[key] for key in sorted(found)]

    @cached_property
    def downscales(self) -> tuple[int, ...]:
        """Sizes, in pixels, to which images were downscaled."""
        return tuple(sorted({key[4] for key in self._cells if key[4]}))

    def row(
        self, mode: str, task: str, arch: str, downscale: int | None = None
    ) -> dict[float, Merged]:
        """Map each eps that has a run to its best run. The standard network has eps 0."""
        found = {eps: self.cell(mode, task, arch, eps, downscale) for eps in (0.0, *self.eps)}
        return {eps: run for eps, run in found.items() if run}

    def conditions(self, found: Sequence[Record]) -> tuple[str, ...]:
        """Return the names of the conditions of the runs: attacks, corruptions, and shifts."""
        every = {
            (KINDS.index(condition.kind), condition.name)
            for runs in self.runs.values()
            for run in runs
            for index in run.indices
            for condition in found[index].conditions
        }
        return tuple(dict.fromkeys(name for _, name in sorted(every)))


def stylized(name: str) -> bool:
    """Return whether a dataset has stylized images (Figure 8), according to its name."""
    return "stylized" in name.lower()


def groups_of(runs: Iterable[Merged]) -> list[Group]:
    """Group the transfer runs in the order of the report.

    Networks that are neither standard nor robust are excluded, except for those that were trained
    on stylized images.
    """
    by_key: dict[Key, list[Merged]] = {}
    for run in runs:
        shown = run.first.eps is not None or stylized(run.first.pretrained_on)
        if run.first.kind == "transfer" and shown:
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
        settings.get("fraction"),
        settings.get("adversarial") or 0.0,
        record.simulated,
    )


def _share_standard(by_key: dict[Key, list[Merged]]) -> None:
    """Add standard networks to the groups of robust networks of other norms, and of their twins.

    A published twin may have different pretraining data. Groups whose networks are all in other
    groups are removed then, because they have nothing to compare.
    """
    own = {key: [*runs] for key, runs in by_key.items()}
    shared: set[int] = set()
    for key, runs in own.items():
        robust = {run.first.weights for run in runs if run.first.eps}
        for other, candidates in own.items() if robust else ():
            if other == key or replace(key, norm="l2", pretrained_on=other.pretrained_on) != other:
                continue
            same = key.pretrained_on == other.pretrained_on
            added = [
                run
                for run in candidates
                if run.first.eps == 0
                if same or any(is_twin(weights, run.first.weights) for weights in robust)
            ]
            by_key[key] = added + by_key[key]
            shared |= set(map(id, added))
    for key, runs in own.items():
        if all(id(run) in shared for run in runs):
            del by_key[key]


def _suffixes(keys: list[Key]) -> dict[Key, str]:
    """Derive short, unique suffixes from the properties in which groups differ from the first."""
    found, used = {}, set()
    for key in keys:
        names = [
            name for name, description in key.parts if (name, description) not in keys[0].parts
        ]
        name = re.sub(r"[^\w.=]+", "-", "-".join(names)).strip("-").lower()
        name = name[:40].rstrip("-")  # part of a file name, which is limited to 255 bytes
        suffix, number = f"-{name}" if key != keys[0] else "", 2
        while suffix in used:
            suffix, number = f"-{name or 'other'}-{number}", number + 1
        used.add(suffix)
        found[key] = suffix
    return found


def _by_task(runs: list[Merged]) -> dict[str, list[Merged]]:
    """Map names of tasks to runs. Runs on different images of a dataset are different tasks.

    If a dataset has several tasks, the task with the most training images has the dataset's name
    without a suffix. Among equally large tasks, the task with the most trials has this name.
    """
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


def _plain(arch: str) -> str:
    """Return the architecture in the name of a network."""
    return arch.partition(" (")[0]


def _arch_order(arch: str) -> tuple:
    names, plain = [*ARCHS], _plain(arch)
    return (names.index(plain) if plain in names else len(names), arch)
