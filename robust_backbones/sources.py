"""What a source of weights says about its network, and where the files of other libraries are."""

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from robust_backbones import zoo
from robust_backbones.archs import ARCHS, TIMM
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.files import read_json
from robust_backbones.core.input_statistics import PRESETS, ZOO, InputStatistics

SCHEMES = ("timm", "torchvision")


@dataclass(frozen=True)
class Stated:
    """What a source says about its network.

    Attributes:
        arch: architecture, as for `build_network`; None if unknown.
        statistics: input statistics; None if unknown.
        facts: further metadata that is recorded with the network, in plain JSON types, such as
            the `input_size` of its images in pixels and their `interpolation`.
    """

    arch: str | None = None
    statistics: InputStatistics | None = None
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class LibraryWeights:
    """Weights of torchvision or timm.

    Attributes:
        stated: what the library says about the network.
        url: URL of the file; empty for files on the Hub.
        hub: repository and file on the Hugging Face Hub; None for other servers.
        digest: first digits of the file's SHA-256; empty if unknown.
    """

    stated: Stated
    url: str = ""
    hub: tuple[str, str] | None = None
    digest: str = ""


def stated(source: str, path: Path) -> Stated:
    """Return what a source says about its network.

    Args:
        source: path, URL or name of weights, as the user gave it.
        path: local file of the weights. `HUB_CONFIGS` of a Hub repository are next to it.

    Raises:
        UserError: `source` names weights of a library that it does not have, or a CLIP with an
            image tower that timm cannot build; a configuration on the Hub is not JSON.
    """
    if model := zoo.known(source):
        return Stated(model.arch or None, model.statistics, model.facts)
    if source.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return of_library(source).stated
    if (repo := re.match(r"hf://timm/([\w.-]+)", source)) and find_spec("timm"):
        return of_library(f"timm://{repo[1]}").stated
    for name, reader in HUB_CONFIGS.items() if source.startswith("hf://") else ():
        if (file := path.with_name(name)).is_file():
            config = read_json(file)
            if isinstance(config, dict) and (found := reader(config, source)) != Stated():
                return found
    return Stated()


def of_library(source: str) -> LibraryWeights:
    """Find weights of a library.

    Args:
        source: `timm://NAME.TAG` or `torchvision://NAME.TAG`.

    Raises:
        UserError: the library has no such weights, or is not installed.
    """
    library, _, name = source.partition("://")
    return {"timm": _of_timm, "torchvision": _of_torchvision}[library](name)


def tag(source: str) -> str:
    """Return the tag of a library's weights, such as `fb_in1k`; empty for other sources."""
    found = re.fullmatch(r"(?:timm|torchvision|hf)://(?:timm/)?\w+\.([\w.]+)", source)
    return found[1] if found else ""


# Datasets by the words for them in tags.
_IMAGENETS = {
    "in1k": "imagenet",
    "imagenet1k": "imagenet",
    "in12k": "imagenet12k",
    "in21k": "imagenet21k",
    "inw21k": "imagenet21k",
    "in22k": "imagenet22k",
}
_OTHERS = re.compile(
    r"laion\w+|openai|webli|datacomp\w+|dfn\w+|metaclip2?|lvd\d+m|yfcc\d+m|jft|ig1b|cc12m|m3[08]m"
)


def training(tag: str) -> dict:
    """Return what the tag of a library's weights says about their training.

    Returns:
        The `method`, and the `dataset`: datasets in their order, joined by `+`. The `dataset` is
        absent if the tag does not name them. Empty for an empty tag.
    """
    words, datasets = tag.lower().split("_"), []
    for word in words:
        if word == "ft" and not datasets:  # fine-tuned, from unknown data
            break
        if word in _IMAGENETS or _OTHERS.fullmatch(word):
            datasets.append(_IMAGENETS.get(word, word))
    facts = {"dataset": "+".join(dict.fromkeys(datasets))} if datasets else {}
    method = "adversarial" if {"ap", "adv"} & {*words} else "standard"  # AdvProp
    return facts | {"method": method} if tag else {}


def _of_timm(name: str) -> LibraryWeights:
    # Libraries are imported where they are needed: they import torch, and command lines do not.
    from robust_backbones import timm_networks

    timm = timm_networks.library()
    names = timm.list_pretrained()
    if name not in names:
        raise UserError(
            f"timm {timm.__version__} has no weights '{name}'. "
            f"{choose_from(name, names, 'List all names: timm.list_pretrained()')}"
        )
    config = timm.get_pretrained_cfg(name)
    found = stated_by_timm(name.split(".")[0], config.to_dict())
    if config.hf_hub_id:
        repo = f"timm/{name}" if config.hf_hub_id == "timm/" else config.hf_hub_id
        return LibraryWeights(found, hub=(repo, config.hf_hub_filename or "model.safetensors"))
    return LibraryWeights(found, config.url)


