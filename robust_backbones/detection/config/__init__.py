"""Our configuration keys, and a config file + overrides -> a checked configuration."""

import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from robust_backbones.core.eps import CONSTRAINTS, check_eps, parse_number
from robust_backbones.core.errors import UserError
from robust_backbones.core.resources import require_config
from robust_backbones.detection.backbone import BUILDERS, set_architecture
from robust_backbones.detection.config import files as config_files
from robust_backbones.detection.data import custom as own_data
from robust_backbones.detection.data import validate as data_check
from robust_backbones.detection.data.registry import check_dataset
from robust_backbones.detection.model_weights import local_weights
from robust_backbones.detection.training.adversarial import METHODS
from robust_backbones.detection.training.step import DTYPES


def add_robust_config(cfg: CfgNode) -> None:
    """Declare every key of ours, with its default. Call it on `get_cfg()` before merging a file;
    a second call changes nothing."""
    if "ROBUST" in cfg.MODEL:
        return
    cfg.MODEL.ROBUST = CfgNode()
    # Architecture of the backbone, one of robust_backbones.zoo.RESNETS, which sets DEPTH,
    # WIDTH_PER_GROUP, RES2_OUT_CHANNELS and STRIDE_IN_1X1 of MODEL.RESNETS. Empty: taken from
    # MODEL.WEIGHTS.
    cfg.MODEL.ROBUST.ARCH = ""
    # "sync": batch statistics over all GPUs in body and pyramid, nothing frozen, statistics made
    # precise before each evaluation (the recipe of MoCo and its successors, for new pretrainings).
    # "": as MODEL.RESNETS.NORM, MODEL.FPN.NORM and MODEL.BACKBONE.FREEZE_AT say.
    cfg.MODEL.ROBUST.NORM = ""
    # Mini-batches per update: a batch of SOLVER.IMS_PER_BATCH images goes through in as many parts.
    cfg.SOLVER.ACCUMULATE = 1
    # With SOLVER.AMP.ENABLED: float16 (with loss scaling) or bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Decay per update of the averaged weights, which then are evaluated and saved; 0 for none.
    cfg.SOLVER.EMA = 0.0
    # Learn from attacked images: "free" (replays, no extra cost per update), "pgd" (STEPS more
    # backward passes per update); "" for none. See adversary.py.
    cfg.SOLVER.ADVERSARIAL = CfgNode()
    cfg.SOLVER.ADVERSARIAL.METHOD = ""
    cfg.SOLVER.ADVERSARIAL.CONSTRAINT = "linf"
    # Radius for pixels in [0, 1], such as 4/255; for l2 the norm over the resized image.
    cfg.SOLVER.ADVERSARIAL.EPS = 4 / 255
    # free: updates made of each mini-batch. They count in SOLVER.MAX_ITER.
    cfg.SOLVER.ADVERSARIAL.REPLAYS = 4
    # pgd: steps of the attack, each 2.5 EPS / STEPS long.
    cfg.SOLVER.ADVERSARIAL.STEPS = 3
    # A metric of the evaluation such as bbox/AP: the checkpoint where it was highest is kept as
    # model_best.pth. Chosen on DATASETS.TEST, so its value is too good; "" for none.
    cfg.TEST.BEST = ""
    # Your own data: NAME=coco:IMAGES:ANNOTATIONS.json or NAME=voc:ROOT:SPLIT. The names can stand
    # in TRAIN and TEST. robust-backbones train --dataset-train, --dataset-test fill it in.
    cfg.DATASETS.OWN = []
    # Names of the classes of OWN, in the order of their numbers. Empty: as found in the files.
    cfg.DATASETS.CLASSES = []
    # Faulty boxes of OWN: False refuses to train; True cuts boxes at the image's edge and leaves
    # out objects without area, in training and in evaluation.
    cfg.DATASETS.REPAIR = False
    # Data order, augmentation, initial heads and sampling follow from it. Detectron2's -1, another
    # one every time, is refused: a run must be repeatable.
    cfg.SEED = max(cfg.SEED, 0)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), datasets: dict | None = None
) -> CfgNode:
    """Defaults <- YAML file (and its `_BASE_`s) <- `KEY VALUE` overrides, then every check that
    needs no data. `OUTPUT_DIR` is `output/<name of the file>` unless it is given.

    Args:
        path: a file, or the name of one that comes with the packages; see `config_file`.
        datasets: `{"TRAIN" or "TEST": [NAME or NAME=DATA]}`, in place of the config's where the
            list is not empty; see `own_data`. Training data alone are not evaluated on others'.

    Raises:
        UserError: missing or broken file, unknown key, wrong type, or a contradiction between keys.
    """
    cfg = get_cfg()
    add_robust_config(cfg)
    defaults, path = _flat(cfg), require_config(path)
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs; '{overrides[-1]}' has no value.")
    try:
        given = config_files.read(path, cfg.VERSION)
        _numbers_as_floats(given, cfg)
        cfg.merge_from_other_cfg(given)
        cfg.merge_from_list(_with_floats(cfg, overrides))
    except UserError:
        raise
    except config_files.WRONG as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if found := re.search(r"Non-existent (?:config )?key: ([\w.]+)", text):
            text = f"{found[1]}: no such configuration key{_nearest(cfg, found[1])}"
        raise UserError(f"{path} or overrides: {text}") from None
    for key, value in _flat(cfg).items():
        if value is None and defaults.get(key) is not None:
            none = ', or "" for none' if isinstance(defaults[key], str) else ""
            raise UserError(f"{path} or overrides: {key} has no value; give one{none}.")
    datasets = {split: chosen for split, chosen in (datasets or {}).items() if chosen}
    if "TRAIN" in datasets:
        cfg.DATASETS.TEST = ()
    for split, chosen in datasets.items():
        cfg.DATASETS[split] = tuple(text.split("=")[0] for text in chosen)
        cfg.DATASETS.OWN = [*cfg.DATASETS.OWN, *filter(own_data.is_own, chosen)]
    if cfg.OUTPUT_DIR == get_cfg().OUTPUT_DIR:
        cfg.OUTPUT_DIR = f"output/{path.stem}"  # two configs never share a folder
    if cfg.SEED < 0:
        raise UserError(f"SEED is {cfg.SEED}; give 0 or more, so that the run can be repeated.")
    if cfg.MODEL.BACKBONE.NAME in BUILDERS:
        _refuse_default_weights(cfg)
        set_architecture(cfg)
    return cfg


