"""Table of the rows that measure a device, in order of their value."""

from dataclasses import dataclass

CLASSIFIERS = "classification.device_check"
DETECTORS = "robust_backbones.detection.device_check"
PRETRAINING = "robust_backbones.commands.check.pretraining_rows"


@dataclass(frozen=True)
class Row:
    """One row, which runs in a process of its own.

    Attributes:
        title: description for the help.
        module: module with the row's function in its table `ROWS`.
        seconds: time limit on a GPU, s.
        detectron2: whether the row needs Detectron2.
    """

    title: str
    module: str
    seconds: int
    detectron2: bool = False


ROWS = {
    "parity": Row("agreement with float64 on the CPU", CLASSIFIERS, 90),
    "training_step": Row("standard and PGD steps, ResNet-50", CLASSIFIERS, 240),
    "loading": Row("image loader, alone and with steps", CLASSIFIERS, 90),
    "detector_step": Row("Mask R-CNN against plain Detectron2", DETECTORS, 180, True),
    "synchronizations": Row("waits of a step, share of time computing", CLASSIFIERS, 90),
    "probing": Row("linear probe with 45 penalties", CLASSIFIERS, 90),
    "evaluation": Row("PGD-10 evaluation", CLASSIFIERS, 60),
    "mixed_precision": Row("float16 training of detectors", DETECTORS, 120, True),
    "resuming": Row("killed and resumed pretraining", PRETRAINING, 180),
    "out_of_memory": Row("message for a batch that is too large", PRETRAINING, 90),
    "memory_growth": Row("memory after many steps", CLASSIFIERS, 90),
    "determinism": Row("steps of three networks with --deterministic", CLASSIFIERS, 60),
    "compiled_step": Row("steps with --compile", CLASSIFIERS, 300),
    "compiled_detector_step": Row("detector steps with SOLVER.COMPILE", DETECTORS, 300, True),
}
