"""timm networks: building, and renaming their tensors from other formats.

timm is an extra, so other modules import it through `library`, or after calling it.
"""

import importlib.util
import inspect
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from robust_backbones.archs import FAMILIES, TIMM, Arch, Family
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.extras import missing
from robust_backbones.core.input_statistics import ZOO, InputStatistics
from robust_backbones.meta_device import meta_device


def library() -> Any:
    """Import timm, in which our own networks are registered too.

    Raises:
        UserError: timm is not installed.
    """
    if not installed():
        raise UserError(missing("timm", "timm"))
    import timm

    from robust_backbones import timm_additions  # noqa: F401  registers our own networks

    return timm


def installed() -> bool:
    """Return whether timm can be imported."""
    return importlib.util.find_spec("timm") is not None


def has(name: str) -> bool:
    """Return whether timm is installed and has a network of this name."""
    return installed() and library().is_model(name)


def build(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a timm network with random weights, for images of any size that it can process.

    Args:
        arch: `timm:NAME`.
        num_classes: number of outputs of the last layer.
        options: further arguments of the network, such as `drop_path_rate`.

    Raises:
        UserError: timm is not installed, has no network of this name, or the network has no such
            option.
    """
    timm, name = library(), check_name(arch)
    if unknown := set(options) - arguments(name):
        raise UserError(f"{arch} has no {', '.join(sorted(unknown))}. Omit it.")
    sizes = {"dynamic_img_size": True, "strict_img_size": False}  # accept images of any size
    # They do not change the tensors, nor the features of images of the network's own size.
    accepted = {option: value for option, value in sizes.items() if option in arguments(name)}
    return timm.create_model(name, num_classes=num_classes, **accepted, **options)


def check_name(arch: str) -> str:
    """Return the name of a network in timm.

    Raises:
        UserError: timm is not installed, or has no network of this name.
    """
    timm, name = library(), arch.removeprefix(TIMM)
    if "." in name or not timm.is_model(name):  # a tag names weights, not a network
        names = choose_from(name, timm.list_models(), "List all names: timm.list_models()")
        raise UserError(f"timm {timm.__version__} has no network '{name}'. {names}")
    return name


@cache
def arguments(arch: str) -> frozenset[str]:
    """Return the names of the arguments with which a timm network can be built."""
    with meta_device():
        network = library().create_model(check_name(arch))
    classes = type(network).__mro__  # a subclass may pass its arguments on
    return frozenset(name for one in classes for name in inspect.signature(one).parameters)


def check_size(arch: str, size: int) -> None:
    """Check that a timm network can process images of a size.

    Args:
        arch: architecture. Networks of torchvision are not checked.
        size: height and width of the images in pixels.

    Raises:
        UserError: the network rejects the size. The message has timm's reason.
    """
    if not arch.startswith(TIMM):
        return
    with meta_device():
        network = build(arch, 2).eval()
        try:
            network(torch.empty(1, 3, size, size))
        except NotImplementedError:  # an operation without shape inference
            return
        except (AssertionError, RuntimeError, ValueError) as error:
            own = network.pretrained_cfg["input_size"][-1]  # type: ignore[index]
            raise UserError(
                f"--image-size {size}: {arch} does not accept images of this size ({error}). Its "
                f"own size is {own}. Choose --image-size {own}, or a multiple of its patches."
            ) from None


@cache
def row(arch: str) -> Arch:
    """Describe a timm network: its last layer and the dimension of its features.

    Raises:
        UserError: timm is not installed, has no network of this name, or the network's last layer
            is not one linear layer.
    """
    with meta_device():
        network: Any = build(arch, 1000)
    head = network.pretrained_cfg["classifier"]
    last = network.get_submodule(head) if isinstance(head, str) else None
    if not isinstance(last, nn.Linear):
        kind = f"is a {type(last).__name__}" if last is not None else f"is several: {head}"
        raise UserError(
            f"{arch}: its last layer {kind}. The last layer must be a single linear layer."
        )
    return Arch(head, next(iter(network.state_dict())), last.in_features)


def statistics(arch: str) -> InputStatistics:
    """Return the input statistics that timm states for a network's default weights."""
    config = library().get_pretrained_cfg(check_name(arch))
    return InputStatistics(tuple(config.mean), tuple(config.std), ZOO)


def families(tensors: dict[str, Tensor]) -> list[Family]:
    """Return the families that have a marker among the tensors."""
    return [row for row in FAMILIES.values() if any(m in tensors for m in row.markers)]


def renamed(arch: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
    """Rename the tensors of other formats by timm's own rules, such as the files of the authors.

    Args:
        arch: `timm:NAME`.
        tensors: tensors under names of another format.

    Returns:
        Tensors under timm's names, and the names that timm drops. None if timm cannot rename the
        tensors or would change values.
    """
    with meta_device():
        network = build(arch, 1000)
    rules = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rules is None:
        return None
    try:
        found = rules(dict(tensors), network)
    except Exception:  # timm's rules raise errors of any type for tensors of other networks
        return None
    places: dict[tuple[int, int], list[str]] = {}  # several names may share their values
    for name, tensor in tensors.items():
        places.setdefault(_place(tensor), []).append(name)
    for name, tensor in found.items():
        if (names := places.get(_place(tensor))) is None:
            return None
        if names:  # the name of the same object comes first: timm has not reshaped it
            names.remove(min(names, key=lambda old: (tensors[old] is not tensor, old != name)))
    return found, [name for names in places.values() for name in names]


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
