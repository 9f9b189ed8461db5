"""Any supported checkpoint -> torchvision-named tensors + metadata, and contents -> disk.

The only place where a foreign file is opened. Nothing in a file is executed unless the user asks.
"""

import json
import pickle
import pickletools
import re
import types
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from robust_backbones.checkpoint import array_pickles
from robust_backbones.checkpoint.architectures import COUNTER, recognise
from robust_backbones.checkpoint.formats import unwrap
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, sha256

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".pkl")  # usual ones; others are read as well


@dataclass(frozen=True)
class Checkpoint:
    """A classifier's weights under torchvision names, and what is known about them.

    Attributes:
        tensors: `{torchvision name: float32 tensor}`, with the head if the file has one.
        arch: key of `zoo.ARCHS`, recognised from the tensors.
        layout: `"torchvision"`, `"robustness"`, `"moco"`, `"detectron2"` or `"robust_backbones"`.
        mean, std: per-channel RGB statistics for inputs in [0, 1]; None if the file has none.
        sha256: digest of the file.
        dropped: `{key in the file: why it is not among the tensors}`.
        metadata: what the file says about its training (eps, constraint, epoch, ...).
    """

    tensors: dict[str, Tensor]
    arch: str
    layout: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    sha256: str
    dropped: dict[str, str] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)


def save_file(contents: dict, path: str | Path) -> None:
    """Write `contents` with `torch.save`, atomically.

    Raises:
        UserError: the place cannot be written to.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        torch.save(contents, file)  # given a path, it would write the path's name into the file


def read_checkpoint(
    path: str | Path,
    arch: str | None = None,
    allow_pickle: bool = False,
    from_detector: bool = False,
    assume_rgb: bool = False,
) -> Checkpoint:
    """Read a checkpoint of any layout in `layouts.py`, from `.pth`, `.safetensors` or `.pkl`.

    Args:
        path: the file.
        arch: what the caller believes it is; checked, never trusted.
        allow_pickle: execute the file's pickle code if it holds more than tensors. Only for files
            whose origin you trust.
        from_detector: take the backbone out of a whole Detectron2 detector.
        assume_rgb: see `layouts.unwrap`.

    Raises:
        UserError: not a checkpoint, unsafe, of another architecture, or any key is missing,
            unknown, misshapen, not floating point or not finite.
    """
    path = Path(path)
    layout = unwrap(load_file(path, allow_pickle), path, from_detector, assume_rgb)
    found = recognise(layout.tensors, arch, path)  # so that no more is converted than a network is
    tensors = {name: _float32(name, tensor, path) for name, tensor in layout.tensors.items()}
    return Checkpoint(
        tensors=tensors,
        arch=found,
        layout=layout.name,
        mean=_statistics(layout.mean, "mean", path),
        std=_statistics(layout.std, "std", path),
        sha256=sha256(path),
        dropped=layout.dropped,
        metadata=layout.metadata,
    )


def load_file(path: str | Path, allow_pickle: bool = False) -> Any:
    """The contents of a `.pth`, `.safetensors` or `.pkl`, on the CPU, executing nothing unless
    `allow_pickle`. Large files are mapped, not copied.

    Raises:
        UserError: missing, not a checkpoint, or it would execute code (the class is named).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a checkpoint.")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return _plain(_load_safetensors(path), path)
        if mapped := head[:2] == b"PK":
            _check_archive(path)
        elif head[:1] == b"\x80" and not _is_legacy_torch(path):
            return _plain(_load_numpy_pickle(path, allow_pickle), path)
        else:
            with open(path, "rb") as file:
                _check_pickles(file, path, 5)  # number, version, machine, contents, storages
        if allow_pickle:
            return torch.load(path, "cpu", weights_only=False, pickle_module=_dill())
        return _plain(torch.load(path, "cpu", weights_only=True, mmap=mapped), path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.<>]+)", str(error)):
            raise UserError(
                f"{path} would execute code ({found[1]}) when loaded; pass --allow-pickle only if "
                "you trust where it comes from."
            ) from None
        raise UserError(_not_a_checkpoint(path, head)) from None
    except Exception:  # a file that is cut off or has flipped bits can raise anything in there
        raise UserError(_not_a_checkpoint(path, head)) from None


