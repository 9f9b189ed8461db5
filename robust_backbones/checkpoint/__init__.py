"""Classifier checkpoints: read, recognize, rename, convert and verify them.

Foreign files are opened only here. Nothing in a file is executed unless the user allows it.
"""

# The file suffixes of each format that checkpoints are converted to; the first is the usual one.
TARGET_SUFFIXES = {
    "detectron2": (".pth",),
    "torchvision": (".pth", ".pt"),
    "robustness": (".pt", ".ckpt", ".pth"),
    "safetensors": (".safetensors",),
}
