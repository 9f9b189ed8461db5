"""Study files: YAML -> the runs that they ask for. docs/studies.md has the format."""

import difflib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classification.study.commands import COMMANDS, Command
from classification.study.identity import identity
from classification.study.storage import Store, is_url
from classification.study.yaml_lines import Document
from robust_backbones.core.errors import UserError
from robust_backbones.core.resources import config_file

FILE_KEYS = ("output", "parts")
PART_KEYS = ("name", "command", "common", "axes", "runs", "only", "skip", "resources")
RESOURCES = {"gpus": 0, "cpus": 1}
REPEATS = ("seed", "SEED")  # axes whose runs are one row of the table
NAME = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Run:
    """One combination: everything that is needed to make it, anywhere.

    Attributes:
        part: of the study.
        labels: axis -> the label of its value.
        options: of its command.
        id: digest of command, options and input files.
        folder: for its results; two runs that differ have two folders.
        lines: its command lines without `python`, to be run one after the other.
        result: the file that is there once it has finished.
        needs: folders of the runs whose files it reads.
        store: where its files are kept, if not in its folder.
        gpus, cpus: that it takes while it runs; a part of a GPU is allowed.
    """

    part: str
    labels: dict[str, str]
    options: dict
    command: str
    id: str
    folder: Path
    lines: list[list[str]]
    result: Path
    needs: tuple[Path, ...] = ()
    store: Store | None = None
    gpus: float = 0
    cpus: float = 1

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join([self.part, *self.labels.values()])


@dataclass(frozen=True)
class Part:
    """A part of a study file, checked. `axes`: name -> {label: options}; None: only labels."""

    name: str
    command: str
    common: dict
    axes: dict[str, dict[str, dict] | list[str]]
    where: tuple
    extra: list[dict] = field(default_factory=list)
    only: list[dict] = field(default_factory=list)
    skip: list[dict] = field(default_factory=list)
    resources: dict = field(default_factory=dict)


def read(path: str | Path, changes: dict | None = None) -> list[Run]:
    """The runs of a study file, the last axis of a part changing fastest.

    Args:
        path: a file, or the name of one that comes with the packages; see `config_file`.
        changes: options for all runs that have a command which knows them, instead of the file's.

    Raises:
        UserError: not a study file; names the line and what is allowed there.
    """
    document = Document(config_file(path))
    study, changes = document.value, changes or {}
    if not isinstance(study, dict):
        raise document.wrong((), "a study file is a mapping with output and axes or parts.")
    single = "parts" not in study
    _keys(document, (), study, FILE_KEYS + (PART_KEYS if single else ()))
    if not isinstance(study.get("output"), str) or not study["output"]:
        raise document.wrong(("output",), "output, a folder for all results, is needed.")
    parts = [study] if single else study["parts"]
    if not isinstance(parts, list) or not parts:
        raise document.wrong(("parts",), "parts is a list of at least one part.")
    runs: list[Run] = []
    for number, contents in enumerate(parts):
        where = () if single else ("parts", number)
        part = _part(document, where, contents, number, {run.part for run in runs})
        runs += _runs(document, part, study["output"], runs, changes)
    used = {name for run in runs for name in changes if name in run.options}
    if unused := sorted(set(changes) - used):
        raise UserError(f"--set {unused[0]}: no command of {path} has this option.")
    seen: dict[str, Run] = {}
    for run in runs:
        if (other := seen.setdefault(run.id, run)) is not run:
            raise UserError(
                f"{path} asks for the same run twice: {other.name} and {run.name} have the same "
                "options; use the axes in them, as {axis}."
            )
    return runs


def _keys(document: Document, where: tuple, found: dict, allowed: Iterable[str]) -> None:
    for key in found:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise document.wrong(
                (*where, key), f"unknown key '{key}'; one of: {', '.join(allowed)}{hint}."
            )


def _part(document: Document, where: tuple, contents: Any, number: int, before: set) -> Part:
    if not isinstance(contents, dict):
        raise document.wrong(where, "a part is a mapping.")
    _keys(document, where, contents, PART_KEYS + (() if where else FILE_KEYS))
    command = contents.get("command", "transfer")
    if not isinstance(command, str) or command not in COMMANDS:
        raise document.wrong(
            (*where, "command"), f"command '{command}' is unknown; one of: {', '.join(COMMANDS)}."
        )
    name = contents.get("name", command)
    if not isinstance(name, str) or name in before or not re.fullmatch(r"\w[\w.+=-]*", name):
        raise document.wrong(
            (*where, "name"), f"the name '{name}' must be one word, and no other part's."
        )
    common = _mapping(document, (*where, "common"), contents.get("common", {}))
    axes = {}
    for axis, values in _mapping(document, (*where, "axes"), contents.get("axes", {})).items():
        axes[str(axis)] = _axis(document, (*where, "axes", axis), values)
        if axis in before:
            raise document.wrong((*where, "axes", axis), f"'{axis}' is the name of a part.")
    resources = _mapping(document, (*where, "resources"), contents.get("resources", {}))
    _keys(document, (*where, "resources"), resources, tuple(RESOURCES))
    for key, value in resources.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise document.wrong((*where, "resources", key), f"{key} is a number, at least 0.")
    lists = {}
    for key in ("runs", "only", "skip"):
        lists[key] = _rows(document, (*where, key), contents.get(key, []), axes, key == "runs")
    if not axes and not lists["runs"] and "common" not in contents:
        raise document.wrong(where, f"part '{name}' asks for nothing: it has no axes and no runs.")
    return Part(
        name,
        command,
        common,
        axes,
        where,
        lists["runs"],
        lists["only"],
        lists["skip"],
        RESOURCES | resources,
    )


