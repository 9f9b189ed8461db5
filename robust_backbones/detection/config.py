"""Declare this project's configuration keys, load configurations with overrides, and check them."""

import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from robust_backbones.core.eps import parse_number
from robust_backbones.core.errors import UserError, either, nearest
from robust_backbones.core.paths import expand
from robust_backbones.core.resources import config_file, require_config
from robust_backbones.core.results import flatten
from robust_backbones.core.workers import default_workers
from robust_backbones.core.yaml_entries import check_entries
from robust_backbones.detection.backbone import BUILDERS, set_architecture
from robust_backbones.detection.data import custom
from robust_backbones.detection.data.mapper import SEGMENTOR
from robust_backbones.detection.model_weights import named
from robust_backbones.zoo import SCHEME


def add_robust_config(cfg: CfgNode) -> None:
    """Add all keys of this project, with their default values, to a configuration.

    Call this function before merging a file. A second call changes nothing.

    Args:
        cfg: configuration, such as the output of Detectron2's `get_cfg()`. It is changed in place.
    """
    if "ROBUST" in cfg.MODEL:
        return
    cfg.MODEL.ROBUST = CfgNode()
    # Architecture of the backbone, one of robust_backbones.archs.RESNETS, or timm:NAME. A ResNet
    # sets DEPTH, WIDTH_PER_GROUP, RES2_OUT_CHANNELS and STRIDE_IN_1X1 of MODEL.RESNETS. If it is
    # empty, the architecture is detected from MODEL.WEIGHTS.
    cfg.MODEL.ROBUST.ARCH = ""
    # Largest probability of dropping a residual path in training. Only for timm networks.
    cfg.MODEL.ROBUST.DROP_PATH = 0.0
    # Whether the backward pass computes activations of the backbone again, which saves memory.
    # Only for timm networks.
    cfg.MODEL.ROBUST.CHECKPOINTING = False
    # "sync": SyncBN in the backbone and the FPN, no frozen layers, and precise BatchNorm statistics
    # before each evaluation. MoCo and later papers on pretraining use this recipe.
    # "": MODEL.RESNETS.NORM, MODEL.FPN.NORM and MODEL.BACKBONE.FREEZE_AT are used as they are.
    cfg.MODEL.ROBUST.NORM = ""
    # Source of MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, one of input_statistics.SOURCES. It is set
    # when the weights are read, and recorded in results. It is empty for random weights.
    cfg.MODEL.ROBUST.STATISTICS = ""
    # Detectron2's 4 processes are too few for a GPU, and hinder training on a CPU.
    device, gpus = ("cuda", torch.cuda.device_count()) if torch.cuda.is_available() else ("cpu", 1)
    cfg.DATALOADER.NUM_WORKERS = default_workers(device, gpus)
    # Number of gradient accumulation steps. A batch of SOLVER.IMS_PER_BATCH images is split into
    # this number of parts.
    cfg.SOLVER.ACCUMULATE = 1
    # Precision of training, one of robust_backbones.core.precision.PRECISIONS. Evaluations are
    # always float32. If it is empty, it is float16 if SOLVER.AMP.ENABLED is true, else float32.
    cfg.SOLVER.PRECISION = ""
    # Whether the weights and features of the detector have the memory format channels_last.
    cfg.SOLVER.CHANNELS_LAST = False
    # Whether to compile the backbone for training, with torch.compile. The first step takes
    # minutes.
    cfg.SOLVER.COMPILE = False
    # Optimizer, one of robust_backbones.detection.training.optimizer.OPTIMIZERS. AdamW does not
    # decay biases, scales, and the parameters that timm exempts, such as position embeddings.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Factor of the learning rate from each layer of the backbone to the layer before it. AdamW and
    # Only for timm networks. The stem is the first layer; the FPN and the heads follow the last.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Number of consecutive blocks of a stage that are one layer for LAYER_DECAY.
    cfg.SOLVER.LAYER_BLOCKS = 1
    # Decay per update of an exponential moving average of the weights. If it is above 0, the
    # averaged weights are evaluated and saved.
    cfg.SOLVER.EMA = 0.0
    # Method of adversarial training: "free" (replays each batch, at no extra cost per update),
    # "pgd" (needs STEPS more backward passes per update), or "" for standard training. See
    # training/adversarial.py.
    cfg.SOLVER.ADVERSARIAL = CfgNode()
    cfg.SOLVER.ADVERSARIAL.METHOD = ""
    # Norm of the perturbation, "linf" or "l2".
    cfg.SOLVER.ADVERSARIAL.CONSTRAINT = "linf"
    # Perturbation radius for pixels in [0, 1], such as 4/255. For l2, the norm is over the whole
    # resized image.
    cfg.SOLVER.ADVERSARIAL.EPS = 4 / 255
    # Number of updates per batch with "free". SOLVER.MAX_ITER counts every update.
    cfg.SOLVER.ADVERSARIAL.REPLAYS = 4
    # Number of attack steps with "pgd". Each step has the length 2.5 * EPS / STEPS.
    cfg.SOLVER.ADVERSARIAL.STEPS = 3
    # Metric of the evaluation, such as bbox/AP. The model with its highest value is saved as
    # model_best.pth. The model is selected on DATASETS.TEST, so this value is biased upwards. If
    # the key is empty, no best model is saved.
    cfg.TEST.BEST = ""
    # Values that become black and white, [MIN, MAX], in images with more than 8 bits per channel.
    # If the list is empty, such images are an error.
    cfg.INPUT.IMAGE_RANGE = []
    # Largest fraction of a random crop that one class may cover, for semantic segmentation. Up to
    # 10 crops are tried. Pixels without a label do not count.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Custom datasets, in the forms of robust_backbones.core.dataset_forms. Their names can be used
    # in TRAIN and TEST. Custom datasets that are listed in TRAIN or TEST are moved to this key.
    cfg.DATASETS.CUSTOM = []
    # Class names of the datasets in CUSTOM, in the order of the model's outputs. If the list is
    # empty, the names and their order are read from the annotation files.
    cfg.DATASETS.CLASSES = []
    # Whether to repair invalid boxes of the datasets in CUSTOM. If true, boxes are clipped at the
    # image border and objects with zero area are removed, in training and in evaluation. If false,
    # invalid boxes are an error.
    cfg.DATASETS.REPAIR = False
    # Fraction of the training images, in [0, 1), to evaluate on in place of DATASETS.TEST. The run
    # trains on the others. All runs hold out the same images; see data/subset.py.
    cfg.DATASETS.HELD_OUT = 0.0
    # The choice of SOLVER.BASE_LR, set only by --choose-lr: the chosen rate, the rates of all
    # candidates with their AP or mIoU on held-out images in percent (None: diverged), their
    # folders, and their DATASETS.HELD_OUT.
    cfg.SOLVER.CANDIDATES = CfgNode()
    cfg.SOLVER.CANDIDATES.CHOSEN = 0.0
    cfg.SOLVER.CANDIDATES.RATES = []
    cfg.SOLVER.CANDIDATES.APS = []
    cfg.SOLVER.CANDIDATES.RUNS = []
    cfg.SOLVER.CANDIDATES.HELD_OUT = 0.0
    # Seed for data order, augmentation, initialization and sampling. Detectron2's default, -1,
    # means a random seed. This value is not allowed, because runs must be repeatable.
    cfg.SEED = max(cfg.SEED, 0)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), datasets: dict | None = None
) -> CfgNode:
    """Merge defaults, a YAML file with its `_BASE_`s, and overrides, and check the configuration.

    If neither the file nor the overrides set `OUTPUT_DIR`, it becomes `output/<name of the file>`.

    Args:
        path: config file, or the name of a packaged config; see `config_file`.
        overrides: flat list of `KEY VALUE` pairs.
        datasets: datasets that replace the datasets of the config and the overrides, `{"TRAIN" or
            "TEST": [registered or custom dataset]}`. If only training data are given, the run does
            not evaluate, unless the overrides contain `DATASETS.TEST`.

    Raises:
        UserError: the file is missing or invalid, a key is unknown, a value has the wrong type, or
            keys contradict each other.
    """
    cfg = get_cfg()
    add_robust_config(cfg)
    defaults, path = flatten(cfg), require_config(path)
    candidates = cfg.SOLVER.CANDIDATES.clone()
    if len(overrides) % 2:
        pair = overrides[-1].replace("=", " ", 1)
        fix = (
            f"Did you mean {pair}?"
            if "=" in overrides[-1]
            else "Give KEY VALUE pairs, such as SEED 1."
        )
        raise UserError(f"'{overrides[-1]}' has no value. {fix}")
    source: object = path
    try:
        given = read_yaml(path, cfg.VERSION)
        _numbers_as_floats(given, cfg)
        cfg.merge_from_other_cfg(given)
        source = "command line"
        cfg.merge_from_list(_with_floats(cfg, overrides))
    except UserError:
        raise
    except YAML_ERRORS as error:
        raise UserError(f"{source}: {_explain(error, cfg)}") from None
    for key, value in flatten(cfg).items():
        if value is None and defaults.get(key) is not None:
            empty = ', or "" for none' if isinstance(defaults[key], str) else ""
            source = "command line" if key in overrides[::2] else path
            raise UserError(f"{source}: {key} has no value. Give one{empty}.")
    datasets = {split: chosen for split, chosen in (datasets or {}).items() if chosen}
    if "TRAIN" in datasets and "DATASETS.TEST" not in overrides[::2]:
        cfg.DATASETS.TEST = ()
    for split, chosen in datasets.items():
        if f"DATASETS.{split}" in overrides[::2]:
            logging.getLogger(__name__).warning(
                "DATASETS.%s %s has no effect: the dataset option replaces it with %s",
                *(split, cfg.DATASETS[split], ", ".join(chosen)),
            )
        cfg.DATASETS[split] = tuple(chosen)
    custom.name_datasets(cfg)
    _expand_paths(cfg)
    # The config.yaml of a run contains the values of that run.
    cfg.MODEL.ROBUST.STATISTICS = ""
    cfg.SOLVER.CANDIDATES = candidates
    if cfg.OUTPUT_DIR == get_cfg().OUTPUT_DIR:
        cfg.OUTPUT_DIR = f"output/{path.stem}"  # each config gets its own folder
    if cfg.SEED < 0:
        raise UserError(f"SEED is {cfg.SEED}. It must be 0 or more, so that runs are repeatable.")
    if cfg.MODEL.BACKBONE.NAME in BUILDERS:
        _refuse_default_weights(cfg)
        weights = cfg.MODEL.WEIGHTS
        # Other weights must be downloaded first. `check_inputs` downloads them, because commands
        # that only draw annotations need no weights.
        if cfg.MODEL.ROBUST.ARCH or named(weights) or Path(weights).is_file():
            set_architecture(cfg, weights="")
    return cfg


