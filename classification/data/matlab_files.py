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

from robust_backbones.errors import UserError

VALUES = 10**7  # of an array; the largest index has 16,000
DEPTH = 10  # structures in structures; the indexes have 2

_HEADER = 128  # bytes: text, version, order of bytes
_MATRIX, _COMPRESSED = 14, 15
_ELEMENTS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, _MATRIX, 16, 17, 18}  # numbers, matrices, Unicode
_ARRAYS = {1, 2, 4, *range(6, 16)}  # cell, struct, char, and the sorts of numbers


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
        _check_part(sort, part, order, DEPTH)


def _check_part(sort: int, data: bytes, order: str, depth: int) -> None:
    if sort not in _ELEMENTS:
        raise ValueError(f"a part of sort {sort}")
    if sort == _MATRIX and data:
        if not depth:
            raise ValueError(f"nested more than {DEPTH} deep")
        (flags, array), (whole, sides), *rest = _parts(data, order)
        kind = struct.unpack(order + "I", array[:4])[0] & 0xFF
        if flags != 6 or len(array) != 8 or whole not in (5, 6) or kind not in _ARRAYS:
            raise ValueError(f"an array of sort {kind}")
        shape = struct.unpack(f"{order}{len(sides) // 4}I", sides)
        if math.prod(shape) > min(VALUES, len(data)):  # cells have at least a tag each
            raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
        for part in rest:
            _check_part(*part, order, depth - 1)


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
