"""Any supported classifier checkpoint -> torchvision-named tensors + metadata, and back to disk.

The only place where a foreign file is opened. Nothing in a file is executed unless the user asks.
"""

import pickle
import re
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_backbones.errors import UserError
from robust_backbones.files import atomic, sha256
from robust_backbones.zoo import ARCHS

FORMAT = "robust_backbones.classifier"  # marks our own files; see docs/formats.md
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A classifier's weights under torchvision names, and what is known about them.

    Attributes:
        tensors: `{torchvision name: float32 tensor}`, with the head (`fc.*`) if the file has
            one.
        arch: key of `zoo.ARCHS`, recognised from the tensors.
        layout: `"torchvision"`, `"robustness"` or `"robust_backbones"`.
        mean, std: per-channel RGB statistics for inputs in [0, 1]; None if the file has none.
        dropped: `{key in the file: why it is not among the tensors}`.
        metadata: what the file says about its training (eps, constraint, epoch, ...).
        sha256: digest of the file.
    """

    tensors: dict[str, Tensor]
    arch: str
    layout: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    sha256: str
    dropped: dict[str, str] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)


def build_network(arch: str, num_classes: int = 1000) -> nn.Module:
    """A torchvision-style network with random weights, normalised `(N, 3, H, W)` -> `(N, classes)`.

    Raises:
        UserError: `arch` is not a key of `zoo.ARCHS`.
    """
    if arch not in ARCHS:
        raise UserError(f"architecture '{arch}' is unknown; one of: {', '.join(ARCHS)}.")
    from torchvision.models import resnet  # a second of import that --help does not need

    row = ARCHS[arch]
    blocks = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[row.depth]
    block = resnet.BasicBlock if row.depth < 50 else resnet.Bottleneck
    return resnet.ResNet(block, blocks, num_classes, width_per_group=row.width_per_group)


def save(contents: dict, path) -> None:
    """Write `contents` with `torch.save`, atomically.

    Raises:
        UserError: the place cannot be written to.
    """
    with atomic(path) as temporary:
        torch.save(contents, temporary)


def read(path, arch: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Read a classifier checkpoint: torchvision, `robustness` or our own format.

    Args:
        path: the file.
        arch: what the caller believes it is; checked, never trusted.
        allow_pickle: execute the file's pickle code if it holds more than tensors. Only for files
            whose origin you trust.

    Raises:
        UserError: not a checkpoint, unsafe, of another architecture, or any key is missing,
            unknown, misshapen, not floating point or not finite.
    """
    path = Path(path)
    contents = load_file(path, allow_pickle)
    layout, state, metadata = _unwrap(contents, path)
    parts, dropped = _split(state, path)
    tensors = {name: _float32(name, tensor, path) for name, tensor in parts.net.items()}
    return Checkpoint(
        tensors=tensors,
        arch=_recognise(tensors, arch, path),
        layout=layout or ("robustness" if parts.mean is not None else "torchvision"),
        mean=_statistics(parts.mean),
        std=_statistics(parts.std),
        sha256=sha256(path),
        dropped=dropped,
        metadata=metadata,
    )


