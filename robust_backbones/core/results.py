"""Result files: one JSON per run, written once, atomically. The format is in docs/formats.md."""

import json
import math
import platform
import time
from pathlib import Path
from typing import Any

from robust_backbones.core import resources as clone
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic

SCHEMA = 1


def write(
    path: str | Path,
    *,
    kind: str,
    metrics: dict,
    settings: dict,
    weights_sha256: str | None,
    data: dict,
    seed: int,
    seconds: float,
    processes: int = 1,
    warnings: list[dict] | None = None,
) -> dict:
    """Write a run's result and return it.

    Args:
        path: the JSON file; an existing one is replaced in one step.
        kind: `"pretrain"`, `"robustness"`, `"transfer"`, `"interpret"`, `"detection"`,
            `"detection-robustness"`, `"detection-corruptions"` or `"errors"`.
        metrics: numbers; accuracies and AP in percent [0, 100].
        settings: everything that was chosen for the run.
        weights_sha256: digest of the weight file that the run started from; None for none.
        data: `{split: {"name", "images", "fingerprint"}}`.
        seconds: wall time of the run.
        processes: how many made it together.
        warnings: `{"check", "message"}` each: why the numbers are suspect; None where the kind
            of run looks for nothing.
    """
    result = {
        "schema": SCHEMA,
        "kind": kind,
        "metrics": metrics,
        **({} if warnings is None else {"warnings": warnings}),
        "settings": settings,
        "weights_sha256": weights_sha256,
        "data": data,
        "seed": seed,
        "seconds": round(seconds, 2),
        "code_version": clone.version(),
        "hardware": hardware() | {"processes": processes},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with atomic(path) as temporary:
        text = json.dumps(finite(result), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return result


def finished(path: str | Path, settings: dict) -> bool:
    """Whether the result file is there, made with these settings.

    Raises:
        UserError: it is there but not a result, or made with other settings.
    """
    clone.version()  # of the code that runs, not of what lies there when the run ends
    path = Path(path)
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        different = differences(found, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a result file; choose another --output.") from None
    if different:
        raise UserError(
            f"{path.parent} holds a finished run with other settings: {different}; choose another "
            "--output."
        )
    print(f"{path.parent} holds this run already, finished; nothing to do.")
    return True


def differences(found: dict, wanted: dict) -> str:
    """Which of `wanted`'s entries `found` has otherwise, in words; empty if none."""
    return "; ".join(
        f"{key} is {found.get(key)} there, {value} here"
        for key, value in wanted.items()
        if found.get(key) != value
    )


def finite(node: Any) -> Any:
    """NaN and infinity, which JSON does not have, become null (an AP without any ground truth)."""
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def hardware() -> dict:
    """What the numbers depend on besides the settings: devices, threads and versions."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": gpus,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
