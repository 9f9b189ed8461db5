"""Measurements of a device: named values with bounds, and the process that takes them."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

MARK = "@measured "  # prefix of the lines with measurements in the output of a process
OK, FAILED, SLOW, SKIPPED = "ok", "FAILED", "slow", "skipped"


@dataclass(frozen=True)
class Line:
    """One measured quantity.

    Attributes:
        name: name of the quantity.
        value: measured number, or a string.
        unit: unit of the value.
        bound: condition for a pass, in words; empty if the value is only reported.
        state: `OK`, `FAILED`, `SLOW` (a missed bound of speed), or `SKIPPED`.
    """

    name: str
    value: float | str
    unit: str = ""
    bound: str = ""
    state: str = OK

    @property
    def shown(self) -> str:
        """Value with four significant digits, unit and bound."""
        text = self.value if isinstance(self.value, str) else f"{self.value:,.4g}"
        bound = f"({self.bound})" if self.bound else ""
        return " ".join(filter(None, (text, self.unit, bound)))


def at_most(name: str, value: float, bound: float, unit: str = "") -> Line:
    """Return a line that fails if the value is above the bound, or NaN."""
    return Line(name, value, unit, f"<= {bound:g}", OK if value <= bound else FAILED)


def at_least(name: str, value: float, bound: float, unit: str = "") -> Line:
    """Return a line that fails if the value is below the bound, or NaN."""
    return Line(name, value, unit, f">= {bound:g}", OK if value >= bound else FAILED)


def fast_if(name: str, value: float, bound: float, unit: str = "") -> Line:
    """Return a line that is `SLOW` if the value is below the bound, or NaN."""
    return Line(name, value, unit, f">= {bound:g}", OK if value >= bound else SLOW)


def expect(name: str, value: float | str, bound: str, passed: bool) -> Line:
    """Return a line that fails unless `passed`. The bound is in words."""
    return Line(name, value, "", bound, OK if passed else FAILED)


Measure = Callable[[torch.device, bool], Iterator[Line]]


def main(rows: Mapping[str, Measure]) -> None:
    """Run the row that the command line names, and print its lines.

    The command line is the name of the row and the device.

    Args:
        rows: functions by their names. Arguments: the device, and whether to use the full size.
    """
    name, device = sys.argv[1:]
    for line in rows[name](torch.device(device), device != "cpu"):
        print(MARK + json.dumps(asdict(line)), flush=True)


def read(text: str) -> Line | None:
    """Return the measurement in a line that a process printed; None for another line."""
    return Line(**json.loads(text[len(MARK) :])) if text.startswith(MARK) else None


def precisions(device: torch.device) -> list[str]:
    """Return the precisions to compare; CPUs have no TF32."""
    return ["float32", *(["tf32"] if device.type == "cuda" else []), "bfloat16"]


def peak_gib(device: torch.device) -> float:
    """Return the most GPU memory allocated since the last call, GiB; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak
