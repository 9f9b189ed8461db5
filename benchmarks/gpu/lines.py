"""Lines of the GPU check: named measurements, each with its bound."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Line:
    """One measured quantity.

    Attributes:
        name: name of the quantity.
        value: measured number, or a string.
        unit: unit of the value.
        bound: condition for a pass, in words; empty if the value is only reported.
        passed: whether the value is inside its bound; None if it was not measured.
    """

    name: str
    value: float | str
    unit: str = ""
    bound: str = ""
    passed: bool | None = True

    @property
    def shown(self) -> str:
        """Value and unit, with four significant digits."""
        text = self.value if isinstance(self.value, str) else f"{self.value:,.4g}"
        return f"{text} {self.unit}".strip()


def at_most(name: str, value: float, bound: float, unit: str = "") -> Line:
    """A line that passes if the value is at most the bound. NaN does not pass."""
    return Line(name, value, unit, f"<= {bound:g}", value <= bound)


def at_least(name: str, value: float, bound: float, unit: str = "") -> Line:
    """A line that passes if the value is at least the bound. NaN does not pass."""
    return Line(name, value, unit, f">= {bound:g}", value >= bound)


def precisions(device: torch.device) -> list[str]:
    """The precisions to compare; CPUs have no TF32."""
    return ["float32", *(["tf32"] if device.type == "cuda" else []), "bfloat16"]


def peak_gib(device: torch.device) -> float:
    """Most GPU memory allocated since the last call, GiB; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak
