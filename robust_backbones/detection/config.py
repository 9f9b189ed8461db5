"""Our configuration keys, and a config file + overrides -> a checked configuration."""

from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from robust_backbones.detection.backbone import BUILDERS, set_architecture
from robust_backbones.detection.data import check_dataset
from robust_backbones.errors import UserError
from robust_backbones.zoo import SCHEME


def add_robust_config(cfg: CfgNode) -> None:
    """Declare every key of ours, with its default. Call it on `get_cfg()` before merging a file."""
    cfg.MODEL.ROBUST = CfgNode()
    # Which network the weights are of; decides DEPTH, WIDTH_PER_GROUP, RES2_OUT_CHANNELS and
    # STRIDE_IN_1X1 of MODEL.RESNETS. One of robust_backbones.zoo.RESNETS.
    cfg.MODEL.ROBUST.ARCH = "resnet50"
    # Data order, augmentation, initial heads and sampling follow from it. Detectron2's -1, another
    # one every time, is refused: a run must be repeatable.
    cfg.SEED = 0


def load_config(path, overrides: list[str] = ()) -> CfgNode:
    """Defaults <- YAML file (and its `_BASE_`s) <- `KEY VALUE` overrides, then every check that
    needs no data.

    Raises:
        UserError: missing or broken file, unknown key, wrong type, or a contradiction between keys.
    """
    cfg = get_cfg()
    add_robust_config(cfg)
    if not Path(path).is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml"))) or "none"
        raise UserError(f"config file '{path}' does not exist; in configs/ there are: {known}.")
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs; '{overrides[-1]}' has no value.")
    try:
        cfg.merge_from_file(str(path))
        cfg.merge_from_list(list(overrides))
    except KeyError as error:
        raise UserError(
            f"{error.args[0]}: no such configuration key (in {path} or overrides)."
        ) from None
    except (ValueError, AssertionError, AttributeError, yaml.YAMLError, OSError) as error:
        raise UserError(f"{path} or overrides: {' '.join(str(error).split())}") from None
    if cfg.SEED < 0:
        raise UserError(f"SEED is {cfg.SEED}; give 0 or more, so that the run can be repeated.")
    if cfg.MODEL.BACKBONE.NAME in BUILDERS:
        set_architecture(cfg)
        _refuse_default_weights(cfg)
    return cfg


def _refuse_default_weights(cfg: CfgNode) -> None:
    """Detectron2's default weights are Caffe's: BGR, other statistics, another stride."""
    if "ImageNetPretrained/MSRA" in cfg.MODEL.WEIGHTS:
        raise UserError(
            f"MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}', made for BGR images; give a file that "
            'tools/convert.py wrote, or "" to start from random weights.'
        )


def check_inputs(cfg: CfgNode, train: bool, resume: bool = False) -> None:
    """Check what must lie on disk before a run starts: data sets and weights.

    Weights with a URL or a published name are fetched here, before the processes of the run start.

    Raises:
        UserError: names the file or data set, where it was looked for and what to do.
    """
    if not cfg.OUTPUT_DIR or Path(cfg.OUTPUT_DIR).is_file():
        raise UserError(f"OUTPUT_DIR is '{cfg.OUTPUT_DIR}'; give the name of a folder.")
    names = (cfg.DATASETS.TRAIN if train else ()) + cfg.DATASETS.TEST
    for name in names:
        if name not in DatasetCatalog:
            near = [n for n in DatasetCatalog if n.split("_")[0] == name.split("_")[0]]
            raise UserError(
                f"data set '{name}' is not registered; known: {', '.join(near or DatasetCatalog)}."
            )
        check_dataset(name)
    if train:
        _check_training(cfg)
    goes_on = (
        resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").is_file()
    )  # with weights of its own
    if cfg.MODEL.WEIGHTS and not goes_on:
        _fetch_weights(cfg.MODEL.WEIGHTS)


def _check_training(cfg: CfgNode) -> None:
    """Refuse values that Detectron2 would stumble over later, or never."""
    solver = cfg.SOLVER
    reference = solver.REFERENCE_WORLD_SIZE
    wrong = {
        "DATASETS.TRAIN": (cfg.DATASETS.TRAIN, not cfg.DATASETS.TRAIN, "at least one data set"),
        "SOLVER.MAX_ITER": (solver.MAX_ITER, solver.MAX_ITER < 1, "at least 1"),
        "SOLVER.REFERENCE_WORLD_SIZE": (
            reference,
            reference < 0 or reference and solver.IMS_PER_BATCH % reference,
            f"0 or a divisor of SOLVER.IMS_PER_BATCH, {solver.IMS_PER_BATCH}",
        ),
        "DATALOADER.NUM_WORKERS": (
            cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.NUM_WORKERS < 0, "at least 0"
        ),
    }  # fmt: skip
    for key, (value, bad, allowed) in wrong.items():
        if bad:
            raise UserError(f"{key} is {value}; it must be {allowed}.")
    for name in cfg.DATASETS.TRAIN:
        classes = MetadataCatalog.get(name).get("thing_classes")
        found = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if classes and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and len(classes) != found:
            raise UserError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {found}, but data set '{name}' has {len(classes)} "
                f"classes; set it to {len(classes)}."
            )


def _fetch_weights(weights: str) -> None:
    try:
        found = Path(PathManager.get_local_path(weights)).is_file()
    except UserError:
        raise
    except (OSError, ValueError, AssertionError) as error:  # what Detectron2's handlers raise
        text = " ".join(str(error).split())
        raise UserError(f"MODEL.WEIGHTS '{weights}' cannot be had: {text}") from None
    if not found:
        raise UserError(
            f"MODEL.WEIGHTS '{weights}' does not exist; make it with: python tools/convert.py "
            f"CHECKPOINT {weights}, or give another file, a published model such as "
            f'{SCHEME}resnet50_l2_eps3, or "" to start from random weights.'
        )


def set_device(cfg: CfgNode, num_gpus: int, num_machines: int = 1) -> str | None:
    """Put the model on the CPU where there is no GPU; returns what to tell the user, if anything.

    Raises:
        UserError: more GPUs are asked for than there are, or several machines without any.
    """
    found = torch.cuda.device_count()
    if num_gpus > max(found, 1):
        raise UserError(
            f"--num-gpus {num_gpus}, but this machine has {found}; ask for at most that."
        )
    if num_machines > 1 and not found:
        raise UserError(f"--num-machines {num_machines} needs GPUs, and this machine has none.")
    if found == 0 and cfg.MODEL.DEVICE == "cuda":
        cfg.MODEL.DEVICE = "cpu"
        return "No GPU found: running on the CPU."
    return None