def _check_archive(path: Path) -> None:
    """PyTorch maps the tensors of a zip archive without looking at their checksums; we do."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size:
            raise UserError(
                f"{path} is packed: it would unpack to {claimed} bytes; a checkpoint's "
                "parts are stored as they are."
            )
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as file:
                    _check_pickles(file, path)
        if damaged := archive.testzip():
            raise UserError(
                f"{path} is damaged: the checksum of '{damaged}' is wrong; fetch it again."
            )


WORD = 10_000  # characters


def _check_pickles(file: IO[bytes], path: Path, number: int = 1) -> None:
    """What PyTorch should not begin with.

    It looks through its own error, which quotes the file, in a time that grows with the square of
    the longest word. Sparse tensors of a file that it then refuses stay in a list of its own, and
    are looked at with the next file.
    """
    for _ in range(number):
        for _, text, _ in pickletools.genops(file):
            if not isinstance(text, str):
                continue
            if "_rebuild_sparse" in text:
                raise UserError(f"{path} holds sparse tensors; save contiguous dense tensors.")
            if len(text) > WORD and max(map(len, text.split()), default=0) > WORD:
                raise UserError(f"{path} holds a text of {len(text)} characters without a blank.")


_SORTS = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)


def _plain(contents: Any, path: Path) -> Any:
    """The contents, if all tensors are dense, of usual types, and no larger than what the file
    holds of them: one of stride 0 has as many values as it likes, and a copy needs memory for
    all."""
    todo: list[tuple[Any, Any]] = [("", contents)]
    seen = set()
    while todo:
        name, node = todo.pop()
        if isinstance(node, Tensor):
            if wrong := _odd(node):
                raise UserError(f"{path}: '{name}' {wrong}; save contiguous dense tensors.")
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))  # a container can hold itself
            todo += node.items() if isinstance(node, dict) else enumerate(node)
    return contents


def _odd(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"has layout {tensor.layout}"
    if tensor.dtype not in _SORTS or tensor.device.type != "cpu":
        return f"has type {tensor.dtype} on device {tensor.device.type}"
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > held:
        return f"has the shape {tuple(tensor.shape)}, but the file holds {held} values of it"
    return None


def _load_safetensors(path: Path) -> dict:
    """Tensors, and our metadata (a JSON text in the header) where there is any."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return {"model": tensors, **json.loads(header.get("robust_backbones", "{}"))}


def _is_legacy_torch(path: Path) -> bool:
    """PyTorch's format before 1.6 begins with a pickle of one large number."""
    try:
        with open(path, "rb") as file:
            for opcode, value, _ in pickletools.genops(file):
                if opcode.name not in ("PROTO", "FRAME"):
                    return value == torch.serialization.MAGIC_NUMBER
    except Exception:  # see `load_file`
        pass
    return False


def _load_numpy_pickle(path: Path, allow_pickle: bool) -> Any:
    import numpy

    if allow_pickle:
        with open(path, "rb") as file:
            contents = _dill().Unpickler(file, encoding="latin1").load()
    else:
        contents = array_pickles.load(path)
    made: dict[int, Tensor] = {}

    def tensors(node: Any) -> Any:
        if isinstance(node, numpy.ndarray):
            if id(node) not in made:
                made[id(node)] = torch.from_numpy(numpy.array(node))
            return made[id(node)]
        return {k: tensors(v) for k, v in node.items()} if isinstance(node, dict) else node

    return tensors(contents)


def _dill() -> types.ModuleType:
    try:
        import dill  # what the `robustness` library writes with
    except ImportError:
        return pickle
    return dill


def _not_a_checkpoint(path: Path, head: bytes) -> str:
    if not head:
        return f"{path} is empty; fetch it again."
    if head.lstrip()[:1] == b"<":
        return f"{path} is an HTML page, not a checkpoint; the link it came from has died."
    if path.suffix not in SUFFIXES:
        return f"{path} is no checkpoint of a known kind ({', '.join(SUFFIXES)}), or it is cut off."
    size = path.stat().st_size
    return f"{path} is not a complete checkpoint ({size} bytes); fetch it again."


def _float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    if name.endswith(COUNTER):
        return tensor
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UserError(
            f"{path}: '{name}' has type {tensor.dtype}; allowed are float32, float16, bfloat16."
        )
    if not torch.isfinite(tensor).all():
        raise UserError(f"{path}: '{name}' holds NaN or infinity; the training run had diverged.")
    if name.endswith("running_var") and (tensor < 0).any():
        raise UserError(f"{path}: '{name}' holds negative variances; the file is damaged.")
    return tensor.float()


def _statistics(tensor: Tensor | None, name: str, path: Path) -> tuple[float, ...] | None:
    if tensor is None:
        return None
    values = tuple(round(value, 6) for value in tensor.flatten().tolist())
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise UserError(f"{path}: its {name} is {values}; three numbers in [0, 1] are needed.")
    return values
