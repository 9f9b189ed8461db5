#!/usr/bin/env python
"""Write docs/results/hardware.md from the checks in benchmarks/hardware.

robust-backbones check --device cuda --output benchmarks/hardware/NAME.json
python benchmarks/hardware.py

Each JSON file becomes one table. Skipped steps are not shown.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from robust_backbones.core.cli import Parser  # noqa: E402

CHECKS, PAGE = ROOT / "benchmarks/hardware", ROOT / "docs/results/hardware.md"

HEAD = """\
# Hardware

One command measures the speed and numerical accuracy of a GPU in at most ten minutes:

```
robust-backbones check --device cuda --output check.json
```

`ok` and `slow` compare a value with its bound, if it has one. A value without a bound is only
reported. `loader and step / step` is the speed of a training step that waits for the image loader,
divided by the speed of the step alone. `--device cpu` measures the same with small networks.
`python benchmarks/hardware.py` writes this page from the files in `benchmarks/hardware`.
"""


def section(path: Path) -> str:
    """The table of one check."""
    contents = json.loads(path.read_text(encoding="utf-8"))
    installation, *_, measured = contents["tables"]
    facts = {step["step"]: step["facts"] for step in installation["steps"]}
    setup = [f"{name} {version}" for name, version in facts["versions"].items()]
    gpus = ", ".join(facts["devices"]["gpus"]) or "CPU"
    lines = [f"## {gpus}", "", f"{', '.join(setup)}; code {contents['code_version']}."]
    lines += [contents["note"]] if "note" in contents else []
    lines += ["", "| measurement | value | result |", "|---|---|---|"]
    for step in measured["steps"]:
        if step["state"] != "skipped":
            lines.append(f"| {step['step']} | {step['text'].replace('|', '/')} | {step['state']} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(section, sorted(CHECKS.glob("*.json")))])


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    Parser(description=__doc__).parse_args(argv)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"-> {PAGE}")


if __name__ == "__main__":
    main()
