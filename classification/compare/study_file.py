"""Write the study file of a comparison."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

COMMENT = "#"  # key of a part for a comment above it
_HEAD = """\
# Written by robust-backbones compare. The same command runs this file, also after you edit it.
# These commands do the same by hand:
#   robust-backbones study run {study}
#   robust-backbones report {runs} --study {study} --output {report}
# A run is known by its options: a changed option starts new runs in other folders.
output: {runs}
parts:
"""


class _Dumper(yaml.SafeDumper):
    """Dumper that writes equal values in full, instead of anchors and aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text(parts: Sequence[dict], runs: Path, study: Path, report: Path) -> str:
    """Return the contents of a study file.

    Args:
        parts: parts of the study, as plain values. The entry `COMMENT` is a comment.
        runs: folder of the results.
        study: path of the study file, for its comments.
        report: folder of the report, for the comments.
    """
    blocks = [_HEAD.format(runs=_dump(str(runs)), study=study, report=report)]
    for part in parts:
        for line in part.get(COMMENT, "").splitlines():
            blocks.append(f"  # {line}\n")
        values = {key: value for key, value in part.items() if key != COMMENT}
        block = textwrap.indent(_dump(values), "    ")
        blocks.append("  - " + block.lstrip() + "\n")
    return "".join(blocks)


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
