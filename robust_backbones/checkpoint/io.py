"""Read checkpoints of any supported format without executing code, and save files atomically."""

import json
import pickle
import pickletools
import re
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from robust_backbones.archs import TIMM
from robust_backbones.checkpoint import array_pickles
from robust_backbones.checkpoint.architectures import (
    BATCH_COUNTER,
    arch_row,
    check_operations,
    recognize,
    stated_arch,
    usual_statistics,
)
from robust_backbones.checkpoint.clip import PROJECTION
from robust_backbones.checkpoint.formats import Layout, unwrap
from robust_backbones.checkpoint.wrappers import CONTRASTIVE, NOT_LINEAR, OUTSIDE
from robust_backbones.core.errors import UserError
from robust_backbones.core.extras import install_command
from robust_backbones.core.file_kinds import HEAD, SUFFIXES, foreign_kind
from robust_backbones.core.files import atomic, sha256
from robust_backbones.core.input_statistics import (
    ASSUMED,
    FILE,
    PRESETS,
    Channels,
    InputStatistics,
    choose,
)

LONGEST_WORD = 10_000  # longest word in a pickled string, in characters

# Reasons why a last layer was dropped.
_NO_CLASSIFIER = (NOT_LINEAR, OUTSIDE, CONTRASTIVE, PROJECTION)

