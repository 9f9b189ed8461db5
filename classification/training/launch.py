"""What commands that train have around them: other processes, a folder of their own, stopping."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from classification.training import distributed
from classification.training import evaluate as engine
from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import claimed
from robust_backbones.core.signals import EXIT_RESUMABLE, Stopped


@contextlib.contextmanager
def processes(device: str | None, deterministic: bool) -> Iterator["torch.device"]:
    """Join the processes that `torchrun` started, for the block; yields this one's device.

    Args:
        device: a name, or None: see `engine.choose_device`.
        deterministic: on GPUs equal numbers in each run, or the fastest convolutions.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    with distributed.group(engine.choose_device(device)) as own:
        yield own


def once(output: Path, settings: dict, work: Callable[[], None], again: str) -> None:
    """Call `work` unless `output` holds the finished run; nobody else may write there meanwhile.

    A run that is stopped by a signal ends the process with the exit code `EXIT_RESUMABLE`.

    Args:
        settings: of the run.
        again: how to go on with a run that was stopped, for the user.

    Raises:
        UserError: the GPU is out of memory.
    """
    if distributed.from_first(partial(results.finished, output / "result.json", settings)):
        return
    first = distributed.rank() == 0
    with claimed(output) if first else contextlib.nullcontext():
        try:
            work()
        except Stopped:
            if first:
                print(f"stopped; all is saved in {output}. {again}", flush=True)
            sys.exit(EXIT_RESUMABLE)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error, settings) from None


def _out_of_memory(error: torch.OutOfMemoryError, settings: dict) -> UserError:
    """One line with PyTorch's request and the options that reduce the memory."""
    asked = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
    said = f"out of GPU memory ({asked[0] if asked else error})."
    if settings.get("accumulate") is None:  # the probe: all features are in memory
        return UserError(f"{said} Use --device cpu.")
    return UserError(
        f"--batch-size {settings['batch_size']} --accumulate {settings['accumulate']}: {said} "
        "Use a larger --accumulate, which splits a batch into parts, or a smaller --batch-size."
    )
