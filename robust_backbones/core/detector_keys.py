"""Configuration keys that may differ between two detector runs, for four kinds of comparison.

Each list contains prefixes. All keys that start with one of the prefixes may differ.
"""

_OUTPUT = ("OUTPUT_DIR",)
# Keys that may differ between a training run and its continuation.
CONTINUATION = (
    *_OUTPUT,
    "TEST",
    "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "MODEL.ROBUST.STATISTICS",
    "SOLVER.CHECKPOINT_PERIOD",
)
# Prefix of the keys that record the choice of SOLVER.BASE_LR by `--choose-lr`.
CANDIDATES = "SOLVER.CANDIDATES"
# Keys that may differ between evaluations of the same weights. Digests identify the weights.
EVALUATION = (*_OUTPUT, "SOLVER.", "DATALOADER.", "DATASETS.TRAIN", "MODEL.WEIGHTS")
# Keys that may differ between runs of one experiment, which have different weights and seeds. Each
# network gets its own input statistics.
EXPERIMENT = (
    *_OUTPUT,
    "SEED",
    "VIS_PERIOD",
    "DATALOADER",
    "CUDNN_BENCHMARK",
    "VERSION",
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_",
    "MODEL.ROBUST.STATISTICS",
    "MODEL.DEVICE",
    "TEST.EVAL_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    CANDIDATES,
)
# Keys that may differ between a run and the candidates for its learning rate. Digests identify the
# images and the weights.
CHOICE = (
    *EXPERIMENT,
    "SOLVER.BASE_LR",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "DATASETS.CUSTOM",
    "DATASETS.HELD_OUT",
)
