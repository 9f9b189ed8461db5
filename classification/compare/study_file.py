"""Write the study file of a comparison."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

from classification.study.file import escape

COMMENT = "#"  # key of a part for a comment above it
_HEAD = """\
# Written by robust-backbones compare. The same command runs this file, even after you edit it.
# These commands do the same by hand:
#   robust-backbones study run {study}
#   robust-backbones report {runs} --study {study} --output {report}
# A run is known by its options: a changed option starts new runs in other folders.
output: {runs}
parts:
"""


class Placeholders(str):
    """Option with placeholders of a study, such as `{seed}`. Braces in other options are plain."""


class _Dumper(yaml.SafeDumper):
    """Dumper that writes equal values in full, instead of anchors and aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text(parts: Sequence[dict], runs: Path, study: Path, report: Path) -> str:
    """Return the contents of a study file.

    Args:
        parts: parts of the study, as plain values and `Placeholders`. The entry `COMMENT` is a
            comment.
        runs: folder for the results.
        study: path of the study file, for its comments.
        report: folder of the report, for the comments.
    """
    blocks = [_HEAD.format(runs=_dump(str(runs)), study=study, report=report)]
    for part in parts:
        for line in part.get(COMMENT, "").splitlines():
            blocks.append(f"  # {line}\n")
        values = {key: value for key, value in part.items() if key != COMMENT}
        if "common" in part:
            values["common"] = _escaped(part["common"])
        values["axes"] = {
            axis: {label: _escaped(options) for label, options in labels.items()}
            if isinstance(labels, dict)
            else labels
            for axis, labels in part["axes"].items()
        }
        block = textwrap.indent(_dump(values), "    ")
        blocks.append("  - " + block.lstrip() + "\n")
    return "".join(blocks)


def _escaped(options: dict) -> dict:
    """Escape the braces of options, except in `Placeholders`."""

    def escaped(value: object) -> object:
        if isinstance(value, list):
            return [escaped(each) for each in value]
        if isinstance(value, Placeholders):
            return str(value)
        return escape(value) if isinstance(value, str) else value

    return {name: escaped(value) for name, value in options.items()}


def _dump(value: object) -> str:
    """Return a value as YAML. Collections of plain values are on one line."""
    shown = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=10_000,
    )
    return shown.removesuffix("\n").removesuffix("\n...")
