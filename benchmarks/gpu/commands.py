"""Rows of the GPU check that look at the machine or start whole commands."""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import installed
import torch
from gpu.lines import Line, at_least, at_most

from robust_backbones.checkpoint.io import load_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torchvision", "numpy", "pillow", "timm", "fvcore", "pycocotools", "hotcoco")
TINY = ["--dataset", "digits", "--arch", "resnet18", "--image-size", "32"]


def versions(device: torch.device, full: bool) -> Iterator[Line]:
    """Report software, device and the defaults that decide precision."""
    yield Line("Python, PyTorch", f"{platform.python_version()}, {torch.__version__}")
    yield Line("packages", ", ".join(installed.versions(PACKAGES)))
    yield Line("CPU cores", len(os.sched_getaffinity(0)))
    if device.type != "cuda":
        return
    card = torch.cuda.get_device_properties(device)
    yield Line(
        "card",
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability "
        f"{card.major}.{card.minor}, {torch.cuda.device_count()} visible",
    )
    yield Line("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield Line("TF32 by default", f"convolutions {convolutions}, matrix products {products}")
    yield at_least("bfloat16", float(torch.cuda.is_bf16_supported()), 1.0)


def resuming(device: torch.device, full: bool) -> Iterator[Line]:
    """Kill a deterministic pretraining, resume it, and compare it with an uninterrupted one."""
    options = [*TINY, "--device", str(device), "--deterministic", "--save-seconds", "0.5"]
    options += (
        []
        if full
        else ["--limit", "96", "--test-limit", "20", "--epochs", "2", "--eval-steps", "2"]
    )
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        _finish(_pretrain(whole, options))
        run = _pretrain(killed, options)
        while run.poll() is None and not (killed / "checkpoint.pt").exists():
            time.sleep(0.01)
        time.sleep(0.3 * full)  # into a later step; the small run would be over by then
        run.send_signal(signal.SIGKILL)
        run.communicate()
        yield Line(
            "killed while running",
            str(run.returncode == -signal.SIGKILL),
            "",
            "True",
            run.returncode == -signal.SIGKILL,
        )
        _finish(_pretrain(killed, [*options, "--resume", "must"]))
        one, other = (load_file(p / "checkpoint.pt")["model"] for p in (whole, killed))
        apart = max(float((one[k].double() - other[k].double()).abs().max()) for k in one)
        yield at_most("largest difference of a weight after resuming", apart, 0.0)
    for arch in ("resnet50", "densenet161", "vgg16_bn") if full else ("resnet50",):
        yield _deterministic(arch, device)


def _deterministic(arch: str, device: torch.device) -> Line:
    """Whether every operation of a training step has a deterministic implementation."""
    from gpu.classifiers import images, learner, train_batch  # other rows need fewer packages

    learn = learner(arch, device)
    torch.use_deterministic_algorithms(True)
    try:
        train_batch(learn, *images(4, 64, device))
        said = "runs"
    except RuntimeError as error:
        said = str(error).split(".")[0]
    finally:
        torch.use_deterministic_algorithms(False)
    return Line(f"{arch}: a step with --deterministic", said, "", "runs", said == "runs")


def out_of_memory(device: torch.device, full: bool) -> Iterator[Line]:
    """Start a run with a batch that is far too large. One line must name the fix."""
    if device.type == "cpu":
        yield Line("batch of 1,400 images at 384 pixels", "needs a GPU", passed=None)
        return
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--dataset",
            "digits",
            "--arch",
            "resnet152",
            "--image-size",
            "384",
            "--batch-size",
            "1400",
            "--eps",
            "0",
            "--device",
            str(device),
        ]
        run = _pretrain(Path(folder, "run"), options)
        errors = run.communicate()[1].strip().splitlines() or [""]
    yield Line("exit code", float(run.returncode), "", "2", run.returncode == 2)
    named = len(errors) == 1 and "--accumulate" in errors[0] and "--batch-size" in errors[0]
    yield Line(
        "message",
        f"{len(errors)} lines, the last: {errors[-1][:200]}",
        "",
        "one line that names --accumulate and --batch-size",
        named,
    )


def _pretrain(output: Path, options: list[str]) -> subprocess.Popen:
    words = [sys.executable, "-m", "classification.pretrain", "--output", str(output), *options]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _finish(run: subprocess.Popen) -> None:
    """Wait for a run that must succeed.

    Raises:
        RuntimeError: the run failed; the message has the last line that it printed.
    """
    errors = run.communicate()[1].strip().splitlines() or [""]
    if run.returncode:
        raise RuntimeError(f"exit code {run.returncode}: {errors[-1]}")