_ALLOWED_DTYPES = (
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


@dataclass(frozen=True)
class Checkpoint:
    """A classifier's weights under the library's names, with the metadata of their file.

    Attributes:
        tensors: `{name in the network: float32 tensor}`, with the head if the file has a head.
        arch: architecture, as for `build_network`, recognized from the tensors.
        layout: `"torchvision"`, `"timm"`, `"robustness"`, `"moco"`, `"clip"`, `"detectron2"` or
            `"robust_backbones"`.
        statistics: input statistics. Its source is `"assumed"` if the file has none.
        sha256: SHA-256 of the file in hexadecimal.
        dropped: `{key in the file: reason why the key is not in tensors}`.
        metadata: training metadata of the file (eps, constraint, epochs, ...). The checkpoint of an
            unfinished pretraining also has `finished_epochs`.
    """

    tensors: dict[str, Tensor]
    arch: str
    layout: str
    statistics: InputStatistics
    sha256: str
    dropped: dict[str, str] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    def require_head(self, source: object) -> None:
        """Check that the network has its last layer.

        Args:
            source: name of the file in the error message.

        Raises:
            UserError: the last layer is missing. The message says why it was dropped.
        """
        name = f"{arch_row(self.arch).head}.weight"
        if name not in self.tensors:
            reasons = [r for r in self.dropped.values() if r in _NO_CLASSIFIER]
            why = f": {reasons[0]}" if reasons else ""
            raise UserError(
                f"{source} has no last layer ({name}){why}. Give a complete classifier."
            )

    @property
    def training(self) -> dict:
        """Metadata of the training run. For a converted file, it includes its source's."""
        source = self.metadata.get("source_metadata")
        if "converter_version" not in self.metadata or not isinstance(source, dict):
            return self.metadata
        return source | self.metadata


def save_file(contents: dict, path: str | Path) -> None:
    """Write `contents` with `torch.save`, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic(path) as temporary:
        write_file(contents, temporary)


def write_file(contents: dict, path: Path) -> None:
    """Write `contents` with `torch.save` to a temporary path."""
    with open(path, "wb") as file:
        torch.save(contents, file)  # with a path, torch.save would store its temporary name


def read_checkpoint(
    path: str | Path,
    arch: str | None = None,
    allow_pickle: bool = False,
    from_detector: bool = False,
    assume_rgb: bool = False,
    key: str | None = None,
    statistics: InputStatistics | None = None,
) -> Checkpoint:
    """Read a classifier or backbone from a checkpoint in any format of `formats.py`.

    Args:
        path: `.pth`, `.pt`, `.ckpt`, `.safetensors` or `.pkl` file.
        arch: expected architecture, as for `build_network`; None: any architecture.
        allow_pickle: whether to execute the file's pickle code if the file contains more than
            tensors. Use True only for files from a trusted source.
        from_detector: whether to extract the backbone of a whole Detectron2 detector.
        assume_rgb: as in `formats.unwrap`.
        key: name of the network in a file with several networks, as in `containers.find_state`.
        statistics: input statistics that the user or the table of published models states; None:
            the file's, or else ImageNet's.

    Raises:
        UserError: the file is not a checkpoint, is unsafe, or has another architecture, other
            operations or other statistics, or a tensor is missing, unknown, of the wrong shape, not
            floating point or
            not finite.
    """
    path = Path(path)
    expected = arch_row(arch) if arch else None
    contents = load_file(path, allow_pickle)
    layout = unwrap(contents, path, from_detector, assume_rgb, key, expected)
    plain = layout.name == "torchvision"
    # before the conversion, which needs memory
    found = recognize(layout.tensors, arch, path, stated_arch(layout.metadata))
    check_operations(layout.metadata, found.arch, path)
    tensors = {name: _float32(name, tensor, path) for name, tensor in found.tensors.items()}
    usual = PRESETS["clip"] if layout.name == "clip" else usual_statistics(found.arch)
    return Checkpoint(
        tensors=tensors,
        arch=found.arch,
        layout="timm" if found.arch.startswith(TIMM) and plain else layout.name,
        statistics=choose(stated_statistics(layout, path), statistics, path, usual),
        sha256=sha256(path),
        dropped=layout.dropped | found.dropped,
        metadata=layout.metadata,
    )


def load_file(path: str | Path, allow_pickle: bool = False) -> Any:
    """Load the contents of a checkpoint file on the CPU. Large files are memory-mapped.

    Args:
        path: checkpoint file.
        allow_pickle: whether to execute the file's pickle code. If False, no code runs.

    Raises:
        UserError: the file is missing, is not a checkpoint, or would execute code. The message
            names the class.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: the file does not exist. Give the path of a checkpoint.")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    kind, fix = foreign_kind(head)
    if kind:
        raise UserError(f"{path}: the file is {kind}, not a checkpoint. {fix}")
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return _check_tensors(_load_safetensors(path), path)
        if zipped := head[:2] == b"PK":
            _check_archive(path)
        elif head[:1] == b"\x80" and not _is_legacy_torch(path):
            return _check_tensors(_load_numpy_pickle(path, allow_pickle), path)
        else:
            with open(path, "rb") as file:
                # The pickles are magic number, protocol version, system, contents and storage keys.
                _check_pickles(file, path, count=5)
        if allow_pickle:
            modules = _pickle_module()
            return _execute(
                path, lambda: torch.load(path, "cpu", weights_only=False, pickle_module=modules)
            )
        with torch.serialization.safe_globals(array_pickles.SCALAR_GLOBALS):
            return _check_tensors(torch.load(path, "cpu", weights_only=True, mmap=zipped), path)
    except UserError:
        raise
    except Exception as error:  # the loaders raise exceptions of any type on damaged files
        raise UserError(f"{path}: {_explain(error, path, head)}") from None


def _check_archive(path: Path) -> None:
    """Verify the checksums of a zip archive, because torch.load does not verify them."""
    with zipfile.ZipFile(path) as archive:
        names = [name.rsplit("/", 1)[-1] for name in archive.namelist()]
        if "constants.pkl" in names:
            raise UserError(
                f"{path}: the file is a TorchScript program. Save its weights: "
                f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
            )
        if "data.pkl" not in names:
            raise UserError(
                f"{path}: the file is a zip archive without data.pkl, not a checkpoint. If it "
                "contains a checkpoint, unpack it."
            )
        claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size:
            raise UserError(
                f"{path}: the zip archive is compressed (it would unpack to {claimed} bytes). "
                "Checkpoints must be stored uncompressed, as torch.save does."
            )
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as file:
                    _check_pickles(file, path)
        if damaged := archive.testzip():
            raise UserError(
                f"{path}: the file is damaged (wrong checksum of '{damaged}'). Download it again."
            )


def _check_pickles(file: IO[bytes], path: Path, count: int = 1) -> None:
    """Reject pickles that make torch.load slow or make it crash.

    The error formatting of torch.load takes time quadratic in the longest word. Sparse tensors of a
    rejected file remain in a global list, and the next torch.load validates them.

    Args:
        file: open file that starts with `count` pickles.
        path: path of the file, for error messages.
        count: number of pickles to check.
    """
    for _ in range(count):
        for _, text, _ in pickletools.genops(file):
            if not isinstance(text, str):
                continue
            if "_rebuild_sparse" in text:
                raise UserError(f"{path}: the file contains sparse tensors. Save dense tensors.")
            if len(text) > LONGEST_WORD and max(map(len, text.split()), default=0) > LONGEST_WORD:
                raise UserError(
                    f"{path}: a string of {len(text)} characters contains a word of more than "
                    f"{LONGEST_WORD} characters. Checkpoints with such strings are not supported."
                )


def _check_tensors(contents: Any, path: Path) -> Any:
    """Return the contents if all tensors are dense, have an allowed dtype and fit into the file.

    A tensor of stride 0 can claim more values than the file contains. A copy of the tensor would
    allocate memory for all claimed values.
    """
    pending: list[tuple[Any, Any]] = [("", contents)]
    seen = set()
    while pending:
        name, node = pending.pop()
        if isinstance(node, Tensor):
            if fault := _tensor_fault(node):
                raise UserError(f"{path}: '{name}' {fault}. Save contiguous dense tensors.")
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))  # a container can contain itself
            pending += node.items() if isinstance(node, dict) else enumerate(node)
    return contents


def _tensor_fault(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"has layout {tensor.layout}"
    if tensor.dtype not in _ALLOWED_DTYPES or tensor.device.type != "cpu":
        return f"has dtype {tensor.dtype} on device {tensor.device.type}"
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:
        return f"has shape {tuple(tensor.shape)}, but the file contains only {stored} values"
    return None


def _load_safetensors(path: Path) -> dict:
    """Load the tensors, and the project's metadata from JSON in the header, if present."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = file.metadata() or {}
    return {"model": tensors, **json.loads(header.get("robust_backbones", "{}"))}


def _is_legacy_torch(path: Path) -> bool:
    """Return whether the file starts with the magic number of PyTorch before version 1.6."""
    try:
        with open(path, "rb") as file:
            for opcode, value, _ in pickletools.genops(file):
                if opcode.name not in ("PROTO", "FRAME"):
                    return value == torch.serialization.MAGIC_NUMBER
    except Exception:  # damaged files raise exceptions of any type
        pass
    return False


def _load_numpy_pickle(path: Path, allow_pickle: bool) -> Any:
    """Load a Detectron2 `.pkl` file, which contains nested dictionaries of NumPy arrays."""
    if allow_pickle:
        with open(path, "rb") as file:
            contents = _execute(path, _pickle_module().Unpickler(file, encoding="latin1").load)
    else:
        contents = array_pickles.load(path)
    converted: dict[int, Tensor] = {}  # arrays with several names stay shared

    def to_tensors(node: Any) -> Any:
        if isinstance(node, np.ndarray):
            if id(node) not in converted:
                converted[id(node)] = torch.from_numpy(np.array(node))
            return converted[id(node)]
        return {k: to_tensors(v) for k, v in node.items()} if isinstance(node, dict) else node

    return to_tensors(contents)


def _pickle_module() -> types.ModuleType:
    try:
        import dill  # optional: the `robustness` library writes its checkpoints with dill
    except ImportError:
        return pickle
    return dill


# Kinds of objects that files contain in addition to tensors, by name prefix.
_OBJECTS = {
    "torch.nn.modules.": "a whole pickled network instead of its state_dict",
    "torchvision.models.": "a whole pickled network instead of its state_dict",
    "timm.models.": "a whole pickled network instead of its state_dict",
    "argparse.": "the options of its training run",
    "omegaconf.": "the options of its training run",
    "pathlib.": "paths of another machine",
    "dill.": "objects that were saved with dill",
    "torch._utils._rebuild_tensor": "tensors that were saved with pickle instead of torch.save",
}


def _explain(error: Exception, path: Path, head: bytes) -> str:
    """Return the message for a file that could not be loaded. `head` has its first bytes."""
    if isinstance(error, pickle.UnpicklingError):
        if found := re.search(r"GLOBAL ([\w.<>]+)", str(error)):
            what = next((w for start, w in _OBJECTS.items() if found[1].startswith(start)), "")
            return (
                f"loading this file would execute code ({found[1]}). "
                + f"The file contains {what}. " * bool(what)
                + "If you trust its source, run: robust-backbones convert FILE TARGET "
                "--allow-pickle. A classifier also needs --to safetensors, which keeps the last "
                "layer."
            )
        if head[:2] == b"PK":  # its checksums are correct
            reason = str(error).partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
            return f"the file contains unsupported objects ({reason}). Save only the state_dict."
    if head[:2] == b"PK" or head[:1] == b"\x80" or head[8:9] == b"{":
        size = path.stat().st_size
        return f"the file is not a complete checkpoint ({size} bytes). Download it again."
    return (
        f"the file is not a checkpoint (it begins with {head[:12]!r}). Supported file extensions: "
        f"{', '.join(SUFFIXES)}."
    )


# Messages of Python and PyTorch about files that end too early.
_TRUNCATED = re.compile(r"EOF|truncated|ran out of input", re.IGNORECASE)


def _execute(path: Path, load: Callable[[], Any]) -> Any:
    """Load a file whose pickle code may be executed.

    Raises:
        UserError: the code needs a missing module or class, or fails.
        Exception: the file is truncated.
    """
    try:
        return load()
    except Exception as error:  # the code can raise exceptions of any type
        text = str(error)
        if _TRUNCATED.search(text):
            raise
        fault = f"the code in the file failed ({type(error).__name__}: {text})"
        fix = "Save only the state_dict, in the environment that created the file"
        if isinstance(error, ModuleNotFoundError):
            module = (error.name or text).partition(".")[0]
            fault = f"the file needs the module '{module}', which is missing"
            fix = f"Run: {install_command('dill')}" if module == "dill" else "Install its package"
        elif isinstance(error, AttributeError) and "Can't get attribute" in text:
            fault = f"the file needs a class or function of its training code ({text})"
        elif isinstance(error, NotImplementedError) and "WindowsPath" in text:
            fault = "the file contains a Windows path, which only Windows can load"
        raise UserError(f"{path}: {fault}. {fix}.") from None


def _float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    if name.endswith(BATCH_COUNTER):
        return tensor
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UserError(
            f"{path}: '{name}' has dtype {tensor.dtype}. Allowed are float32, float16, bfloat16."
        )
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"{path}: '{name}' contains NaN or infinity, because the training diverged. Give an "
            "earlier checkpoint."
        )
    if name.endswith("running_var") and (tensor < 0).any():
        raise UserError(f"{path}: '{name}' contains negative variances. The file is damaged.")
    return tensor.float()


def stated_statistics(layout: Layout, path: object) -> InputStatistics | None:
    """Return the input statistics in a file, or None if it has none.

    The source is `"assumed"` if they were assumed when the file was written.

    Raises:
        UserError: the statistics are not three means in [0, 1] and three deviations in (0, 1].
    """
    if layout.mean is None or layout.std is None:
        return None
    assumed = layout.metadata.get("statistics") == ASSUMED
    mean, std = _channels(layout.mean, "mean", path), _channels(layout.std, "std", path)
    if 0 in std:
        raise UserError(f"{path}: std is {std}. It must be three numbers above 0.")
    return InputStatistics(mean, std, ASSUMED if assumed else FILE)


def _channels(tensor: Tensor, name: str, path: object) -> Channels:
    values = tuple(float(f"{value:.7g}") for value in tensor.flatten().tolist())  # float32
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise UserError(f"{path}: {name} is {values}. It must be three numbers in [0, 1].")
    return values
