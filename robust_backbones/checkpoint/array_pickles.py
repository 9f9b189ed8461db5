"""Load pickles of NumPy arrays and plain containers without executing any code.

NumPy's own unpickling functions crash on damaged array states, so this module never calls them.
NumPy scalars become Python numbers.
"""

import math
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

_ALLOWED_DTYPES = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}


def load(path: str | Path, encoding: str = "latin1") -> Any:
    """Load a pickle, and rebuild its NumPy arrays and scalars from their bytes.

    Args:
        path: pickle file.
        encoding: encoding of Python 2 strings, as in `pickle.load`.

    Raises:
        pickle.UnpicklingError: the pickle refers to a class or function that is not allowed
            (`GLOBAL <name>`), or an array is damaged.
        Exception: the pickle itself is damaged. The exception can have any type.
    """
    with open(path, "rb") as file:
        _check_memo(file)
        file.seek(0)
        return _finish(_Unpickler(file, encoding=encoding).load(), {})


def _check_memo(file: IO[bytes]) -> None:
    """Reject a memo index that is larger than the number of preceding opcodes.

    Python allocates memory up to the largest memo index, which is 17 GB for a 4-byte index. Pickle
    writers number their objects from 0 or 1.
    """
    for count, (opcode, value, _) in enumerate(pickletools.genops(file)):
        if opcode.name.endswith("PUT") and cast(int, value) > count:
            raise pickle.UnpicklingError(f"memo index {value} after {count} objects")


class _Dtype:
    """Stand-in for `numpy.dtype` that accepts only numeric dtypes."""

    def __init__(self, code: Any, *_: Any):
        text = _text(code)
        self.name = text.lstrip("<>|=")
        if self.name not in _ALLOWED_DTYPES:
            raise pickle.UnpicklingError(f"array of dtype {text!r}")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        if _text(state[1]) in ("<", ">"):
            self.value = np.dtype(_text(state[1]) + self.name)


class _Array:
    """Stand-in for `numpy.ndarray` during unpickling. `_finish` replaces it by its `value`."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        valid = all(type(length) is int and length >= 0 for length in shape)
        if not valid or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise pickle.UnpicklingError("array shape does not match its number of bytes")
        native = np.frombuffer(bytes(data), dtype.value).astype(dtype.name)  # native byte order
        self.value = native.reshape(shape, order="F" if fortran else "C")


def _array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: Any) -> bool | int | float:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, _Dtype) or len(data) != dtype.value.itemsize:
        raise pickle.UnpicklingError("scalar does not match its number of bytes")
    return np.frombuffer(data, dtype.value)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    """Return the bytes that pickle protocols 0 to 2 store as Latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_ALLOWED_GLOBALS = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _bytes,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
}


# Names that torch.load replaces with the stand-ins. Optimizers and schedules store NumPy scalars.
SCALAR_GLOBALS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if found not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _ALLOWED_GLOBALS[found]


def _finish(node: Any, done: dict[int, Any]) -> Any:
    """Replace all stand-ins in a container by arrays. Shared containers remain shared.

    Args:
        node: container or value to convert.
        done: converted containers, by the id of the original container.
    """
    if isinstance(node, _Array):
        return node.value
    if not isinstance(node, (dict, list, tuple)):
        return node
    if id(node) not in done:
        if isinstance(node, dict):
            finished: Any = {key: _finish(value, done) for key, value in node.items()}
        else:
            finished = type(node)(_finish(value, done) for value in node)
        done[id(node)] = finished
    return done[id(node)]
