"""Start a training command: choose the device, join processes, reserve the output folder."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from classification.training import distributed
from classification.training.settings import TrainSettings
from robust_backbones import arithmetic
from robust_backbones.core import resources, results, run_log
from robust_backbones.core.errors import UserError, memory_advice, out_of_gpu_memory
from robust_backbones.core.files import claimed
from robust_backbones.core.precision import DEFAULT
from robust_backbones.core.signals import EXIT_RESUMABLE, Stopped
from robust_backbones.core.workers import MOST_WORKERS, default_workers

# Rates of PGD-3 steps at batch size 256 in benchmarks/GPU.md: 241, 528 and 770 images/s.
FASTER = (
    "warning: float32 is slow on GPUs. Adversarial training of ResNet-50 on an H100 was 2.2 times "
    "as fast with --precision tf32, and 3.2 times with bfloat16."
)


def choose_device(name: str | None) -> torch.device:
    """Return the named device. If `name` is None, return a GPU if there is one, else the CPU.

    Raises:
        UserError: torch cannot use the named device.
    """
    cuda = torch.cuda.is_available()
    if name is None:
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails for the device "meta"
    except (RuntimeError, AssertionError) as error:  # a CPU build raises AssertionError
        if out_of_gpu_memory(error):
            raise
        if name.startswith("cuda") and not cuda:
            problem = "no CUDA GPU found. Use --device cpu, or install a CUDA build of PyTorch."
        else:
            problem = f"torch cannot use this device. Choose from {'cuda, ' if cuda else ''}cpu."
        raise UserError(f"--device {name}: {problem}") from None
    return device


def loading_workers(wanted: int | None, device: torch.device, most: int = MOST_WORKERS) -> int:
    """Return the number of loading processes for this process.

    Args:
        wanted: `--workers`; None: choose by the device and the CPU cores.
        device: device of this process.
        most: largest number to choose.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return min(default_workers(device.type, local), most) if wanted is None else wanted


def describe_device(device: torch.device, workers: int) -> str:
    """Describe the devices and loading processes of a run, such as `cpu, 0 loading workers`."""
    world, found = distributed.world(), torch.cuda.is_available()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    name = f" ({name})" if name else "" if found else " (no GPU found)"
    each = f" for each of {world} processes" if world > 1 else ""
    return f"{device}{name}, {workers} loading workers{each}"


def announce(
    rows: dict[str, str], device: torch.device, workers: int, precision: str, output: Path
) -> None:
    """Print the start of a run in process 0.

    Args:
        rows: the run, its data and its weights.
        device, workers, precision, output: facts that all runs have.
    """
    if distributed.rank() == 0:
        common = {
            "device": describe_device(device, workers),
            "precision": precision,
            "output": str(output),
            "log": str(output / run_log.LOG),
        }
        run_log.introduce(rows | common)


@contextlib.contextmanager
def processes(device: str | None, deterministic: bool, precision: str) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and yield the device of this process.

    TF32 is turned off. Training steps and features turn it on if the precision is `tf32`.

    Args:
        device: name of a device, or None; see `choose_device`.
        deterministic: whether to use deterministic algorithms only, which are slower on GPUs.
        precision: key of `core.precision.PRECISIONS`.

    Raises:
        UserError: the device does not support the precision.
    """
    chosen = choose_device(device)
    arithmetic.check_precision("--precision", precision, chosen)
    arithmetic.set_tf32(False)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    with distributed.group(chosen) as own:
        yield own


def _training_advice(settings: TrainSettings) -> contextlib.AbstractContextManager[None]:
    return memory_advice(
        "Use a larger --accumulate, which splits a batch into more parts, a smaller --batch-size, "
        "or --precision bfloat16.",
        f"--batch-size {settings.batch_size} --accumulate {settings.accumulate}",
    )


def once(
    output: Path,
    recorded: dict,
    training: TrainSettings | None,
    device: torch.device,
    work: Callable[[], None],
    resume: str,
) -> None:
    """Call `work` unless `output` contains the finished run. Reserve `output` during the call.

    If a signal stops the run, the process exits with the code `EXIT_RESUMABLE`.

    Args:
        output: folder of the run.
        recorded: all settings of the run, in plain JSON types.
        training: training settings, for messages; None if the run does not train a network.
        device: device of this process.
        work: function that executes the run.
        resume: sentence that tells the user how to resume a stopped run.

    Raises:
        UserError: the GPU is out of memory for the training.
    """
    if distributed.from_first(partial(results.finished, output / "result.json", recorded)):
        return
    first = distributed.rank() == 0
    if first and training and training.precision == DEFAULT and device.type == "cuda":
        print(FASTER, file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(claimed(output))
            stack.enter_context(run_log.log_to(output))
            run_log.note(f"settings: {json.dumps(recorded)}")
            environment = results.hardware(device, DEFAULT, distributed.world())
            run_log.note(f"code {resources.version()}, {json.dumps(environment)}")
        try:
            with _training_advice(training) if training else contextlib.nullcontext():
                work()
        except Stopped:
            if first:
                run_log.say(f"stopped; the run is saved in {output}. {resume}")
            sys.exit(EXIT_RESUMABLE)