def _mapping(document: Document, where: tuple, value: Any) -> dict:
    if not isinstance(value, dict):
        raise document.wrong(where, f"{where[-1]} is a mapping of names to values.")
    return value


def _axis(document: Document, where: tuple, values: Any) -> dict[str, dict] | list[str]:
    """Options by label; or a list of labels, whose values the options use as `{axis}`."""
    if isinstance(values, list) and values:
        if odd := [v for v in values if not isinstance(v, (str, int, float))]:
            raise document.wrong(where, f"the value {odd[0]!r} is neither text nor a number.")
        labels = [str(value) for value in values]
    elif isinstance(values, dict) and values:
        for label, options in values.items():
            _mapping(document, (*where, label), options)
        values = labels = {str(label): options for label, options in values.items()}
    else:
        raise document.wrong(
            where, f"axis '{where[-1]}' is a list of values, or a mapping of labels to options."
        )
    if len(set(labels)) < len(values):
        raise document.wrong(where, f"axis '{where[-1]}' has a label twice.")
    return labels


def _rows(document: Document, where: tuple, rows: Any, axes: dict, options: bool) -> list[dict]:
    """`runs`, `only` and `skip`: lists of mappings with axes as keys."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row for row in rows):
        raise document.wrong(where, f"{where[-1]} is a list of mappings from axes to labels.")
    for number, row in enumerate(rows):
        if not options:
            _keys(document, (*where, number), row, tuple(axes))
            for axis, labels in row.items():
                for label in labels if isinstance(labels, list) else [labels]:
                    if str(label) not in axes[axis]:
                        raise document.wrong(
                            (*where, number, axis), f"axis '{axis}' has no label '{label}'."
                        )
        elif missing := [axis for axis in axes if axis not in row]:
            raise document.wrong((*where, number), f"the run has no label for axis '{missing[0]}'.")
    return rows


def _runs(
    document: Document, part: Part, output: str, before: list[Run], changes: dict
) -> list[Run]:
    combinations = []
    for labels in itertools.product(*part.axes.values()) if part.axes else [()]:
        named, options = dict(zip(part.axes, labels, strict=True)), dict(part.common)
        if _chosen(part, named) and (part.axes or not part.extra):
            for axis, label in named.items():
                values = part.axes[axis]
                options |= values[label] if isinstance(values, dict) else {}
            combinations.append((named, options))
    for row in part.extra:
        named = {axis: str(row[axis]) for axis in part.axes}
        options = part.common | {k: v for k, v in row.items() if k not in part.axes}
        combinations.append((named, options))
    command, runs = COMMANDS[part.command], []
    for named, options in combinations:
        options |= {k: v for k, v in changes.items() if command.has(k)}
        runs.append(_run(document, part, command, output, named, options, before))
    return runs


def _chosen(part: Part, named: dict) -> bool:
    def fits(row: dict) -> bool:
        return all(
            named[axis] in [str(v) for v in (values if isinstance(values, list) else [values])]
            for axis, values in row.items()
        )

    return (not part.only or any(map(fits, part.only))) and not any(map(fits, part.skip))


def _run(
    document: Document,
    part: Part,
    command: Command,
    output: str,
    named: dict,
    options: dict,
    before: list[Run],
) -> Run:
    needs: list[Path] = []

    def fill(found: re.Match) -> str:
        name = found[1]
        if name in named:
            return named[name]
        if name not in {run.part for run in before}:
            known = [*named, *dict.fromkeys(run.part for run in before)]
            raise document.wrong(
                (*part.where, "common"),
                f"{{{name}}} is neither an axis nor an earlier part; one of: {', '.join(known)}.",
            )
        fits = [
            run
            for run in before
            if run.part == name and all(named.get(k, v) == v for k, v in run.labels.items())
        ]
        if len(fits) != 1:
            raise document.wrong(
                part.where,
                f"{{{name}}} of {', '.join([part.name, *named.values()])} is {len(fits)} runs of "
                f"that part, not one; the parts need axes of the same name and labels.",
            )
        needs.append(fits[0].folder)
        return fits[0].folder.as_posix()

    def render(value: Any) -> Any:
        if isinstance(value, list):
            return [render(v) for v in value]
        return NAME.sub(fill, value) if isinstance(value, str) else value

    options = {key: render(value) for key, value in options.items()}
    try:
        command.check(options)
    except UserError as error:
        key = next((key for key in options if str(key) in str(error)), "common")
        places = [(*part.where, "common", key)]
        places += [(*part.where, "axes", axis, label, key) for axis, label in named.items()]
        place = next((p for p in places if p in document.lines), (*part.where, "common"))
        raise document.wrong(place, f"{', '.join([part.name, *named.values()])}: {error}") from None
    store = Store(output) if is_url(output) else None
    digest = identity(part.command, options, needs, store)
    slug = re.sub(r"[^\w.+=-]+", "_", "-".join(named.values()) or part.name)[:150]
    folder = (store.folder if store else Path(output)) / part.name / f"{slug}-{digest[:8]}"
    lines = command.lines(options, folder, part.resources["gpus"])
    return Run(
        part.name,
        named,
        options,
        part.command,
        digest,
        folder,
        lines,
        folder / command.result,
        tuple(dict.fromkeys(needs)),
        store,
        **part.resources,
    )
