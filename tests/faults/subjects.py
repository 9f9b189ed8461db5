"""Runs to kill: commands on a few bundled images, and the files they must leave.

An attempt is one start of a command in `place/run`, with a cache in `place/cache`. The next attempt
resumes from the files of the previous one.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

# Random weights in the common folder, to transfer and to convert.
SMALL, RESNET, BACKBONE = "small.pt", "resnet18.pt", "backbone.pth"
DIGITS = ["--dataset", "digits", "--image-size", "32", "--device", "cpu"]
PRETRAIN = [
    *DIGITS,
    "--arch",
    "shufflenet_v2_x1_0",
    "--limit",
    "48",
    "--test-limit",
    "20",
    "--epochs",
    "3",
    "--batch-size",
    "12",
    "--steps",
    "1",
    "--eval-steps",
    "2",
    "--save-seconds",
    "0",
    "--resume",
]
FINETUNE = [
    *DIGITS,
    "--limit",
    "40",
    "--test-limit",
    "30",
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--mode",
    "full-network",
    "--trials",
    "1",
    "--lr",
    "0.01",
    "0.03",
    "--save-seconds",
    "0",
    "--save-classifier",
]
FEATURES = [
    *DIGITS,
    "--limit",
    "160",
    "--test-limit",
    "96",
    "--mode",
    "fixed-feature",
    "--save-classifier",
]
_TIMES = ("seconds", "finished", "images_per_second", "weights_sha256")
DETECTOR = {
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "8",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RPN.CONV_DIMS": "[16]",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "5",
    "TEST.DETECTIONS_PER_IMAGE": "5",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "DATALOADER.NUM_WORKERS": "1",
}
STUDY = """
output: {place}/run
parts:
  - name: pretrain
    command: pretrain
    common: {{dataset: digits, arch: shufflenet_v2_x1_0, limit: 24, test-limit: 20, epochs: 2,
             batch-size: 12, steps: 1, eval-steps: 1, save-seconds: 0, device: cpu,
             seed: "{{seed}}"}}
    axes: {{seed: [0, 1]}}
  - name: transfer
    command: transfer
    common: {{weights: "{{pretrain}}/checkpoint.pt", dataset: digits, limit: 40, test-limit: 30,
             device: cpu}}
    axes: {{seed: [0]}}