def _with_floats(cfg: CfgNode, overrides: Sequence[str]) -> list[str]:
    """Write `1` as `1.0` and `4/255` as a decimal where a key is a float. yacs refuses integers."""
    found = list(overrides)
    for index in range(0, len(found), 2):
        node = cfg
        for part in found[index].split("."):
            node = node.get(part) if isinstance(node, CfgNode) else None
        if isinstance(node, float) and _NUMBER.fullmatch(str(found[index + 1])):
            found[index + 1] = repr(parse_number(str(found[index + 1])))
    return found


_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(/[1-9]\d*)?")


def _numbers_as_floats(given: CfgNode, defaults: CfgNode) -> None:
    """The same for the values of a file."""
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _numbers_as_floats(value, default)
        elif isinstance(default, float) and not isinstance(value, (bool, float, CfgNode)):
            if _NUMBER.fullmatch(str(value)):
                given[key] = parse_number(str(value))


def _flat(cfg: CfgNode) -> dict:
    from robust_backbones.detection.training.trainer import (
        flatten,  # it imports Detectron2's engine
    )

    return flatten(cfg, ".")


def _nearest(cfg: CfgNode, key: str) -> str:
    near = difflib.get_close_matches(key, _flat(cfg), n=2, cutoff=0.8)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _refuse_default_weights(cfg: CfgNode) -> None:
    """Detectron2's default weights are Caffe's: BGR, other statistics, another stride."""
    if "ImageNetPretrained/MSRA" in cfg.MODEL.WEIGHTS:
        raise UserError(
            f"MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}', made for BGR images; give a file that "
            'robust-backbones convert wrote, or "" to start from random weights.'
        )


def check_inputs(cfg: CfgNode, train: bool, resume: bool = False) -> None:
    """Check what must lie on disk before a run starts: data sets and weights.

    Weights with a URL or a published name are fetched here, before the processes of the run start;
    the classes of own data are found here, and the heads' number of classes set.

    Raises:
        UserError: names the file or data set, where it was looked for and what to do.
    """
    if not cfg.OUTPUT_DIR or Path(cfg.OUTPUT_DIR).is_file():
        raise UserError(f"OUTPUT_DIR is '{cfg.OUTPUT_DIR}'; give the name of a folder.")
    own_data.prepare(cfg, train)
    names = [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]
    for name in names:
        check_dataset(name)
        if MetadataCatalog.get(name).get("source") is not None:
            found = data_check.annotations_of(name)
            data_check.refuse(name, found, cfg.DATASETS.REPAIR)
            if train and name in cfg.DATASETS.TRAIN:
                data_check.refuse_untrainable(name, found, cfg.MODEL.MASK_ON)
    if train:
        _check_training(cfg)
    goes_on = (
        resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").is_file()
    )  # with weights of its own
    if cfg.MODEL.WEIGHTS and not goes_on:
        local_weights(cfg.MODEL.WEIGHTS)


