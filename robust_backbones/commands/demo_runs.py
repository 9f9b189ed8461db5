"""The stages of the demo: their commands, and how they are executed."""

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robust_backbones.core.resources import python_environment
from robust_backbones.core.signals import EXIT_RESUMABLE, StopSignals

CONFIG = "configs/digits_mask_rcnn_robust.yaml"
DATASET = "digit_scenes_val"
TASKS = ("textures", "faces")  # tasks of the comparison
PRETRAININGS = {"standard": "0", "robust": "1.0"}  # L2 eps of the pretraining, by name
EVAL_EPS = "1.0"
SCENES = 4  # number of scenes to draw


@dataclass(frozen=True)
class Network:
    """A pretrained network of the demo.

    Attributes:
        name: name of the pretraining, a key of `PRETRAININGS`.
        folder: folder of the network and of the detector on it.
    """

    name: str
    folder: Path

    @property
    def pretraining(self) -> Path:
        """Folder of the pretraining."""
        return self.folder / "pretrain"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the classifier."""
        return self.pretraining / "checkpoint.pt"

    @property
    def backbone(self) -> Path:
        """Converted checkpoint for Detectron2."""
        return self.folder / "backbone.pth"

    @property
    def detector(self) -> Path:
        """Folder of the detector's training."""
        return self.folder / "detector"


@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Attributes:
        name: short description.
        arguments: arguments of `robust-backbones`.
        log: file for the output of the command.
        made: last file that the command writes. A stage whose file exists is finished.
        brief: whether the terminal shows only the progress among the output.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    made: Path
    brief: bool = True

    @property
    def command(self) -> str:
        """The command as a user would type it in a shell."""
        return shlex.join(("robust-backbones", *self.arguments))


def networks(output: Path) -> list[Network]:
    """Return the networks of the demo, the standard one first."""
    return [Network(name, output / name) for name in PRETRAININGS]


def plan(output: Path) -> list[Stage]:
    """Return the stages in their order. Users can also run these commands by hand."""
    found = networks(output)
    stages = [stage for network in found for stage in _stages(network)]
    standard, robust = found
    scenes, compared = output / "scenes", output / "compare"
    visualize = (
        *("visualize", "--config", CONFIG, "--output", str(scenes), "--images", str(SCENES)),
        *("--name", standard.name, "--name", robust.name),
        *("--compare", str(robust.detector / "model_final.pth")),
        *("MODEL.WEIGHTS", str(standard.detector / "model_final.pth")),
    )
    compare = (
        *("compare", *TASKS, "--weights", str(standard.checkpoint), str(robust.checkpoint)),
        *("--shots", "50", "--image-size", "32"),
        *("--output", str(compared)),
    )
    return [
        *stages,
        Stage("draw scenes", visualize, output / "scenes.log", scenes / "index.html"),
        Stage(
            "compare", compare, output / "compare.log", compared / "report/index.html", brief=False
        ),
    ]


def _stages(network: Network) -> list[Stage]:
    pretrain = (
        *("pretrain", "--arch", "resnet18", "--dataset", "digits", "--constraint", "l2"),
        *("--eps", PRETRAININGS[network.name], "--eval-eps", EVAL_EPS),
        *("--output", str(network.pretraining), "--resume"),
    )
    convert = ("convert", str(network.checkpoint), str(network.backbone), "--force")
    train = (
        *("train", "--config", CONFIG, "--resume"),
        *("MODEL.WEIGHTS", str(network.backbone), "OUTPUT_DIR", str(network.detector)),
    )
    commands = {
        "pretrain": (pretrain, network.pretraining / "result.json"),
        "convert": (convert, network.backbone),
        "detect": (train, network.detector / "result.json"),
    }
    return [
        Stage(f"{network.name}: {name}", arguments, network.folder / f"{name}.log", made)
        for name, (arguments, made) in commands.items()
    ]


def execute(stages: Sequence[Stage]) -> None:
    """Run the stages that are not finished. Stages after one that runs also run.

    Commands skip their finished runs and resume interrupted ones.
    """
    stale = False
    for number, stage in enumerate(stages, 1):
        stale = stale or not stage.made.exists()
        print(f"[{number}/{len(stages)}] {stage.name}{'' if stale else ': finished'}", flush=True)
        if stale:
            _run(stage)


def _run(stage: Stage) -> None:
    """Run a command. Write its output to the log, and its progress to the terminal."""
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    with open(stage.log, "w", encoding="utf-8") as log, StopSignals().watch() as stop:
        process = subprocess.Popen(
            [sys.executable, "-m", "robust_backbones", *stage.arguments],
            env=python_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            preexec_fn=_stop_with_parent if sys.platform == "linux" else None,
        )
        assert process.stdout
        for line in process.stdout:
            log.write(line)
            if shown := progress(line) if stage.brief else line.strip():
                print(f"      {shown}", flush=True)
            if stop.requested:
                process.terminate()
        status = process.wait()
    if stop.requested or status == EXIT_RESUMABLE:
        print("interrupted. Repeat the command to resume.", file=sys.stderr)
        sys.exit(EXIT_RESUMABLE)
    if status:
        print(f"error: this command failed, see {stage.log}:", file=sys.stderr)
        print(f"  {stage.command}", file=sys.stderr)
        sys.exit(1)


def _stop_with_parent() -> None:
    """Make the kernel send SIGTERM to this process when its parent dies, even by SIGKILL.

    Otherwise the command would continue, and a repeated demo could not write to its folder.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def progress(line: str) -> str | None:
    """Return the part of an output line that shows progress, or None."""
    line = line.rstrip()
    if line.startswith(("epoch", "clean", "verified", "error", "No GPU")) or "finished" in line:
        return line
    if "  iter: " in line and "total_loss" in line:
        parts = (part.strip() for part in line.split("  "))
        return " ".join(part for part in parts if part.startswith(("eta", "iter", "total_loss")))
    return None
