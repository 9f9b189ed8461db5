"""Read, recognize, rename, convert and verify classifier checkpoints.

Only this package opens checkpoints of unknown origin. It executes no code from a file unless the
user allows it.
"""

from pathlib import Path

from robust_backbones.core.errors import UserError, choose_from

# File suffixes of each target format. The first suffix is the usual one.
TARGET_SUFFIXES = {
    "detectron2": (".pth",),
    "torchvision": (".pth", ".pt"),
    "robustness": (".pt", ".ckpt", ".pth"),
    "safetensors": (".safetensors",),
}


def check_target(target: str | Path, to: str, force: bool) -> None:
    """Check that a file may be written, and that its name fits the format.

    Args:
        target: file to write.
        to: format, a key of `TARGET_SUFFIXES`.
        force: whether the file may exist.

    Raises:
        UserError: the format is unknown, the suffix of the target is wrong, the target is a folder,
            or it exists and `force` is False.
    """
    if to not in TARGET_SUFFIXES:
        raise UserError(f"format '{to}' is unknown. {choose_from(to, TARGET_SUFFIXES)}")
    target = Path(target)
    if target.suffix not in TARGET_SUFFIXES[to]:
        endings = " or ".join(TARGET_SUFFIXES[to])
        raise UserError(f"target '{target}' must end in {endings} for the format {to}.")
    if target.is_dir():
        raise UserError(f"{target} is a folder. Give the name of a file.")
    if target.exists() and not force:
        raise UserError(f"{target} exists. Overwrite it with --force, or give another name.")
