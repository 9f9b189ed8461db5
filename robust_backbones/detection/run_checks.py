"""Check the data, weights, settings and devices of a run before it starts."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from robust_backbones import arithmetic
from robust_backbones.compilation import check_compile
from robust_backbones.core.eps import CONSTRAINTS, check_eps
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.precision import PRECISIONS
from robust_backbones.core.results import flatten
from robust_backbones.detection.backbone import BUILDERS, check_arch, set_architecture
from robust_backbones.detection.config import YAML_ERRORS, num_classes, read_yaml
from robust_backbones.detection.data import custom, validate
from robust_backbones.detection.data.catalog import annotations_of, has_annotation_files
from robust_backbones.detection.data.mapper import SEGMENTOR, decoding_of
from robust_backbones.detection.data.registry import check_dataset
from robust_backbones.detection.model_weights import arch_of, local_weights, named, stated_arch
from robust_backbones.detection.training.adversarial import METHODS
from robust_backbones.detection.training.optimizer import OPTIMIZERS
from robust_backbones.detection.training.step import precision_of

DETECTORS = ("GeneralizedRCNN", "RetinaNet")  # meta architectures that need boxes


def check_inputs(
    cfg: CfgNode, train: bool, resume: bool = False, overrides: Sequence[str] = ()
) -> None:
    """Check datasets and weights before a run starts.

    If `DATASETS.HELD_OUT` is set, a training run does not use `DATASETS.TEST`, which becomes empty.
    Weights with a URL or a published name are downloaded here, before processes are spawned. The
    heads' number of classes is set from the custom datasets.

    Args:
        cfg: configuration, changed in place.
        train: whether the run uses `DATASETS.TRAIN`.
        resume: whether the run resumes from its last checkpoint, if the checkpoint exists.
        overrides: `KEY VALUE` pairs that the user gave. A number of classes among them that differs
            from the custom datasets is an error; the number in the config file is replaced.

    Raises:
        UserError: a dataset or file is missing or invalid, or contradicts the overrides.
    """
    if not cfg.OUTPUT_DIR or Path(cfg.OUTPUT_DIR).is_file():
        raise UserError(f"OUTPUT_DIR is '{cfg.OUTPUT_DIR}'. Give the name of a folder.")
    if "://" in cfg.OUTPUT_DIR:
        raise UserError(f"OUTPUT_DIR is '{cfg.OUTPUT_DIR}', a URL. Give a local folder.")
    decoding_of(cfg)
    if not 0 <= cfg.DATASETS.HELD_OUT < 1:
        raise UserError(f"DATASETS.HELD_OUT is {cfg.DATASETS.HELD_OUT}. It must be in [0, 1).")
    if train and cfg.DATASETS.HELD_OUT:
        cfg.DATASETS.TEST = ()  # the held-out images replace it
    custom.prepare_custom(cfg, train, overrides[::2])
    names = [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]
    classes: dict[str, list[str] | None] = {}
    for name in names:
        try:
            check_dataset(name)
        except UserError as error:
            raise UserError(f"{_datasets_of_run(cfg) if resume else ''}{error}") from None
        if train or cfg.MODEL.WEIGHTS:
            _check_kind(cfg, name)
        trained, scored = train and name in cfg.DATASETS.TRAIN, name in cfg.DATASETS.TEST
        found = _check_annotations(cfg, name, trained, scored)
        classes[name] = MetadataCatalog.get(name).get("thing_classes") or found
    _check_classes(classes)
    if train:
        _check_training(cfg)
    weights, last = cfg.MODEL.WEIGHTS, Path(cfg.OUTPUT_DIR, "last_checkpoint")
    if resume and last.is_file():  # the last checkpoint replaces MODEL.WEIGHTS
        weights = str(last.with_name(last.read_text(encoding="utf-8").strip()))
    local = local_weights(weights) if weights else None
    if cfg.MODEL.BACKBONE.NAME in BUILDERS and (weights or train):
        if local and cfg.MODEL.ROBUST.ARCH:
            check_arch(cfg, weights, stated_arch(local))
        cfg.MODEL.ROBUST.ARCH = cfg.MODEL.ROBUST.ARCH or arch_of(weights)
        set_architecture(cfg, weights if named(weights) else str(local or ""))


def _check_kind(cfg: CfgNode, name: str) -> None:
    """Reject a dataset with semantic masks for a detector, and one with objects for a segmenter."""
    kind, meta = MetadataCatalog.get(name).get("evaluator_type"), cfg.MODEL.META_ARCHITECTURE
    if kind == "sem_seg" and meta in DETECTORS:
        raise UserError(
            f"dataset '{name}' has semantic masks, but MODEL.META_ARCHITECTURE is {meta}. Use a "
            "config for semantic segmentation, such as own_data_semantic_fpn.yaml."
        )
    if kind in ("coco", "pascal_voc") and meta == SEGMENTOR:
        raise UserError(
            f"dataset '{name}' has objects, but MODEL.META_ARCHITECTURE is {meta}, which needs "
            "semantic masks. Give NAME=mask:IMAGES:MASKS, or use a detector config."
        )


def _check_annotations(cfg: CfgNode, name: str, trained: bool, scored: bool) -> list[str] | None:
    """Reject datasets in COCO's or VOC's format that cannot be used unchanged.

    Returns:
        The class names in the files; None for other formats.
    """
    if not has_annotation_files(name):
        return None
    found = annotations_of(name)
    validate.refuse_faults(name, found, cfg.DATASETS.REPAIR, cfg.MODEL.MASK_ON, scored)
    if trained:
        validate.refuse_untrainable(name, found, cfg.MODEL.MASK_ON)
    return found.classes


def _check_classes(classes: dict[str, list[str] | None]) -> None:
    """Reject datasets of a run that have different classes than the first, as far as known."""
    known = {name: list(found) for name, found in classes.items() if found}
    for name, found in known.items():
        first, wanted = next(iter(known.items()))
        if found != wanted:
            raise UserError(
                f"dataset '{name}' has different classes ({custom.shown(found)}) than dataset "
                f"'{first}' ({custom.shown(wanted)}). All datasets of a run must have the same, in "
                "the same order."
            )


def _datasets_of_run(cfg: CfgNode) -> str:
    """Return the fix for resuming the run in `OUTPUT_DIR` if it has custom datasets, or else ""."""
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    try:
        used = read_yaml(path, cfg.VERSION).get("DATASETS", {}).get("CUSTOM")
    except (UserError, *YAML_ERRORS):  # no run or a damaged file: only the dataset is reported
        used = None
    if not used:
        return ""
    return f"The run in {cfg.OUTPUT_DIR} uses {', '.join(used)}. Resume it with --config {path}. "


def _check_training(cfg: CfgNode) -> None:
    """Reject invalid values that Detectron2 accepts, or reports only after the run has started."""
    solver, attack = cfg.SOLVER, cfg.SOLVER.ADVERSARIAL
    batch, reference = solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE
    parts = solver.ACCUMULATE
    segments = cfg.MODEL.META_ARCHITECTURE == SEGMENTOR
    steps = sorted({step for step in solver.STEPS if isinstance(step, int) and step > 0})
    checks = {  # key -> (whether its value is invalid, the allowed values)
        "DATASETS.TRAIN": (not cfg.DATASETS.TRAIN, "at least one dataset"),
        "SOLVER.MAX_ITER": (solver.MAX_ITER < 1, "at least 1"),
        "SOLVER.STEPS": (list(solver.STEPS) != steps, f"positive and increasing: {tuple(steps)}"),
        "SOLVER.REFERENCE_WORLD_SIZE": (
            reference < 0 or reference and batch % reference,
            f"0 or a divisor of SOLVER.IMS_PER_BATCH, {batch}",
        ),
        "SOLVER.ACCUMULATE": (
            parts < 1 or batch % parts,
            f"a divisor of SOLVER.IMS_PER_BATCH, {batch}",
        ),
        "SOLVER.PRECISION": (
            solver.PRECISION not in ("", *PRECISIONS),
            f"empty or one of {', '.join(PRECISIONS)}",
        ),
        "SOLVER.ADVERSARIAL.METHOD": (
            attack.METHOD not in METHODS or attack.METHOD and segments,
            f"empty for a {SEGMENTOR}" if segments else f"one of {METHODS}",
        ),
        "SOLVER.ADVERSARIAL.CONSTRAINT": (
            attack.CONSTRAINT not in CONSTRAINTS,
            " or ".join(CONSTRAINTS),
        ),
        "SOLVER.ADVERSARIAL.EPS": (not 0 < attack.EPS < math.inf, "a finite number above 0"),
        "SOLVER.ADVERSARIAL.REPLAYS": (attack.REPLAYS < 1, "at least 1"),
        "SOLVER.ADVERSARIAL.STEPS": (attack.STEPS < 1, "at least 1"),
        "SOLVER.OPTIMIZER": (solver.OPTIMIZER not in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
        "SOLVER.LAYER_DECAY": (
            solver.LAYER_DECAY != 1
            and not (solver.OPTIMIZER == "AdamW" and 0 < solver.LAYER_DECAY < 1),
            "1, or in (0, 1] with SOLVER.OPTIMIZER AdamW",
        ),
        "SOLVER.LAYER_BLOCKS": (solver.LAYER_BLOCKS < 1, "at least 1"),
        "MODEL.ROBUST.DROP_PATH": (
            not 0 <= cfg.MODEL.ROBUST.DROP_PATH < 1,
            "at least 0 and below 1",
        ),
        "SOLVER.EMA": (not 0 <= solver.EMA < 1, "at least 0 and below 1"),
        "DATALOADER.NUM_WORKERS": (cfg.DATALOADER.NUM_WORKERS < 0, "at least 0"),
    }
    values = flatten(cfg)
    for key, (invalid, allowed) in checks.items():
        if invalid:
            raise UserError(f"{key} is {values[key]}. It must be {allowed}.")
    if solver.AMP.ENABLED and precision_of(cfg) != "float16":
        raise UserError(
            f"SOLVER.PRECISION is {solver.PRECISION}, but SOLVER.AMP.ENABLED True means float16. "
            "Set SOLVER.AMP.ENABLED False, or SOLVER.PRECISION float16."
        )
    arithmetic.check_precision(
        "SOLVER.PRECISION", precision_of(cfg), torch.device(cfg.MODEL.DEVICE)
    )
    if solver.COMPILE:
        check_compile("SOLVER.COMPILE", torch.device(cfg.MODEL.DEVICE))
    if attack.METHOD:
        check_eps("SOLVER.ADVERSARIAL.EPS", attack.CONSTRAINT, attack.EPS)
    for name in cfg.DATASETS.TRAIN:
        classes = MetadataCatalog.get(name).get("thing_classes")
        found = num_classes(cfg)
        if classes and found and len(classes) != found[1]:
            raise UserError(
                f"{found[0]} is {found[1]}, but dataset '{name}' has {len(classes)} classes. Set "
                f"it to {len(classes)}."
            )


def check_gpus(wanted: int) -> None:
    """Reject a number of processes for which this machine has too few GPUs.

    Raises:
        UserError: `wanted` exceeds the number of GPUs. One process runs without a GPU, too.
    """
    found = torch.cuda.device_count()
    if wanted > max(found, 1):
        raise UserError(
            f"--num-gpus {wanted}: this machine has "
            f"{counted(found, 'GPU', 'GPUs') if found else 'no GPUs'}. "
            + (f"Use --num-gpus {found}." if found else "Omit --num-gpus to run on the CPU.")
        )


def set_device(cfg: CfgNode, num_gpus: int, num_machines: int = 1) -> str | None:
    """Set `MODEL.DEVICE` to the CPU if this machine has no GPU.

    Args:
        cfg: configuration, changed in place.
        num_gpus: number of GPUs to use on this machine.
        num_machines: number of machines.

    Returns:
        A message for the user if the device was changed, or else None.

    Raises:
        UserError: `MODEL.DEVICE` is unknown, this machine has fewer GPUs than `num_gpus`, or no GPU
            for a run on several machines.
    """
    found = torch.cuda.device_count()
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}'. Use cuda, cuda:1 or cpu.") from None
    if device.type == "cuda" and (device.index or 0) >= max(found, 1):
        gpus = counted(found, "GPU", "GPUs")
        raise UserError(f"MODEL.DEVICE is {device}, but this machine has {gpus}. Use cuda.")
    check_gpus(num_gpus)
    if num_machines > 1 and not found:
        raise UserError(f"--num-machines {num_machines} requires GPUs, but this machine has none.")
    if found == 0 and device.type == "cuda":
        cfg.MODEL.DEVICE = "cpu"
        return "No GPU found: running on the CPU."
    return None
