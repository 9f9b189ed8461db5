"""Pickles of NumPy arrays and plain containers, and of nothing else.

NumPy's own functions crash on states that it did not write; none of them is called here.
"""

import math
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

_SORTS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}


def load(path: str | Path, encoding: str = "latin1") -> Any:
    """What a pickle holds, arrays and scalars made anew from their bytes.

    Args:
        encoding: of the texts of Python 2, as for `pickle.load`.

    Raises:
        pickle.UnpicklingError: it names something else (`GLOBAL <name>`), or an array is damaged.
        Exception: of any kind, where the pickle itself is.
    """
    with open(path, "rb") as file:
        _check_memo(file)
        file.seek(0)
        return _finished(_Unpickler(file, encoding=encoding).load(), {})


def _check_memo(file: IO[bytes]) -> None:
    """Python makes room for as many remembered objects as the largest number that one is given:
    17 GB for 4 bytes. Writers count from 0 or 1."""
    for count, (opcode, value, _) in enumerate(pickletools.genops(file)):
        if opcode.name.endswith("PUT") and cast(int, value) > count:
            raise pickle.UnpicklingError(f"object number {value} of {count}")


class _Dtype:
    def __init__(self, code: Any, *_: Any):
        text = _text(code)
        self.sort = text.lstrip("<>|=")
        if self.sort not in _SORTS:
            raise pickle.UnpicklingError(f"an array of type {text!r}")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        if _text(state[1]) in ("<", ">"):
            self.value = np.dtype(_text(state[1]) + self.sort)


class _Array:
    """Takes the state of an array; `_finished` puts `value` in its place."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        whole = all(type(side) is int and side >= 0 for side in shape)
        if not whole or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise pickle.UnpicklingError("an array of another size than its bytes")
        flat = np.frombuffer(bytes(data), dtype.value).astype(dtype.sort)  # in this machine's order
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: Any) -> np.generic:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.value)[0]


def _encoded(text: str, coding: str) -> bytes:
    """Bytes, as protocols before 3 have them."""
    if coding != "latin1":
        raise pickle.UnpicklingError(f"bytes coded as {coding!r}")
    return text.encode("latin1")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_KNOWN = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encoded,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if known not in _KNOWN:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _KNOWN[known]


def _finished(node: Any, known: dict[int, Any]) -> Any:
    """With arrays for stand-ins, one that has several names still one."""
    if isinstance(node, _Array):
        return node.value
    if not isinstance(node, (dict, list, tuple)):
        return node
    if id(node) not in known:
        if isinstance(node, dict):
            made: Any = {key: _finished(value, known) for key, value in node.items()}
        else:
            made = type(node)(_finished(value, known) for value in node)
        known[id(node)] = made
    return known[id(node)]
