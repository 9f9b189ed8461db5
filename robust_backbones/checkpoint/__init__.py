"""Read, recognize, rename, convert and verify classifier checkpoints.

Only this package opens checkpoints of unknown origin. It executes no code from a file unless the
user allows it.
"""

# File suffixes of each target format. The first suffix is the usual one.
TARGET_SUFFIXES = {
    "detectron2": (".pth",),
    "torchvision": (".pth", ".pt"),
    "robustness": (".pt", ".ckpt", ".pth"),
    "safetensors": (".safetensors",),
}
