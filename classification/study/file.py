"""Read study files (YAML) and list their runs. docs/guides/studies.md describes the format."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from classification.study.commands import COMMANDS, identity
from classification.study.storage import Store, is_url
from classification.study.yaml_lines import Entry, read_yaml
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.paths import expand
from robust_backbones.core.resources import require_config

FILE_KEYS = ("output", "parts")
PART_KEYS = ("name", "command", "common", "axes", "runs", "only", "skip", "resources")
RESOURCES = ("gpus", "cpus")
CPUS = 1  # default number of CPU cores of a run. The command has the default number of GPUs.
REPEATS = ("seed", "SEED")  # axes over which the table averages
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")  # an escaped brace has no group


@dataclass(frozen=True)
class StudyRun:
    """One run of a study, with everything that any machine needs to start the run.

    Attributes:
        part: name of the part of the study that contains the run.
        labels: label of the run's value on each axis, by the name of the axis.
        options: options of the command, by name.
        command: key of `COMMANDS`.
        id: digest of the command, its options and its input files.
        folder: folder for the run's results. Different runs have different folders.
        result: file whose presence marks the run as finished.
        needs: folders of the runs whose files this run reads.
        store: object storage for the run's files, or None if the files are only in `folder`.
        gpus, cpus: numbers of GPUs and CPU cores that the run uses. `gpus` is a whole number or a
            fraction below 1.
    """

    part: str
    labels: dict[str, str]
    options: dict
    command: str
    id: str
    folder: Path
    result: Path
    needs: tuple[Path, ...] = ()
    store: Store | None = None
    gpus: float = 0
    cpus: float = 1

    @property
    def name(self) -> str:
        """Name for messages, which consists of the part and the labels."""
        return _run_name(self.part, self.labels)

    def lines(self, gpus: int) -> list[list[str]]:
        """Return command lines without the leading `python`, to be executed in this order.

        Args:
            gpus: number of GPUs that the run may use; 0: use the CPU.
        """
        return COMMANDS[self.command].lines(self.options, self.folder, gpus)


def _run_name(part: str, labels: dict[str, str]) -> str:
    return ", ".join([part, *labels.values()])


@dataclass(frozen=True)
class Part:
    """A part of a study file, validated.

    Attributes:
        entry: location of the part in the file.
        axes: options of each label of each axis, as `{axis: {label: options}}`. The options are
            empty if the axis is a list of values.
        extra: runs outside the grid, each with labels for all axes and additional options.
        only, skip: filters of the grid. Each filter maps axes to a label or a list of labels.
    """

    entry: Entry
    name: str
    command: str
    common: dict
    axes: dict[str, dict[str, dict]]
    extra: list[dict]
    only: list[dict]
    skip: list[dict]
    resources: dict[str, float]


def read_study(path: str | Path, changes: dict | None = None) -> list[StudyRun]:
    """Return the runs of a study file. The last axis of a part changes fastest.

    Args:
        path: study file, or the name of a packaged study file; see `require_config`.
        changes: options that override the file's options in all runs whose command has them.

    Raises:
        UserError: the file is not a valid study. The message names the line.
    """
    file, changes = read_yaml(require_config(path, "study", "studies")), changes or {}
    if not isinstance(file.value, dict):
        raise file.error("a study file must be a mapping with output and axes or parts.")
    single = "parts" not in file.value
    file.check_keys(FILE_KEYS + (PART_KEYS if single else ()))
    output = file.child("output")
    if not isinstance(output.value, str) or not output.value:
        raise output.error("output is missing. Give a folder for all results.")
    folder = expand(output.value)
    parts = file.child("parts")
    if not single and (not isinstance(parts.value, list) or not parts.value):
        raise parts.error("parts must be a list of at least one part.")
    runs: list[StudyRun] = []
    for entry in [file] if single else parts.children():
        part = _read_part(entry, {run.part for run in runs})
        for labels, options in _combinations(part):
            known = {k: v for k, v in changes.items() if COMMANDS[part.command].has(k)}
            runs.append(_make_run(part, folder, labels, options | known, runs))
    unused = set(changes) - {name for run in runs for name in run.options}
    if unused:
        raise UserError(f"--set {min(unused)}: no command of {path} has this option.")
    _check_unique(path, runs)
    return runs


def _check_unique(path: str | Path, runs: list[StudyRun]) -> None:
    seen: dict[str, StudyRun] = {}
    for run in runs:
        if (other := seen.setdefault(run.id, run)) is not run:
            raise UserError(
                f"{path}: the runs '{other.name}' and '{run.name}' have the same options. Use the "
                "axes in the options, as {axis}."
            )


def _read_part(entry: Entry, earlier: set[str]) -> Part:
    if not isinstance(entry.value, dict):
        raise entry.error("a part must be a mapping.")
    entry.check_keys(PART_KEYS + (() if entry.keys else FILE_KEYS))
    command = entry.child("command", "transfer")
    program = str(command.value).replace("-", "_")  # so that robustness-eval is allowed
    if program not in COMMANDS:
        raise command.error(f"unknown command '{command.value}'. {choose_from(program, COMMANDS)}")
    name = entry.child("name", program)
    if not isinstance(name.value, str) or not re.fullmatch(r"\w[\w.+=-]*", name.value):
        raise name.error(f"invalid part name '{name.value}'. Use letters, digits and . _ + = -")
    if name.value in earlier:
        raise name.error(f"two parts have the name '{name.value}'. Give each part its own name.")
    common, axes = entry.child("common", {}).mapping(), entry.child("axes", {})
    found = {str(axis): _read_axis(axes.child(axis)) for axis in axes.mapping()}
    for axis in found:
        if axis in earlier:
            raise axes.error(f"the axis '{axis}' has the name of a part. Rename one of them.", axis)
    extra = _read_rows(entry.child("runs", []))
    for row in extra:
        if missing := [axis for axis in found if axis not in row.value]:
            raise row.error(f"the run has no label for the axis '{missing[0]}'.")
    if not found and not extra and "common" not in entry.value:
        raise entry.error(f"part '{name.value}' is empty. Give it axes, runs or common options.")
    return Part(
        entry=entry,
        name=name.value,
        command=program,
        common=common,
        axes=found,
        extra=[row.value for row in extra],
        only=_read_filters(entry.child("only", []), found),
        skip=_read_filters(entry.child("skip", []), found),
        resources=_read_resources(entry.child("resources", {}), COMMANDS[program].gpus),
    )


def _read_axis(entry: Entry) -> dict[str, dict]:
    axis, values = entry.keys[-1], entry.value
    if isinstance(values, list) and values:
        if wrong := [v for v in values if not isinstance(v, (str, int, float))]:
            raise entry.error(f"the value {wrong[0]!r} is neither a string nor a number.")
        labels = {str(value): {} for value in values}
    elif isinstance(values, dict) and values:
        labels = {str(label): entry.child(label).mapping() for label in values}
    else:
        raise entry.error(
            f"axis '{axis}' must be a list of values or a mapping of labels to options."
        )
    if len(labels) < len(values):
        raise entry.error(f"axis '{axis}' has the same label twice.")
    return labels


def _read_rows(entry: Entry) -> list[Entry]:
    rows = entry.value
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row for row in rows):
        raise entry.error(f"{entry.keys[-1]} must be a list of mappings from axes to labels.")
    return entry.children()


def _read_filters(entry: Entry, axes: dict[str, dict[str, dict]]) -> list[dict]:
    rows = _read_rows(entry)
    for row in rows:
        row.check_keys(tuple(axes))
        for axis, labels in row.value.items():
            for label in _as_list(labels):
                if str(label) not in axes[axis]:
                    raise row.error(f"axis '{axis}' has no label '{label}'.", axis)
    return [row.value for row in rows]


def _read_resources(entry: Entry, gpus: float) -> dict[str, float]:
    resources = entry.mapping()
    entry.check_keys(RESOURCES)
    for key, value in resources.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise entry.error(f"{key} must be a number of at least 0, not {value!r}.", key)
    found = {"gpus": gpus, "cpus": CPUS} | resources
    if found["gpus"] > 1 and found["gpus"] % 1:
        raise entry.error(
            f"gpus must be a whole number or a fraction below 1, not {found['gpus']}.", "gpus"
        )
    return found


def _combinations(part: Part) -> Iterator[tuple[dict[str, str], dict]]:
    """Yield the labels and the options of every run of a part."""
    if part.axes or not part.extra:
        for values in product(*part.axes.values()):
            labels = dict(zip(part.axes, values, strict=True))
            if _selected(part, labels):
                options = dict(part.common)
                for axis, label in labels.items():
                    options |= part.axes[axis][label]
                yield labels, options
    for row in part.extra:
        labels = {axis: str(row[axis]) for axis in part.axes}
        yield labels, part.common | {k: v for k, v in row.items() if k not in part.axes}


def _selected(part: Part, labels: dict[str, str]) -> bool:
    def matches(row: dict) -> bool:
        return all(labels[axis] in map(str, _as_list(value)) for axis, value in row.items())

    return (not part.only or any(map(matches, part.only))) and not any(map(matches, part.skip))


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _make_run(
    part: Part, output: str, labels: dict[str, str], options: dict, earlier: list[StudyRun]
) -> StudyRun:
    """Create the run of one combination: fill in the placeholders and check the options."""
    needs: list[Path] = []

    def fill(text: str) -> list[str]:
        """Replace the placeholders of a string by every combination of their values."""
        values = {}
        for name in filter(None, PLACEHOLDER.findall(text)):
            folders = [] if name in labels else _folders_of(name, part, labels, earlier)
            needs.extend(folders)
            values[name] = [folder.as_posix() for folder in folders] or [labels[name]]
        chosen = (dict(zip(values, each, strict=True)) for each in product(*values.values()))
        return [_replace(text, each) for each in chosen]

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [each for v in value for each in (fill(v) if isinstance(v, str) else [v])]
        if not isinstance(value, str):
            return value
        if len(found := fill(value)) > 1:
            name = next(n for n in PLACEHOLDER.findall(value) if n and n not in labels)
            raise part.entry.error(
                f"{{{name}}} in '{_run_name(part.name, labels)}' matches {len(found)} runs of that "
                "part. Give both parts the same axes and labels. An option with several values "
                f'takes all runs as a list, ["{{{name}}}"].'
            )
        return found[0]

    options = {key: filled(value) for key, value in options.items()}
    command = COMMANDS[part.command]
    try:
        command.check(options)
    except UserError as error:
        message = f"{_run_name(part.name, labels)}: {error}"
        raise part.entry.error(message, *_location(part, labels, options, str(error))) from None
    if part.resources["gpus"] > 1 and not (command.divides and command.divides(options)):
        raise part.entry.error(
            f"{_run_name(part.name, labels)}: gpus is {part.resources['gpus']}, but this run uses "
            f"one GPU at most. Set gpus to 1. Commands for several GPUs: "
            f"{', '.join(name for name, each in COMMANDS.items() if each.divides)}.",
            "resources",
            "gpus",
        )
    store = Store(output) if is_url(output) else None
    digest = identity(part.command, options, needs, store)
    slug = re.sub(r"[^\w.+=-]+", "_", "-".join(labels.values()) or part.name)[:150]
    folder = (store.folder if store else Path(output)) / part.name / f"{slug}-{digest[:8]}"
    return StudyRun(
        part=part.name,
        labels=labels,
        options=options,
        command=part.command,
        id=digest,
        folder=folder,
        result=folder / command.result,
        needs=tuple(dict.fromkeys(needs)),
        store=store,
        **part.resources,
    )


def escape(text: str) -> str:
    """Escape the braces of an option, so that they are no placeholders."""
    return text.replace("{", "{{").replace("}", "}}")


def _replace(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders of a string, and remove the escapes of braces."""
    return PLACEHOLDER.sub(lambda match: values[match[1]] if match[1] else match[0][0], text)


def _folders_of(
    name: str, part: Part, labels: dict[str, str], earlier: list[StudyRun]
) -> list[Path]:
    """Return the folders of the runs in an earlier part whose labels agree with `labels`.

    Labels agree if they are equal on all axes that both parts have.
    """
    parts = dict.fromkeys(run.part for run in earlier)
    if name not in parts:
        raise part.entry.error(
            f"{{{name}}} is neither an axis nor an earlier part. "
            f"{choose_from(name, [*labels, *parts])}",
            "common",
        )
    found = [
        run.folder
        for run in earlier
        if run.part == name and all(labels.get(k, v) == v for k, v in run.labels.items())
    ]
    if not found:
        raise part.entry.error(
            f"{{{name}}} in '{_run_name(part.name, labels)}' matches 0 runs of that part. Give "
            "both parts the same axes and labels."
        )
    return found


def _location(part: Part, labels: dict[str, str], options: dict, message: str) -> tuple:
    """Return the location of the option that an error message names, as keys below the part."""
    key = next((key for key in options if str(key) in message), "common")
    places = [("common", key), *(("axes", axis, label, key) for axis, label in labels.items())]
    known = part.entry.lines
    return next((p for p in places if (*part.entry.keys, *p) in known), ("common",))