def stated_by_timm(name: str, config: dict) -> Stated:
    """Return what timm's configuration of pretrained weights says about the network.

    Args:
        name: name of the network in timm, without a tag.
        config: timm's `pretrained_cfg` as a dictionary.
    """
    statistics = InputStatistics(tuple(config["mean"]), tuple(config["std"]), ZOO)
    facts = {key: config[key] for key in ("interpolation", "crop_pct") if config.get(key)}
    facts |= training(config.get("tag") or "")
    if size := config.get("input_size"):
        facts["input_size"] = size[-1]
    return Stated(_named(name), statistics, facts)


def _named(name: str) -> str:
    """Return the name of an architecture from its name in timm."""
    return name if name in ARCHS else TIMM + name


def _of_torchvision(name: str) -> LibraryWeights:
    from torchvision.models import get_model_weights

    arch, _, tag = name.partition(".")
    if arch not in ARCHS or arch == "wide_resnet50_4":  # the paper's, not torchvision's
        raise UserError(
            f"torchvision://{name}: '{arch}' is not supported. {choose_from(arch, ARCHS)}"
        )
    table = get_model_weights(arch)
    if tag not in table.__members__:
        raise UserError(
            f"torchvision has no weights '{tag}' for {arch}. Choose from "
            f"{', '.join(f'torchvision://{arch}.{one.name}' for one in table)}."
        )
    weights = table[tag]
    recipe = weights.transforms()
    facts = {
        "input_size": recipe.crop_size[0],
        "interpolation": recipe.interpolation.value,
        "crop_pct": round(recipe.crop_size[0] / recipe.resize_size[0], 3),
    } | training(tag)
    statistics = InputStatistics(tuple(recipe.mean), tuple(recipe.std), ZOO)
    digest = re.search(r"-([0-9a-f]{8})\.pth$", weights.url)
    return LibraryWeights(
        Stated(arch, statistics, facts), weights.url, digest=digest[1] if digest else ""
    )


def _of_timm_hub(config: dict, source: str) -> Stated:
    """Return what the `config.json` of a Hub repository says, as timm writes it."""
    pretrained = config.get("pretrained_cfg", {})
    if not isinstance(config.get("architecture"), str) or "mean" not in pretrained:
        return Stated()
    return stated_by_timm(config["architecture"], pretrained)


# Sizes of CLIP's ViTs in the names of timm, by width and width of one attention head.
_VIT_SIZES = {
    (256, 64): "xsmall",
    (512, 64): "medium",
    (640, 64): "betwixt",
    (768, 64): "base",
    (1024, 64): "large",
    (1280, 80): "huge",
    (1408, 88): "giant",
    (1664, 104): "gigantic",
}
# Keys of ViTs that are the same as timm's. Patches are dropped in training only.
_VIT_KEYS = {
    "image_size",
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "patch_dropout",
}


def _of_open_clip(config: dict, source: str) -> Stated:
    """Return what the `open_clip_config.json` of a Hub repository says about the image tower.

    Raises:
        UserError: the image tower differs from the timm networks.
    """
    model, images = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
    tower = model.get("vision_cfg")
    if not tower:
        return Stated()
    size = tower["image_size"]
    if name := tower.get("timm_model_name"):
        pool = tower.get("timm_pool", "avg")
        other = f"timm_pool '{pool}'" if pool else ""
    else:
        width, head = tower["width"], tower.get("head_width", 64)
        keys = sorted(tower.keys() - _VIT_KEYS)
        if (width, head) not in _VIT_SIZES:
            keys.append(f"width {width} with head_width {head}")
        other = ", ".join(keys)
        activation = "_quickgelu" if model.get("quick_gelu") else ""
        vit = _VIT_SIZES.get((width, head))
        name = f"vit_{vit}_patch{tower['patch_size']}_clip{activation}_{size}"
    if other:
        raise UserError(
            f"{source}: the image tower is not supported: its configuration has {other}, and no "
            "timm network matches it."
        )
    statistics = PRESETS["clip"].of(ZOO)
    if images.get("mean") and images.get("std"):
        statistics = InputStatistics(tuple(images["mean"]), tuple(images["std"]), ZOO)
    facts = {"interpolation": images.get("interpolation", "bicubic"), "input_size": size}
    return Stated(_named(name), statistics, facts | {"crop_pct": 1.0})


# Files that describe the network of a Hub repository.
HUB_CONFIGS = {"config.json": _of_timm_hub, "open_clip_config.json": _of_open_clip}
