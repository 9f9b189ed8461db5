"""Run the tables of steps, print one line per step, and write the block for an issue."""

import getpass
import json
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust_backbones.commands.check.steps import FAILED, CheckSettings, Record, Step, execute
from robust_backbones.core import resources
from robust_backbones.core.files import atomic

INSTALLATION = (
    Step("versions", "installation:versions"),
    Step("packages", "installation:packages"),
    Step("devices", "devices:devices"),
    Step("cache", "installation:cache"),
    Step("classifier", "detector:random_classifier"),
    Step("conversion", "detector:convert", ("classifier",)),
    Step("loading", "detector:load", ("conversion",)),
    Step("attack", "detector:attack", ("loading",)),
    Step("detection", "detector:detect", ("loading",)),
)
PUBLISHED = (
    Step("fetch", "published:fetch"),
    Step("digest", "published:compare_digest", ("fetch",)),
    Step("contents", "published:compare_contents", ("fetch",)),
    Step("conversion", "detector:convert", ("contents",)),
    Step("loading", "detector:load", ("conversion",)),
    Step("detection", "detector:detect", ("loading",)),
    Step("classification", "published:classify", ("contents",)),
    Step("accuracy", "published:measure_accuracy", ("contents",)),
)


def run(
    online: bool, weights: str, imagenet: Path | None, images: int | None, output: Path | None
) -> int:
    """Run the steps, and print them. Return the number of failed steps.

    Args:
        online: whether to check `weights` as well.
        weights: name, URL or path of weights.
        imagenet: folder of ImageNet, or None.
        images: number of images to measure the accuracy on; None: all.
        output: JSON file to write, or None.

    Raises:
        UserError: the JSON file cannot be written.
    """
    tables = {"installation": INSTALLATION} | ({weights: PUBLISHED} if online else {})
    records: dict[str, list[Record]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = CheckSettings(weights, imagenet, images, Path(folder))
        for title, steps in tables.items():
            print(f"{title}:", flush=True)
            records[title] = []
            for record in execute(steps, settings, _show_running):
                records[title].append(record)
                print(line(record), flush=True)
    failed = sum(record.state == FAILED for each in records.values() for record in each)
    steps = "1 step" if failed == 1 else f"{failed} steps"
    print(f"{steps} failed" if failed else "all steps passed")
    if online or failed:
        print("\nTo report this, paste the following block into an issue:\n")
        print(block(records), flush=True)
    if output:  # after the block, which must not be lost if the file cannot be written
        _save(records, output)
    return failed


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


def _save(records: dict[str, list[Record]], output: Path) -> None:
    tables = [
        {"table": title, "steps": [asdict(record) for record in steps]}
        for title, steps in records.items()
    ]
    contents = {"kind": "check", "code_version": resources.version(), "tables": tables}
    with atomic(output) as temporary:
        text = json.dumps(_anonymous_values(contents), indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
    print(f"-> {output}")


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
