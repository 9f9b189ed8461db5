"""MATLAB files: valid ones as SciPy reads them, and malicious ones that would crash SciPy."""

import struct

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import eye

from classification.datasets.matlab_files import MAX_VALUES, read_matlab
from tests.support.hostile_files import refuses

VALUES = {
    "numbers": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "floats": np.linspace(0, 1, 5),
    "complex": np.array([1 + 2j]),
    "empty": np.zeros((0, 0)),
    "text": "abc",
    "texts": np.array(["a", "bc"], dtype=object),
    "structure": {"a": 1, "b": {"c": "text"}},
    "structures": np.array([(1, "x"), (2, "y")], dtype=[("class", object), ("fname", object)]),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_values_equal_scipys(tmp_path, name, packed):
    path = tmp_path / "a.mat"
    savemat(path, {"value": VALUES[name]}, do_compression=packed)
    found = read_matlab(path)["value"]
    assert repr(found) == repr(loadmat(path, squeeze_me=True)["value"])


def part(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(kind: int, *parts: bytes, flags: int = 6, shape=(1, 1)) -> bytes:
    sides, name = part(5, struct.pack("<ii", *shape)), part(1, b"x")
    return part(14, part(flags, struct.pack("<II", kind, 0)) + sides + name + b"".join(parts))


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = array(1, inner)
    return inner


COMPLEX = 0x800
NUMBER = part(9, struct.pack("<d", 1))
HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"


def number(kind: int = 9, **changes) -> bytes:
    return array(6, part(kind, struct.pack("<d", 1)), **changes)


# Each of the first six crashes `loadmat` or allocates gigabytes.
@pytest.mark.parametrize(
    "data, message",
    [
        (number(258), "an array of class 6 has 1 values but 1 elements"),
        (
            array(6, struct.pack("<HHi", 258, 4, 1)),
            "an array of class 6 has 1 values but 1 elements",
        ),
        (array(8, number()), "an array of class 8 has 1 values but 1 elements"),
        (array(1, array(6 + COMPLEX, NUMBER), number(), shape=(1, 2)), "of class 6 .* 1 elements"),
        (nested(50_000), "more than 10 nested arrays"),
        (array(1, array(1, shape=(2**20, 2**8))), "an array claims 268435456 values in 48 bytes"),
        (
            array(6, struct.pack("<II", 9, 2**31)),
            "an element claims 2147483648 bytes, but 0 are left",
        ),
        (array(1, NUMBER), "expected an array element, found type 9"),
        (array(1, number(), shape=(2, 1)), "an array of class 1 has 2 values but 1 elements"),
        (array(2, part(5, bytes(4)), part(1, b"a")), "by zero"),
        (array(6, NUMBER, flags=5), "an array lacks flags, shape or name"),
        (array(17, NUMBER), "an array has the unsupported class 17"),
        (NUMBER, "expected an array element, found type 9"),
        (part(15, b"not zlib"), "Error -3 while decompressing"),
        (number()[:-4], "an element claims"),
    ],
)
def test_malformed_files(tmp_path, data, message):
    path = tmp_path / "a.mat"
    path.write_bytes(HEAD + number())
    assert read_matlab(path)["x"] == 1
    path.write_bytes(HEAD + data)
    with refuses(message, path):
        read_matlab(path)


@pytest.mark.parametrize("data", [b"", HEAD[:126] + b"??"])
def test_unsupported_versions(tmp_path, data):
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    with refuses("it is not a version 5 file", path):
        read_matlab(path)


def test_unsupported_types(tmp_path):
    path = tmp_path / "a.mat"
    for value, version in ((eye(3).tocsc(), "5"), (1, "4")):
        savemat(path, {"value": value}, format=version)
        with refuses("not a complete MATLAB file", path):
            read_matlab(path)


def test_arrays_that_claim_gigabytes(tmp_path):
    path = tmp_path / "a.mat"
    for values, message in (
        (1, "an array claims 10000001 values"),
        (9, "an element has more than"),
    ):
        zeros = np.zeros(values * MAX_VALUES + 1, np.uint8)
        savemat(path, {"value": zeros}, do_compression=True)
        with refuses(message, path):
            read_matlab(path)
