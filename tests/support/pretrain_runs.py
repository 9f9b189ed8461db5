"""Options of a small pretraining run."""

FEW = [
    "--arch",
    "shufflenet_v2_x1_0",
    "--dataset",
    "digits",
    "--limit",
    "24",
    "--test-limit",
    "20",
    "--epochs",
    "2",
    "--batch-size",
    "12",
    "--steps",
    "1",
    "--eval-steps",
    "2",
    "--seed",
    "3",
    "--device",
    "cpu",
]
