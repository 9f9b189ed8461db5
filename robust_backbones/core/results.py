"""Write and compare result files. Each run writes one JSON file; see docs/reference/formats.md."""

import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

from robust_backbones.core import resources
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.core.precision import DEFAULT

SCHEMA = 1
MOST_DIFFERENCES = 3  # maximum number of different settings in a message


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
    device: torch.device | str,
    precision: str = DEFAULT,
    processes: int = 1,
    warnings: list[dict] | None = None,
) -> dict:
    """Write the result of a run and return it.

    Args:
        path: path of the JSON file. An existing file is replaced atomically.
        kind: kind of run: `"pretrain"`, `"robustness"`, `"transfer"`, `"interpret"`, `"detection"`,
            `"detection-robustness"`, `"detection-corruptions"` or `"errors"`.
        metrics: measured numbers. Accuracies and AP are in percent, [0, 100].
        settings: all settings of the run.
        weights_sha256: SHA-256 of the weight file that the run started from; None if the run did
            not start from a weight file.
        data: description of the images, `{split: {"name", "images", "fingerprint"}}`.
        seed: random seed.
        seconds: wall time of the run in seconds.
        device: device of the networks in this process.
        precision: precision of training steps and features, a key of `PRECISIONS`.
        processes: number of processes of the run.
        warnings: reasons to doubt the numbers, each as `{"check", "message"}`; None if this kind
            of run has no checks.
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
        "code_version": resources.version(),
        "hardware": hardware(torch.device(device), precision, processes),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with atomic(path) as temporary:
        text = json.dumps(finite(result), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return result


def finished(path: str | Path, settings: dict) -> bool:
    """Return whether the result file exists and has these settings.

    Raises:
        UserError: the file is not a result, or has different settings.
    """
    resources.version()  # caches the version before the code can change during the run
    path = Path(path)
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        different = differences(found, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a result file. Choose another --output.") from None
    if different:
        raise UserError(
            f"{path.parent} contains a finished run with different settings: {different}. Choose "
            "another --output."
        )
    print(f"{path.parent} already contains this run, and it is finished. Nothing to do.")
    return True


def differences(found: dict, wanted: dict) -> str:
    """Describe the first entries of `wanted` that `found` does not have with the same value."""
    now, then = flatten(wanted), flatten(found)
    texts = [
        f"{key} is {_shown(then.get(key))} there, {_shown(value)} here"
        for key, value in now.items()
        if then.get(key) != value
    ]
    more = [f"and {len(texts) - MOST_DIFFERENCES} more"] * (len(texts) > MOST_DIFFERENCES)
    return "; ".join(texts[:MOST_DIFFERENCES] + more)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value!s:.60}"


def finite(node: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot store, by None.

    The AP of a class without ground truth is NaN.
    """
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def flatten(node: dict, separator: str = ".", prefix: str = "") -> dict:
    """Flatten a nested dictionary to keys such as `SOLVER.MAX_ITER` or `bbox/AP`."""
    flat = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, dict)
        flat |= flatten(value, separator, name + separator) if inner else {name: value}
    return flat


def hardware(device: torch.device, precision: str, processes: int) -> dict:
    """Return the hardware, precision and versions of a run, which affect its numbers slightly.

    Runs are not compared by this record, but by their settings. Each process uses one GPU. All are
    recorded with the model of this process's GPU.

    Args:
        device, precision, processes: as in `write`.
    """
    gpu = device.type == "cuda"
    return {
        "device": str(device),
        "precision": precision,
        "gpus": [torch.cuda.get_device_name(device)] * processes if gpu else [],
        "processes": processes,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "system": platform.system(),
    }
