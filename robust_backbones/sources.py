"""What a source of weights says about its network, and where the files of other libraries are."""

import json
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from robust_backbones import zoo
from robust_backbones.archs import ARCHS, TIMM
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.input_statistics import ZOO, InputStatistics

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
        path: local file of the weights. The `config.json` of a Hub repository is next to it.

    Raises:
        UserError: `source` names weights of a library that it does not have.
    """
    if model := zoo.known(source):
        return Stated(model.arch or None, model.statistics, model.facts)
    if source.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return of_library(source).stated
    if (repo := re.match(r"hf://timm/([\w.-]+)", source)) and find_spec("timm"):
        return of_library(f"timm://{repo[1]}").stated
    config = path.with_name("config.json")
    if source.startswith("hf://") and config.is_file():
        return _of_hub(json.loads(config.read_text(encoding="utf-8")))
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
    if size := config.get("input_size"):
        facts["input_size"] = size[-1]
    return Stated(name if name in ARCHS else TIMM + name, statistics, facts)


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
            f"torchvision has no weights '{tag}' of {arch}. Choose from "
            f"{', '.join(f'torchvision://{arch}.{one.name}' for one in table)}."
        )
    weights = table[tag]
    recipe = weights.transforms()
    facts = {
        "input_size": recipe.crop_size[0],
        "interpolation": recipe.interpolation.value,
        "crop_pct": round(recipe.crop_size[0] / recipe.resize_size[0], 3),
    }
    statistics = InputStatistics(tuple(recipe.mean), tuple(recipe.std), ZOO)
    digest = re.search(r"-([0-9a-f]{8})\.pth$", weights.url)
    return LibraryWeights(
        Stated(arch, statistics, facts), weights.url, digest=digest[1] if digest else ""
    )


def _of_hub(config: dict) -> Stated:
    """Return what the `config.json` of a Hub repository says, as timm writes it."""
    pretrained = config.get("pretrained_cfg", {})
    if not isinstance(config.get("architecture"), str) or "mean" not in pretrained:
        return Stated()
    return stated_by_timm(config["architecture"], pretrained)
