"""MATLAB's files of version 5, with arrays of numbers and texts, cells and structures in them.

SciPy reads them. It looks up types by the numbers in the file and follows nesting as deep as that
goes, and a file that was made to harm ends the process; hence a look at its frame before.
https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError

VALUES = 10**7  # of an array; the largest index has 16,000
DEPTH = 10  # structures in structures; the indexes have 2

_HEADER = 128  # bytes: text, version, order of bytes
_MATRIX, _COMPRESSED = 14, 15
_VALUES = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}  # numbers and Unicode
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)  # sorts of arrays
_BEFORE = {_CELL: 0, _STRUCT: 2, _CHAR: 1} | dict.fromkeys(_NUMBERS, 1)  # parts before arrays in it
_COMPLEX = 0x800


def read(path: Path) -> dict[str, Any]:
    """Name -> value, axes of length 1 left out.

    Raises:
        UserError: damaged, of another version, or with other contents than an index has.
    """
    from scipy.io import loadmat

    try:
        _check_frame(path.read_bytes())
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # a broken file can raise anything; nothing in it is executed
        raise UserError(f"{path} is no whole MATLAB file ({error}); fetch it again.") from None


def _check_frame(data: bytes) -> None:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None:
        raise ValueError("it is not of version 5")
    for sort, part in _parts(data[_HEADER:], order, packed=True):
        if sort == _COMPRESSED:
            inflated = zlib.decompressobj()
            part = inflated.decompress(part, 8 * VALUES)
            if inflated.unconsumed_tail:
                raise ValueError(f"a part of more than {8 * VALUES} bytes")
            ((sort, part),) = _parts(part, order)
        if sort != _MATRIX:
            raise ValueError(f"a part of sort {sort}")
        _check_matrix(part, order, DEPTH)


def _check_matrix(data: bytes, order: str, depth: int) -> None:
    """SciPy reads on in the next part where one is missing: each has what its sort needs."""
    if not data:
        return  # a cell may be empty
    if not depth:
        raise ValueError(f"nested more than {DEPTH} deep")
    (sort, flags), (whole, sides), (text, _), *rest = _parts(data, order)
    flag = struct.unpack(order + "I", flags[:4])[0]
    kind, length = flag & 0xFF, math.prod(struct.unpack(f"{order}{len(sides) // 4}I", sides))
    if sort != 6 or len(flags) != 8 or whole not in (5, 6) or text not in _VALUES:
        raise ValueError("an array without sort, shape and name")
    if length > min(VALUES, len(data)):  # cells have at least a tag each
        raise ValueError(f"an array of {length} values in {len(data)} bytes")
    if kind not in _BEFORE:
        raise ValueError(f"an array of sort {kind}")
    values, inner = _BEFORE[kind], length if kind == _CELL else 0
    if kind == _STRUCT:
        (_, width), (_, names), *_ = rest
        inner = length * (len(names) // struct.unpack(order + "I", width)[0])
    elif kind in _NUMBERS and flag & _COMPLEX:
        values += 1
    if len(rest) != values + inner or any(sort not in _VALUES for sort, _ in rest[:values]):
        raise ValueError(f"an array of sort {kind} and {length} values in {len(rest)} parts")
    for sort, part in rest[values:]:
        if sort != _MATRIX:
            raise ValueError(f"a part of sort {sort} where an array should be")
        _check_matrix(part, order, depth - 1)


def _parts(data: bytes, order: str, packed: bool = False) -> list[tuple[int, bytes]]:
    """Sort and bytes of each part; on 8 bytes each but for packed ones."""
    found, at = [], 0
    while at < len(data):
        sort, size = struct.unpack_from(order + "II", data, at)
        if sort >> 16:  # up to four bytes, beside sort and size
            sort, size, start, end = sort & 0xFFFF, sort >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size + (0 if packed and sort == _COMPRESSED else -size % 8)
        if start + size > min(end, len(data)):
            raise ValueError(f"a part of {size} bytes, and {len(data) - start} are left")
        found.append((sort, data[start : start + size]))
        at = end
    return found