def dataset_config(dataset: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Create a configuration without a detector, for commands that only read a dataset.

    Args:
        dataset: registered or custom dataset, which becomes `DATASETS.TEST`.
        overrides: flat list of `KEY VALUE` pairs.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    cfg = get_cfg()
    add_robust_config(cfg)
    merge_overrides(cfg, overrides)
    cfg.DATASETS.TEST = (dataset,) if dataset else ()
    custom.name_datasets(cfg)
    return cfg


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Merge `KEY VALUE` pairs into a configuration that may have keys of other projects.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    try:
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"overrides: {_explain(error, cfg)}") from None
    _expand_paths(cfg)


def _expand_paths(cfg: CfgNode) -> None:
    """Replace `~` and environment variables in the paths of a configuration, in place.

    Custom datasets are expanded when they are parsed.
    """
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = map(expand, (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS))
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        cfg.DATASETS[key] = tuple(map(expand, cfg.DATASETS[key]))


# Type of a configuration value -> its description in messages.
_KINDS = {"int": "an integer", "float": "a number", "bool": "True or False", "str": "a string"}
_KINDS |= {"tuple": "a list", "list": "a list"}
_MISMATCH = re.compile(
    r"Type mismatch \(<class '(\w+)'> vs\. .*\) "
    r"with values \((.*) vs\. (.*)\) for config key: (\S+)"
)


