"""The stages of the demo: their commands, and how they are executed."""

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robust_backbones.core.resources import python_environment
from robust_backbones.core.signals import EXIT_RESUMABLE, StopSignals

CONFIG = "configs/digits_mask_rcnn_robust.yaml"
DATASET = "digit_scenes_val"
SEGMENTATION_CONFIG = "configs/digits_semantic_fpn_robust.yaml"
SEGMENTATION_DATASET = "digit_scenes_semantic_val"
SEGMENTATION_EPS = "4/255"  # L-infinity radius of the attack on segmentation
ATTACKED = 20  # number of attacked scenes
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

    @property
    def segmenter(self) -> Path:
        """Folder of the semantic segmentation model's training."""
        return self.folder / "segmenter"

    @property
    def attack(self) -> Path:
        """Result of the attack on the semantic segmentation model."""
        return self.segmenter / "attack_linf/result.json"


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


def plan(output: Path, segmentation: bool = False) -> list[Stage]:
    """Return the stages in their order. Users can also run these commands by hand.

    Args:
        output: folder of the demo.
        segmentation: whether to train and attack semantic segmentation models at the end.
    """
    found = networks(output)
    stages = [stage for network in found for stage in _stages(network)]
    standard, robust = found
    compared = output / "compare"
    compare = (
        *("compare", *TASKS, "--weights", str(standard.checkpoint), str(robust.checkpoint)),
        *("--shots", "50", "--image-size", "32"),
        *("--output", str(compared)),
    )
    return [
        *stages,
        _draw("draw scenes", CONFIG, output / "scenes", standard.detector, robust.detector),
        Stage(
            "compare", compare, output / "compare.log", compared / "report/index.html", brief=False
        ),
        *(_segmentation(output, standard, robust) if segmentation else ()),
    ]


def _draw(name: str, config: str, folder: Path, standard: Path, robust: Path) -> Stage:
    """Draw the predictions of the two models in the folders `standard` and `robust`."""
    command = (
        *("visualize", "--config", config, "--output", str(folder), "--images", str(SCENES)),
        *(word for name in PRETRAININGS for word in ("--name", name)),
        *("--compare", str(robust / "model_final.pth")),
        *("MODEL.WEIGHTS", str(standard / "model_final.pth")),
    )
    return Stage(name, command, folder.with_suffix(".log"), folder / "index.html")


def _segmentation(output: Path, *found: Network) -> Iterator[Stage]:
    for network in found:
        model = str(network.segmenter / "model_final.pth")
        train = (
            *("train", "--config", SEGMENTATION_CONFIG, "--resume"),
            *("MODEL.WEIGHTS", str(network.backbone), "OUTPUT_DIR", str(network.segmenter)),
        )
        attack = (
            *("attack", "--config", SEGMENTATION_CONFIG, "--images", str(ATTACKED)),
            *("--eps", SEGMENTATION_EPS),
            *("MODEL.WEIGHTS", model, "OUTPUT_DIR", str(network.segmenter)),
        )
        log = network.folder / "segment.log"
        yield Stage(f"{network.name}: segment", train, log, network.segmenter / "result.json")
        log = network.folder / "attack.log"
        yield Stage(f"{network.name}: attack", attack, log, network.attack)
    folders = (network.segmenter for network in found)
    yield _draw("draw masks", SEGMENTATION_CONFIG, output / "masks", *folders)


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
