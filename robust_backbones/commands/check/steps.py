"""Steps of a check: their settings, what they return, and how a table of steps is executed."""

import importlib.util
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError
from robust_backbones.core.extras import install_command
from robust_backbones.core.measurements import FAILED, OK, SKIPPED

NO_DETECTRON2 = f"needs Detectron2. Run: {install_command('detection')}"


@dataclass(frozen=True)
class CheckSettings:
    """Settings of all steps.

    Attributes:
        weights: name, URL or path of the weights to check.
        imagenet: folder of ImageNet, or None.
        images: number of images to measure the accuracy on; None: all.
        folder: temporary folder for the files of the steps.
    """

    weights: str
    imagenet: Path | None
    images: int | None
    folder: Path


@dataclass(frozen=True)
class Step:
    """One row of a table of steps.

    Attributes:
        name: name of the step, unique within its table.
        function: `MODULE:FUNCTION` in this package. The module is imported when the step runs, so
            that a missing package fails this step only. The function gets the settings and the
            values of the steps in `needs`, and returns an `Outcome`.
        needs: names of earlier steps. Without their values, the step is skipped.
        detectron2: whether the step is skipped if Detectron2 is not installed.
    """

    name: str
    function: str
    needs: tuple[str, ...] = ()
    detectron2: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of a step.

    Attributes:
        text: what was found, with its numbers; for a failed step, the cause and the fix.
        value: value for later steps, or None.
        facts: numbers and names for the JSON file.
        failed: whether the step failed. A failed step may have a value, so that later steps run.
    """

    text: str
    value: Any = None
    facts: dict = field(default_factory=dict)
    failed: bool = False


@dataclass(frozen=True)
class Record:
    """Outcome of a step, as it is printed and saved.

    Attributes:
        step: name of the step.
        state: `OK`, `FAILED`, `SLOW` (for measurements of a device) or `SKIPPED`.
        text: text of the outcome.
        seconds: duration, s.
        facts: facts of the outcome.
    """

    step: str
    state: str
    text: str
    seconds: float = 0.0
    facts: dict = field(default_factory=dict)


class SkippedStep(Exception):
    """A step does not apply. The message is the reason."""


def execute(
    steps: tuple[Step, ...],
    settings: CheckSettings,
    begin: Callable[[str], None] = lambda name: None,
) -> Iterator[Record]:
    """Run all steps of a table in order. An error in a step ends that step only.

    Args:
        steps: table of steps.
        settings: settings of all steps.
        begin: function that is called with the name of each step before it runs.

    Yields:
        The record of each step when it ends.
    """
    values: dict[str, Any] = {}
    for step in steps:
        missing = [name for name in step.needs if name not in values]
        if missing:
            yield Record(step.name, SKIPPED, f"needs the step {missing[0]}")
            continue
        if step.detectron2 and importlib.util.find_spec("detectron2") is None:
            yield Record(step.name, SKIPPED, NO_DETECTRON2)
            continue
        begin(step.name)
        started = time.perf_counter()
        state, outcome = _attempt(step, settings, [values[name] for name in step.needs])
        if outcome.value is not None:
            values[step.name] = outcome.value
        seconds = round(time.perf_counter() - started, 2)
        yield Record(step.name, state, outcome.text, seconds, outcome.facts)


def _attempt(step: Step, settings: CheckSettings, values: list) -> tuple[str, Outcome]:
    module, _, function = step.function.partition(":")
    try:
        run = getattr(importlib.import_module(f"{__package__}.{module}"), function)
        outcome = run(settings, *values)
    except SkippedStep as reason:
        return SKIPPED, Outcome(str(reason))
    except UserError as error:
        return FAILED, Outcome(" ".join(str(error).split()))
    except ModuleNotFoundError as error:
        return FAILED, Outcome(
            f"module {error.name} is not installed. Install what the step packages reports."
        )
    except Exception as error:  # an unexpected error is a finding of the check
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]} ({place})"
        fix = "This is a bug, or a damaged package: report it with the block below."
        return FAILED, Outcome(f"{text}. {fix}", facts={"traceback": traceback.format_exc()})
    return FAILED if outcome.failed else OK, outcome