def _explain(error: Exception, cfg: CfgNode) -> str:
    """Rewrite an error message of yacs to state the value and the allowed type."""
    # The text of a KeyError is in quotes. Errors of PyYAML and of files have several arguments.
    text = str(error.args[0] if len(error.args) == 1 else error)
    text = " ".join(text.split()) or type(error).__name__
    if found := re.search(r"Non-existent (?:config )?key: ([\w.]+)", text):
        return f"{found[1]} is not a configuration key{_similar(cfg, found[1])}"
    if found := _MISMATCH.search(text):
        kind, example, value, key = found.groups()
        return f"{key} is {value}. It must be {_KINDS.get(kind, kind)}, such as {example}."
    return text


class _PlainYaml(CfgNode):
    """A configuration that loads files and their `_BASE_`s as plain YAML.

    Detectron2's own loader would execute YAML tags that name Python objects.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        if "://" not in filename:
            filename = str(config_file(filename))  # for `_BASE_: robust-backbones/base/voc.yaml`
        with super()._open_cfg(filename) as file:
            text = file.read()
        node = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{filename} is not a config. It must be a mapping of keys to values.")
        check_entries(filename, node)
        return io.StringIO(text)


# Exceptions that fvcore, yacs and PyYAML raise for invalid files and values.
YAML_ERRORS = (
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    SyntaxError,
    RecursionError,
    MemoryError,
    yaml.YAMLError,
    OSError,
)


def read_yaml(path: Path, version: int) -> CfgNode:
    """Read a config file and its `_BASE_`s.

    Args:
        path: config file.
        version: supported config version of Detectron2.

    Raises:
        UserError: the file is not a mapping, is too large, or has a different version.
        YAML_ERRORS: the file is not YAML, or a `_BASE_` is invalid.
    """
    try:
        found = _PlainYaml.load_yaml_with_base(str(path), allow_unsafe=False)
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"a _BASE_ of {path}: {error}") from None
    if found.get("VERSION", version) != version:
        raise UserError(f"{path}: VERSION is {found['VERSION']}. Only {version} is supported.")
    return CfgNode(found)


_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(/[1-9]\d*)?")


def _with_floats(cfg: CfgNode, overrides: Sequence[str]) -> list[str]:
    """Replace numbers such as `1` and `4/255` with decimals if the value of their key is a float.

    yacs accepts only floats for these keys.
    """
    found = list(overrides)
    for index in range(0, len(found), 2):
        node = cfg
        for part in found[index].split("."):
            node = node.get(part) if isinstance(node, CfgNode) else None
        if isinstance(node, float) and _NUMBER.fullmatch(str(found[index + 1])):
            found[index + 1] = repr(parse_number(str(found[index + 1])))
    return found


def _numbers_as_floats(given: CfgNode, defaults: CfgNode) -> None:
    """Convert numbers such as `1` and `4/255` to floats, in place, if the default is a float."""
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _numbers_as_floats(value, default)
        elif isinstance(default, float) and type(value) in (int, str):
            if _NUMBER.fullmatch(str(value)):
                given[key] = parse_number(str(value))


def _similar(cfg: CfgNode, key: str) -> str:
    """Return the end of the error message about an unknown key.

    It suggests keys with similar names, or else lists all keys of the section.
    """
    keys = flatten(cfg)
    if near := nearest(key, keys, 2, least=0.8):
        return f". Did you mean {either(near)}?"
    section = key.rpartition(".")[0]
    own = [name.removeprefix(f"{section}.") for name in keys if name.startswith(f"{section}.")]
    return f". {section} has {', '.join(own)}." if section and own else "."


def _refuse_default_weights(cfg: CfgNode) -> None:
    """Reject Detectron2's default weights, which were converted from Caffe.

    They require BGR images, other pixel statistics and strides in the 1x1 convolutions.
    """
    if "ImageNetPretrained/MSRA" in cfg.MODEL.WEIGHTS:
        raise UserError(
            f"MODEL.WEIGHTS is '{cfg.MODEL.WEIGHTS}', which requires BGR images. Give a published "
            f"model such as {SCHEME}resnet50_l2_eps3, a file from robust-backbones convert, or "
            '"" for random weights.'
        )


# Meta architecture -> section of MODEL that contains the number of classes.
_HEADS = {"GeneralizedRCNN": "ROI_HEADS", "RetinaNet": "RETINANET", SEGMENTOR: "SEM_SEG_HEAD"}


def num_classes(cfg: CfgNode) -> tuple[str, int] | None:
    """Return the key and the value of the heads' number of classes; None for unknown heads."""
    heads = _HEADS.get(cfg.MODEL.META_ARCHITECTURE)
    return (f"MODEL.{heads}.NUM_CLASSES", cfg.MODEL[heads].NUM_CLASSES) if heads else None