# Where a meta-architecture of Detectron2's has its number of classes.
HEADS = {"GeneralizedRCNN": "ROI_HEADS", "RetinaNet": "RETINANET"}


def _check_training(cfg: CfgNode) -> None:
    """Refuse values that Detectron2 would stumble over later, or never."""
    solver = cfg.SOLVER
    reference, attack = solver.REFERENCE_WORLD_SIZE, solver.ADVERSARIAL
    wrong = {
        "DATASETS.TRAIN": (cfg.DATASETS.TRAIN, not cfg.DATASETS.TRAIN, "at least one data set"),
        "SOLVER.MAX_ITER": (solver.MAX_ITER, solver.MAX_ITER < 1, "at least 1"),
        "SOLVER.REFERENCE_WORLD_SIZE": (
            reference,
            reference < 0 or reference and solver.IMS_PER_BATCH % reference,
            f"0 or a divisor of SOLVER.IMS_PER_BATCH, {solver.IMS_PER_BATCH}",
        ),
        "SOLVER.ACCUMULATE": (
            solver.ACCUMULATE,
            solver.ACCUMULATE < 1 or solver.IMS_PER_BATCH % solver.ACCUMULATE,
            f"a divisor of SOLVER.IMS_PER_BATCH, {solver.IMS_PER_BATCH}",
        ),
        "SOLVER.AMP.DTYPE": (solver.AMP.DTYPE, solver.AMP.DTYPE not in DTYPES, " or ".join(DTYPES)),
        "SOLVER.ADVERSARIAL.METHOD": (
            attack.METHOD,
            attack.METHOD not in METHODS,
            f"one of {METHODS}",
        ),
        "SOLVER.ADVERSARIAL.CONSTRAINT": (
            attack.CONSTRAINT,
            attack.CONSTRAINT not in CONSTRAINTS,
            " or ".join(CONSTRAINTS),
        ),
        "SOLVER.ADVERSARIAL.EPS": (
            attack.EPS,
            not 0 < attack.EPS < math.inf,
            "a finite number above 0",
        ),
        "SOLVER.ADVERSARIAL.REPLAYS": (attack.REPLAYS, attack.REPLAYS < 1, "at least 1"),
        "SOLVER.ADVERSARIAL.STEPS": (attack.STEPS, attack.STEPS < 1, "at least 1"),
        "SOLVER.EMA": (solver.EMA, not 0 <= solver.EMA < 1, "at least 0 and below 1"),
        "DATALOADER.NUM_WORKERS": (
            cfg.DATALOADER.NUM_WORKERS,
            cfg.DATALOADER.NUM_WORKERS < 0,
            "at least 0",
        ),
    }
    for key, (value, bad, allowed) in wrong.items():
        if bad:
            raise UserError(f"{key} is {value}; it must be {allowed}.")
    if attack.METHOD:
        check_eps("SOLVER.ADVERSARIAL.EPS", attack.CONSTRAINT, attack.EPS)
    for name in cfg.DATASETS.TRAIN:
        classes = MetadataCatalog.get(name).get("thing_classes")
        heads = HEADS.get(cfg.MODEL.META_ARCHITECTURE)
        if classes and heads and len(classes) != (found := cfg.MODEL[heads].NUM_CLASSES):
            raise UserError(
                f"MODEL.{heads}.NUM_CLASSES is {found}, but data set '{name}' has {len(classes)} "
                f"classes; set it to {len(classes)}."
            )


def set_device(cfg: CfgNode, num_gpus: int, num_machines: int = 1) -> str | None:
    """Put the model on the CPU where there is no GPU; returns what to tell the user, if anything.

    Raises:
        UserError: more GPUs are asked for than there are, or several machines without any.
    """
    found = torch.cuda.device_count()
    if num_gpus > max(found, 1):
        raise UserError(
            f"--num-gpus {num_gpus}, but this machine has {found or 'none'}; "
            + ("ask for at most that." if found else "leave it out to run on the CPU.")
        )
    if num_machines > 1 and not found:
        raise UserError(f"--num-machines {num_machines} needs GPUs, and this machine has none.")
    if found == 0 and cfg.MODEL.DEVICE == "cuda":
        cfg.MODEL.DEVICE = "cpu"
        return "No GPU found: running on the CPU."
    return None
