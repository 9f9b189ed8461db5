"""Read MATLAB version 5 files that contain arrays of numbers or text, cells and structures.

SciPy reads the files. It looks up types by numbers in the file and recurses without a limit, so a
malicious file can crash the process. The structure of the file is therefore checked first.
https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from robust_backbones.core.errors import UserError

MAX_VALUES = 10**7  # maximum number of values per array; the largest official index has 16,000
MAX_DEPTH = 10  # maximum depth of nested structures; the official indexes have depth 2

_HEADER = 128  # size in bytes of the header, which contains text, version and byte order
# Codes of the data types of elements.
_MATRIX, _COMPRESSED, _UINT32 = 14, 15, 6
_PLAIN = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}  # numbers and Unicode text
# Codes of the classes of arrays, and the number of plain elements in an array of each class. The
# plain elements come before the nested arrays.
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_PLAIN_COUNT = {_CELL: 0, _STRUCT: 2, _CHAR: 1} | dict.fromkeys(_NUMBERS, 1)
_COMPLEX = 0x800


def read_matlab(path: Path) -> dict[str, Any]:
    """Return the variables of a file by name, with axes of length 1 removed.

    Raises:
        UserError: the file is damaged, has a different version, or contains unsupported types.
    """
    try:
        _check_structure(path.read_bytes())
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # a damaged file can raise any exception, but cannot run code
        raise UserError(f"{path}: not a complete MATLAB file ({error}). Fetch it again.") from None


def _check_structure(data: bytes) -> None:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None:
        raise ValueError("it is not a version 5 file")
    for kind, element in _elements(data[_HEADER:], order, packed=True):
        if kind == _COMPRESSED:
            decompressor = zlib.decompressobj()
            element = decompressor.decompress(element, 8 * MAX_VALUES)
            if decompressor.unconsumed_tail:
                raise ValueError(f"an element has more than {8 * MAX_VALUES} bytes")
            ((kind, element),) = _elements(element, order)
        if kind != _MATRIX:
            raise ValueError(f"expected an array element, found type {kind}")
        _check_array(element, order, MAX_DEPTH)


def _check_array(data: bytes, order: str, depth: int) -> None:
    """Check that an array has all elements of its class. SciPy would read past the array's end."""
    if not data:
        return  # an empty cell
    if not depth:
        raise ValueError(f"more than {MAX_DEPTH} nested arrays")
    (flags_kind, flags), (shape_kind, sides), (name_kind, _), *rest = _elements(data, order)
    flag = struct.unpack(order + "I", flags[:4])[0]
    array_class = flag & 0xFF
    length = math.prod(struct.unpack(f"{order}{len(sides) // 4}I", sides))
    if (
        flags_kind != _UINT32
        or len(flags) != 8
        or shape_kind not in (5, 6)
        or name_kind not in _PLAIN
    ):
        raise ValueError("an array lacks flags, shape or name")
    if length > min(MAX_VALUES, len(data)):  # a value takes at least one byte
        raise ValueError(f"an array claims {length} values in {len(data)} bytes")
    if array_class not in _PLAIN_COUNT:
        raise ValueError(f"an array has the unsupported class {array_class}")
    plain, inner = _PLAIN_COUNT[array_class], length if array_class == _CELL else 0
    if array_class == _STRUCT:
        (_, width), (_, names), *_ = rest
        inner = length * (len(names) // struct.unpack(order + "I", width)[0])
    elif array_class in _NUMBERS and flag & _COMPLEX:
        plain += 1
    if len(rest) != plain + inner or any(kind not in _PLAIN for kind, _ in rest[:plain]):
        raise ValueError(
            f"an array of class {array_class} has {length} values but {len(rest)} elements"
        )
    for kind, element in rest[plain:]:
        if kind != _MATRIX:
            raise ValueError(f"expected an array element, found type {kind}")
        _check_array(element, order, depth - 1)


def _elements(data: bytes, order: str, packed: bool = False) -> list[tuple[int, bytes]]:
    """Split data into elements. Return the type and the bytes of each element.

    Args:
        data: bytes of consecutive elements, aligned to 8 bytes.
        order: byte order in the notation of `struct`, `<` or `>`.
        packed: whether compressed elements are not aligned.
    """
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # up to four bytes of data follow type and size directly
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size + (0 if packed and kind == _COMPRESSED else -size % 8)
        if start + size > min(end, len(data)):
            raise ValueError(f"an element claims {size} bytes, but {len(data) - start} are left")
        found.append((kind, data[start : start + size]))
        at = end
    return found
