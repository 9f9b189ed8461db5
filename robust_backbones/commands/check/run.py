"""Run the tables of steps, print one line per step, and write the block for an issue."""

import getpass
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robust_backbones.commands.check.device_rows import measure
from robust_backbones.commands.check.steps import CheckSettings, Record, Step, execute
from robust_backbones.core import resources, results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.core.measurements import FAILED, SLOW
from robust_backbones.core.precision import DEFAULT

INSTALLATION = (
    Step("versions", "installation:versions"),
    Step("packages", "installation:packages"),
    Step("devices", "devices:devices"),
    Step("cache", "installation:cache"),
    Step("classifier", "classifier:random_classifier"),
    Step("conversion", "detector:convert", ("classifier",), detectron2=True),
    Step("loading", "detector:load", ("conversion",), detectron2=True),
    Step("attack", "detector:attack", ("loading",), detectron2=True),
    Step("detection", "detector:detect", ("loading",), detectron2=True),
)
PUBLISHED = (
    Step("fetch", "published:fetch"),
    Step("digest", "published:compare_digest", ("fetch",)),
    Step("contents", "published:compare_contents", ("fetch",)),
    Step("conversion", "detector:convert", ("contents",), detectron2=True),
    Step("loading", "detector:load", ("conversion",), detectron2=True),
    Step("detection", "detector:detect", ("loading",), detectron2=True),
    Step("classification", "published:classify", ("contents",)),
    Step("accuracy", "published:measure_accuracy", ("contents",)),
)


@dataclass(frozen=True)
class Plan:
    """What to check besides the installation.

    Attributes:
        weights: name, URL or path of weights; None: no weights.
        imagenet: folder of ImageNet to measure the accuracy on, or None.
        images: number of images to measure the accuracy on; None: all.
        device: `cuda` or `cpu`, to be measured; None: neither.
        rows: keys of `rows.ROWS` to measure.
        budget: time for all rows, s.
    """

    weights: str | None = None
    imagenet: Path | None = None
    images: int | None = None
    device: str | None = None
    rows: tuple[str, ...] = ()
    budget: float = 0.0


def run(plan: Plan, output: Path | None) -> int:
    """Run the steps, and print them. Return the number of failed steps.

    Args:
        plan: what to check.
        output: JSON file, written again after each step; or None.

    Raises:
        UserError: the JSON file cannot be written, or there is no CUDA GPU to measure.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: no CUDA GPU found. Use --device cpu, or install a CUDA build of "
            "PyTorch."
        )
    records: dict[str, list[Record]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, found in _tables(plan, Path(folder)).items():
            print(f"{title}:", flush=True)
            records[title] = []
            for record in found:
                records[title].append(record)
                print(line(record), flush=True)
                if output:
                    _save(records, plan, output)
    states = Counter(record.state for each in records.values() for record in each)
    failed, slow = states[FAILED], states[SLOW]
    steps = "1 step" if failed == 1 else f"{failed} steps"
    print(f"{steps} failed" if failed else "all steps passed")
    if slow:
        measurements = "1 measurement is" if slow == 1 else f"{slow} measurements are"
        print(f"{measurements} slower than expected")
    if plan.weights or failed:
        print("\nTo report this, paste the following block into an issue:\n")
        print(block(records), flush=True)
    if output:
        print(f"-> {output}")
    return failed


def _tables(plan: Plan, folder: Path) -> dict[str, Iterator[Record]]:
    """Return the tables by title. Their steps run when the caller asks for the records."""
    settings = CheckSettings(plan.weights or "", plan.imagenet, plan.images, folder)
    found = {"installation": execute(INSTALLATION, settings, _show_running)}
    if plan.weights:
        found[plan.weights] = execute(PUBLISHED, settings, _show_running)
    if plan.device:
        found[f"device {plan.device}"] = measure(plan.device, plan.rows, plan.budget)
    return found


def _show_running(name: str) -> None:
    if sys.stdout.isatty():  # the line of the finished step overwrites it
        print(f"  ...     {name}", end="\r", flush=True)


def line(record: Record) -> str:
    """Return the line of a step: state, name, seconds and text."""
    return f"  {record.state:8}{record.step:15}{record.seconds:6.1f} s  {record.text}"


def block(records: dict[str, list[Record]]) -> str:
    """Return all lines in Markdown's form of preformatted text, without private names."""
    lines = []
    for title, steps in records.items():
        lines += [f"{title}:", *map(line, steps)]
    return "```\n" + anonymous("\n".join(lines)) + "\n```"


def _save(records: dict[str, list[Record]], plan: Plan, output: Path) -> None:
    tables = [
        {"table": title, "steps": [asdict(record) for record in steps]}
        for title, steps in records.items()
    ]
    contents = {
        "kind": "check",
        "code_version": resources.version(),
        "hardware": results.hardware(torch.device(plan.device or "cpu"), DEFAULT, processes=1),
        "tables": tables,
    }
    with atomic(output) as temporary:
        text = json.dumps(_anonymous_values(contents), indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def anonymous(text: str) -> str:
    """Remove the user's name, the folders of paths and secrets in URLs from a text."""
    home, user = str(Path.home()), _user()
    if len(home) > 1:
        text = text.replace(home, "~")
    text = re.sub(r"://[^/@\s]+@", "://", text)
    text = re.sub(r"\?[^\s'\"#)]+", "?...", text)  # the query of a URL may contain a token
    # Folders of absolute paths, but not the parts of a URL.
    text = re.sub(r"(?<![\w:/~.])~?/(?:[^\s/:'\"]+/)+", ".../", text)
    return re.sub(rf"\b{re.escape(user)}\b", "USER", text) if user else text


def _anonymous_values(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _anonymous_values(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_anonymous_values(value) for value in node]
    return anonymous(node) if isinstance(node, str) else node


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return ""
