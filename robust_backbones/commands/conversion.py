"""Read, describe, convert and verify checkpoints, for the command and as a function."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from robust_backbones import arithmetic
from robust_backbones.archs import TIMM
from robust_backbones.checkpoint import check_target, export, formats, verify
from robust_backbones.checkpoint.architectures import arch_row
from robust_backbones.checkpoint.export import TARGETS
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import announce, warn_if_assumed


def read(
    name: str, path: Path, *, from_detector: bool, assume_rgb: bool, **options: Any
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        name: path, URL or name of a published model, as the user gave it.
        path: local file.
        from_detector, assume_rgb, options: as for `read_weights`.

    Raises:
        UserError: as for `read_weights`, or an option does not apply to the file.
    """
    source = read_weights(
        name, path=path, from_detector=from_detector, assume_rgb=assume_rgb, **options
    )
    for option, given in (("--from-detector", from_detector), ("--assume-rgb", assume_rgb)):
        if given and source.layout != "detectron2":
            raise UserError(
                f"{option} is for Detectron2 files, but {name} is a classifier ({source.layout} "
                f"layout). Remove {option}."
            )
    return source


def describe(source: Checkpoint, name: str) -> None:
    """Print the format, architecture, size, input statistics and metadata of a checkpoint."""
    announce(source.statistics, name)
    rows = {
        "file": name,
        "sha256": source.sha256,
        "layout": source.layout,
        "architecture": source.arch,
        "tensors": f"{len(source.tensors)} of the network, {len(source.dropped)} others",
        "parameters and statistics": f"{sum(t.numel() for t in source.tensors.values()):,}",
        "input": f"RGB in [0, 1], {source.statistics} ({source.statistics.source})",
    } | {f"metadata {key}": value for key, value in source.metadata.items()}
    for key, value in rows.items():
        print(f"{key}: {_shortened(value)}")
    _print_dropped(source.dropped)
    print(f"read as {_library(source.arch)}. {verify.NOT_SHOWN}")


def _library(arch: str) -> str:
    return arch if arch.startswith(TIMM) else f"torchvision's {arch}"


def _shortened(value: object) -> str:
    """Format a value. Long lists, such as 1000 class names, are cut."""
    if isinstance(value, (list, tuple)) and len(value) > 10:
        return f"{', '.join(map(str, value[:3]))} and {len(value) - 3} more"
    return str(value)


def list_keys(source: Checkpoint, name: str, to: str) -> None:
    """Print the new name of each converted key, and the reason for each dropped key."""
    numbered = {key: torch.tensor(number) for number, key in enumerate(source.tensors)}
    contents = TARGETS[to].contents(dataclasses.replace(source, tensors=numbered))
    _print_source(source, name)
    new_names: dict[int, list[str]] = {}
    for key, number in contents.get("model", contents).items():
        if number.ndim == 0:  # the target's mean and std are not scalars
            new_names.setdefault(int(number), []).append(key)
    dropped = source.dropped
    if to == "detectron2":
        dropped = dropped | export.backbone_tensors(source)[1]
    for number, (key, tensor) in enumerate(source.tensors.items()):
        if number in new_names:
            print(f"{key} -> {', '.join(new_names[number])} {tuple(tensor.shape)}")
    for key, reason in dropped.items():
        print(f"{key} dropped: {reason}")


def convert(source: Checkpoint, name: str, target: str, to: str, check: bool) -> None:
    """Write the target, and print the verification result and the dropped keys.

    Args:
        source: checkpoint to convert.
        name: name of the source to print.
        target: file to write.
        to: format of the target, a key of `TARGETS`.
        check: whether to compare the features of source and target.

    Raises:
        UserError: the format does not support the architecture, or the features differ.
    """
    _print_source(source, name)
    contents, differences = _converted(source, to, check)
    if check:
        text = ", ".join(f"{stage} {value:.1e}" for stage, value in differences.items())
        print(f"verified, largest relative difference of features: {text}")
        print(f"compared with {_library(source.arch)}. {verify.NOT_SHOWN}")
    dropped = source.dropped
    if to == "detectron2":
        dropped = dropped | export.backbone_tensors(source)[1]
    _print_dropped(dropped)
    export.save(source, contents, to, target)
    print(f"wrote {target}: {len(contents.get('model', contents))} tensors")
    if "metadata" not in contents:
        print(
            f"--to {to} has no metadata: mean and std, class names and training settings are not "
            f"in {target}. Pass {source.statistics.options} where you load it."
        )


def convert_weights(
    source: str | Path,
    target: str | Path,
    to: str = "detectron2",
    *,
    force: bool = False,
    verify: bool = True,
    **options: Any,
) -> dict[str, float]:
    """Convert a network's weights to another format, and verify that its features are the same.

    The file is written atomically and read back. It contains the input statistics and the training
    metadata if its format has a place for them.

    Args:
        source: name, path or URL, as for `fetch_weights`.
        target: file to write, with a suffix of the format: `.pth` for `"detectron2"`.
        to: `"detectron2"`, `"torchvision"` (or timm, for its networks), `"robustness"` or
            `"safetensors"`.
        force: whether to overwrite the target.
        verify: whether to compare the features of both networks at every stage, for a fixed random
            image. Detectron2 is needed for its format.
        options: further arguments of `read_weights`, such as `statistics`.

    Returns:
        The largest difference of features at each stage, relative to their largest value. It is at
        most 1e-5. Without verification, the dictionary is empty.

    Raises:
        UserError: the source cannot be read, the format does not support the network, the features
            differ, or the target has a wrong suffix or exists.
    """
    check_target(target, to, force)
    found = read_weights(source, **options)
    warn_if_assumed(found.statistics, source)
    contents, differences = _converted(found, to, verify)
    export.save(found, contents, to, target)
    return differences


def _converted(source: Checkpoint, to: str, check: bool) -> tuple[dict, dict[str, float]]:
    """Return the contents of the target, and the differences of features if `check` is true."""
    contents = TARGETS[to].contents(source)
    if not check:
        return contents, {}
    arithmetic.set_tf32(False)
    return contents, _verify(source, contents, to)


def _print_dropped(dropped: dict[str, str]) -> None:
    for reason, number in sorted(Counter(dropped.values()).items()):
        print(f"dropped {number}: {reason}")


def _print_source(source: Checkpoint, name: str) -> None:
    announce(source.statistics, name)
    print(f"{name}: {source.arch}, {source.layout} layout, sha256 {source.sha256[:16]}...")


def _verify(source: Checkpoint, contents: dict, to: str) -> dict[str, float]:
    """Return the largest relative difference between source and target features at each stage."""
    if to == "detectron2":
        # Import here, because the other formats work without Detectron2.
        from robust_backbones.detection.verify import verify_backbone

        return verify_backbone(source, contents["model"])
    expected = arch_row(source.arch)
    converted = formats.unwrap(contents, "the converted file", expected=expected).tensors
    if any(not converted[key].equal(tensor) for key, tensor in source.tensors.items()):
        raise UserError("a tensor of the target differs from the source's.")
    image = verify.fixed_image(source.arch)
    both = (verify.network_features(source.arch, t, image) for t in (source.tensors, converted))
    return verify.compare_features(*both)