"""


def _pretrain(place: Path) -> None:
    from classification.pretrain import __main__ as pretrain

    pretrain.main([*PRETRAIN, "--output", str(place / "run")])


def _finetune(place: Path) -> None:
    from classification.transfer import __main__ as transfer

    weights = str(place.parent / SMALL)
    transfer.main([*FINETUNE, "--weights", weights, "--output", str(place / "run")])


def _features(place: Path) -> None:
    from classification.transfer import __main__ as transfer
    from classification.transfer import features

    features.ROWS, features.BATCH = 16, 8  # 16 files instead of 2, so that a kill can lose some
    weights = str(place.parent / SMALL)
    transfer.main([*FEATURES, "--weights", weights, "--output", str(place / "run")])


def _detector(place: Path) -> None:
    from robust_backbones.commands import train
    from robust_backbones.detection.data import digit_scenes

    digit_scenes.SPLITS = {"train": 24, "val": 4}
    keys = DETECTOR | {
        "OUTPUT_DIR": str(place / "run"),
        "MODEL.WEIGHTS": str(place.parent / BACKBONE),
    }
    config = str(ROOT / "configs/digits_mask_rcnn_robust.yaml")
    train.main(["--config", config, "--resume", *(w for pair in keys.items() for w in pair)])


def _convert(place: Path) -> None:
    from robust_backbones.commands import convert

    convert.main([str(place.parent / RESNET), str(place / "run" / BACKBONE), "--force"])


def _study(place: Path) -> None:
    from classification.study import __main__ as study

    file = place / "study.yaml"
    file.write_text(STUDY.format(place=place))
    study.main(["run", str(file), "--num-gpus", "0", "--pause", "0.1", "--attempts", "100"])


def make_inputs(folder: Path) -> None:
    """Create the networks that attempts start from."""
    from robust_backbones.checkpoint import export
    from robust_backbones.checkpoint.io import read_checkpoint, save_file
    from tests.support.networks import random_network
    from tests.support.transfer_runs import write_network

    write_network(folder / SMALL, "shufflenet_v2_x1_0")
    save_file(random_network("resnet18").state_dict(), folder / RESNET)
    found = read_checkpoint(folder / RESNET)
    save_file(export.detectron2_contents(found), folder / BACKBONE)


def _trainings(place: Path) -> list[str]:
    """Describe the progress of each checkpoint, in the words of the message when it is resumed."""
    from robust_backbones.checkpoint.io import load_file

    paths = (place / "run").rglob("checkpoint.pt")
    states = [load_file(p) for p in sorted(paths, key=lambda p: p.stat().st_mtime_ns)]
    return [
        f"resuming after {s['epoch']} of {s['settings']['epochs']} epochs and {s['batch']} of"
        for s in states
    ]


def _resumed(log: str) -> list[str]:
    return re.findall(r"resuming after \d+ of \d+ epochs and \d+ of", log)


def _iteration(place: Path) -> list[str]:
    from robust_backbones.checkpoint.io import load_file

    last = place / "run" / "last_checkpoint"
    if not last.exists():
        return []
    state = load_file(last.with_name(last.read_text()))
    return [f"Starting training from iteration {state['iteration'] + 1}"]


def _started(log: str) -> list[str]:
    found = re.findall(r"Starting training from iteration \d+", log)
    return [line for line in found if not line.endswith(" 0")]


def _stamps(pattern: str) -> Callable[[Path], list[str]]:
    """List files with their times. A line changes if a file is created again."""
    return lambda place: [
        f"{path.relative_to(place)} {path.stat().st_mtime_ns}"
        for path in sorted(place.glob(pattern))
    ]


@dataclass(frozen=True)
class Subject:
    """One kind of run.

    Attributes:
        start: function of the folder that runs the command in this process.
        saved: function from the folder to the saved states, in order.
        found: function from the log to the states that the attempt resumed from. A killed attempt
            may have logged only the first ones. None: `saved` lists files that must not change.
        results: patterns of the files that must be equal after an undisturbed run.
        processes: whether the command starts other Python processes.
    """

    start: Callable[[Path], None]
    saved: Callable[[Path], list[str]]
    found: Callable[[str], list[str]] | None
    results: tuple[str, ...]
    processes: bool = False


SUBJECTS = {
    "pretraining": Subject(
        _pretrain, _trainings, _resumed, ("run/result.json", "run/checkpoint.pt")
    ),
    "transfer, full network": Subject(
        _finetune, _trainings, _resumed, ("run/result.json", "run/classifier_*.pt", "run/*.csv")
    ),
    "feature extraction": Subject(
        _features,
        _stamps("cache/features/*/*.npy"),
        None,
        ("run/result.json", "run/classifier_*.pt", "cache/features/*/*.npy"),
    ),
    "detector training": Subject(
        _detector, _iteration, _started, ("run/result.json", "run/model_final.pth")
    ),
    "conversion": Subject(_convert, lambda place: [], lambda log: [], (f"run/{BACKBONE}",)),
    "study": Subject(
        _study,
        _stamps("run/*/*/result.json"),
        None,
        ("run/*/*/result.json", "run/*/*/checkpoint.pt"),
        processes=True,
    ),
}


def contents(path: Path):
    """Read a file without its times. Raises if the file is incomplete.

    Logs and TensorBoard events grow during a run and are not compared.
    """
    from robust_backbones.checkpoint.io import load_file

    if path.suffix in (".pt", ".pth"):
        state = load_file(path)
        return {name: state[name] for name in ("model", "metadata") if name in state}
    if path.suffix == ".npy":
        import numpy

        return numpy.load(path, allow_pickle=False)
    if path.suffix == ".png":
        from PIL import Image

        return Image.open(path).convert("RGB").tobytes()
    text = "" if _grows(path) else path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return _numbers(json.loads(text or "null"))
    if path.suffix == ".jsonl":
        return [_numbers(json.loads(line)) for line in text.splitlines()]
    if path.suffix == ".csv":
        return list(csv.reader(text.splitlines(), strict=True))
    if path.suffix in (".yaml", ".yml"):
        import yaml

        if not isinstance(found := yaml.safe_load(text), dict):
            raise ValueError(f"{path} is not a mapping")
        return found
    if path.suffix == ".txt" or path.name == "last_checkpoint" or _grows(path):
        return text
    raise ValueError(f"{path}: no reader for this kind of file")


def _grows(path: Path) -> bool:
    return path.name in (
        "log.txt",
        "console.txt",
        "metrics.json",
        "attempts.jsonl",
    ) or path.name.startswith("events.out.tfevents.")


def _numbers(node):
    """Remove times, and digests of checkpoints, which contain times."""
    if isinstance(node, dict):
        return {key: _numbers(value) for key, value in node.items() if key not in _TIMES}
    return [_numbers(value) for value in node] if isinstance(node, list) else node


def same(a, b) -> bool:
    """Whether two contents are equal, tensors and arrays bit for bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if hasattr(a, "dtype"):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return a == b
