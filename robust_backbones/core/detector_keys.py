"""Keys of a detector's configuration that do not affect its numbers, for three comparisons.

A key is in a list if it starts with one of the prefixes.
"""

_OUTPUT = ("OUTPUT_DIR",)
# Between a training run and its continuation.
CONTINUATION = (
    *_OUTPUT,
    "TEST",
    "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
)
# Between evaluations of the same weights, which are compared by their digest.
EVALUATION = (*_OUTPUT, "SOLVER.", "DATALOADER.", "DATASETS.TRAIN", "MODEL.WEIGHTS")
# Between runs of one experiment, which differ in weights and seeds.
EXPERIMENT = (
    *_OUTPUT,
    "SEED",
    "VIS_PERIOD",
    "DATALOADER",
    "CUDNN_BENCHMARK",
    "VERSION",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "TEST.EVAL_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
)