def load_file(path, allow_pickle: bool = False):
    """`torch.load` on the CPU, executing nothing unless `allow_pickle`.

    Raises:
        UserError: missing, not a checkpoint, or it would execute code (the class is named).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a checkpoint.")
    load = partial(torch.load, path, map_location="cpu")
    try:
        return (
            load(weights_only=False, pickle_module=_pickle())
            if allow_pickle
            else load(weights_only=True)
        )
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.<>]+)", str(error)):
            raise UserError(
                f"{path} would execute code ({found[1]}) when loaded; pass --allow-pickle only if "
                "you trust where it comes from."
            ) from None
        raise UserError(_not_a_checkpoint(path)) from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise UserError(_not_a_checkpoint(path)) from None


def _pickle():
    try:
        import dill  # what the `robustness` library writes with
    except ImportError:
        return pickle
    return dill


def _not_a_checkpoint(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return f"{path} is empty; fetch it again."
    if head.lstrip()[:1] == b"<":
        return f"{path} is an HTML page, not a checkpoint; the link it came from has died."
    size = path.stat().st_size
    return f"{path} is not a complete PyTorch checkpoint ({size} bytes); fetch it again."


def _unwrap(contents, path: Path) -> tuple[str | None, dict, dict]:
    """(layout if the file names it, state dict, metadata)."""
    if not isinstance(contents, dict):
        kind = type(contents).__name__
        raise UserError(f"{path} holds a {kind}, not a dictionary of tensors; save a state_dict.")
    own = contents.get("format") == FORMAT
    if own and contents.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {contents.get('version')}; this release reads "
            f"{FORMAT_VERSION}; install a newer one."
        )
    key = next((k for k in ("model", "state_dict") if isinstance(contents.get(k), dict)), None)
    state = contents[key] if key else contents
    bad = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if bad or not state:
        what = f"'{bad[0]}' is a {type(state[bad[0]]).__name__}" if bad else "it is empty"
        raise UserError(f"{path} is not a dictionary of tensors: {what}; save a state_dict.")
    if own:
        return "robust_backbones", state, contents["metadata"]
    simple = (int, float, str, bool)
    metadata = {k: v for k, v in contents.items() if key and isinstance(v, simple)}
    return None, state, metadata


@dataclass
class _Parts:
    net: dict[str, Tensor]
    mean: Tensor | None
    std: Tensor | None


# A wrapped network's parts, by prefix: the `robustness` library's (with its second, equal copy
# inside the attacker) and our own.
_COPY_PREFIX = "attacker."
_MEAN_KEYS = ("normalizer.new_mean", "attacker.normalize.new_mean", "normalize.mean")
_STD_KEYS = ("normalizer.new_std", "attacker.normalize.new_std", "normalize.std")
_NET_PREFIXES = ("module.", "model.", "net.")


def _split(state: dict[str, Tensor], path: Path) -> tuple[_Parts, dict[str, str]]:
    """Take the wrapping off: prefixes only where every key has them, copies only if equal."""
    state, prefix = _strip(state, ("module.",))
    statistics, net, copies = {}, {}, {}
    for key, tensor in state.items():
        if key in _MEAN_KEYS + _STD_KEYS:
            statistics[key] = tensor
        elif key.startswith(_COPY_PREFIX):
            copies[key] = tensor
        else:
            net[key] = tensor
    for key, tensor in copies.items():
        twin = net.get(key.removeprefix(_COPY_PREFIX))
        if twin is None or not torch.equal(twin, tensor):
            raise UserError(
                f"{path}: '{prefix}{key}' is not a copy of the network's own tensor; the file is "
                "not a plain robust classifier."
            )
    net, inner = _strip(net, _NET_PREFIXES)
    dropped = {prefix + key: "equal copy held by the attacker" for key in copies}
    dropped |= {prefix + key: "normalisation, kept as mean and std" for key in statistics}
    pick = lambda keys: next((statistics[k] for k in keys if k in statistics), None)  # noqa: E731
    return _Parts(net, pick(_MEAN_KEYS), pick(_STD_KEYS)), dropped


def _strip(state: dict, prefixes: tuple[str, ...]) -> tuple[dict, str]:
    """Remove leading prefixes as long as all keys share one; also say what was removed."""
    removed = ""
    while found := next((p for p in prefixes if state and all(k.startswith(p) for k in state)), ""):
        state = {key.removeprefix(found): tensor for key, tensor in state.items()}
        removed += found
    return state, removed


def _float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return tensor
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UserError(
            f"{path}: '{name}' has type {tensor.dtype}; allowed are float32, float16, bfloat16."
        )
    if not torch.isfinite(tensor).all():
        raise UserError(f"{path}: '{name}' holds NaN or infinity; the training run had diverged.")
    return tensor.float()


def _statistics(tensor: Tensor | None) -> tuple[float, ...] | None:
    return None if tensor is None else tuple(round(v, 6) for v in tensor.flatten().tolist())


@cache
def _shapes(arch: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build_network(arch).state_dict().items()}


def _differences(tensors: dict[str, Tensor], arch: str) -> list[str]:
    """How `tensors` differ from `arch`, in words. The head's classes and BN counters are free."""
    expected = _shapes(arch)
    lines = [f"unknown '{k}'" for k in tensors if k not in expected]
    has_head = any(k.startswith("fc.") for k in tensors)
    heads = {len(tensors[k]) for k in ("fc.weight", "fc.bias") if k in tensors}
    if len(heads) > 1:
        lines.append("'fc.weight' and 'fc.bias' have different numbers of classes")
    for name, shape in expected.items():
        if name in tensors:
            found = tuple(tensors[name].shape)
            if name.startswith("fc."):
                found, shape = found[1:], shape[1:]
            if found != shape:
                lines.append(f"'{name}' has shape {found} instead of {shape}")
        elif not name.endswith("num_batches_tracked") and (has_head or not name.startswith("fc.")):
            lines.append(f"missing '{name}'")
    return lines


def _recognise(tensors: dict[str, Tensor], believed: str | None, path: Path) -> str:
    differences = {arch: _differences(tensors, arch) for arch in ARCHS}
    if believed is not None and believed not in ARCHS:
        raise UserError(f"architecture '{believed}' is unknown; one of: {', '.join(ARCHS)}.")
    exact = next((arch for arch, lines in differences.items() if not lines), None)
    if exact and believed in (None, exact):
        return exact
    if exact:
        raise UserError(
            f"{path} is a {exact}, not a {believed}; pass --arch {exact} or leave it out."
        )
    nearest = believed or min(differences, key=lambda arch: len(differences[arch]))
    lines = differences[nearest]
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    raise UserError(
        f"{path} is none of {', '.join(ARCHS)}; against {nearest}: {'; '.join(lines[:5])}{more}."
    )
