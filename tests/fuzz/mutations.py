"""Random changes of bytes, format tokens and trees of plain values."""

import copy
import json
import random
import struct

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
)
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "nan",
    "../../x",
    "/etc/passwd",
    "~/x",
    "a" * 5000,
    "\0",
    "\x1b[31m",
    "\ud800",
    "é",
    "=1+1",
    "<script>",
    "{",
    "}",
    "%s",
    "${x}",
    "id",
    "file://x",
)
STRANGE = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e308",
    "1e999",
    "-1e999",
    "9" * 5000,
    "0x10",
    "1_0",
    "1.5",
    "99999999999999999999",
    "true",
    "null",
    "~",
)


def mutate(data: bytes, rng: random.Random, others: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """Apply one to four random changes to `data`.

    Args:
        data: bytes to change.
        rng: random generator.
        others: bytes to copy parts from.
        words: tokens of the format, to insert and to exchange.
    """
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(OPERATORS)(data, rng, others, words)
    return data


def _place(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Choose a random part, usually short."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(rng.expovariate(1 / 16)) + 1)


def _flip(data, rng, others, words):
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _truncate(data, rng, others, words):
    return data[: rng.randrange(len(data) + 1)]


def _delete(data, rng, others, words):
    start, stop = _place(data, rng)
    return data[:start] + data[stop:]


def _repeat(data, rng, others, words):
    start, stop = _place(data, rng)
    return data[:start] + data[start:stop] * rng.choice((2, 3, 50, 2000)) + data[stop:]


def _insert(data, rng, others, words):
    start, _ = _place(data, rng)
    return data[:start] + rng.randbytes(rng.randrange(1, 9)) + data[start:]


def _number(data, rng, others, words):
    """Replace a binary number of either byte order."""
    code = rng.choice("BHIQ")
    number = rng.choice(NUMBERS) & (256 ** struct.calcsize(code) - 1)
    new, (start, _) = struct.pack(rng.choice("<>") + code, number), _place(data, rng)
    return data[:start] + new + data[start + len(new) :]


def _splice(data, rng, others, words):
    other = rng.choice(others)
    return data[: _place(data, rng)[0]] + other[_place(other, rng)[0] :]


def _copy_in(data, rng, others, words):
    other = rng.choice(others)
    (start, stop), (first, last) = _place(data, rng), _place(other, rng)
    return data[:start] + other[first:last] + data[stop:]


def _swap(data, rng, others, words):
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _word(data, rng, others, words):
    if not words:
        return data
    start, _ = _place(data, rng)
    return data[:start] + rng.choice(words) + data[start:]


def _replace_word(data, rng, others, words):
    there = [word for word in words if word in data]
    if not there:
        return _word(data, rng, others, words)
    old = rng.choice(there)
    at = [i for i in range(len(data)) if data.startswith(old, i)]
    start = rng.choice(at)
    return data[:start] + rng.choice(words) + data[start + len(old) :]


def _digits(data, rng, others, words):
    """Replace a number in a text."""
    at = [i for i in range(len(data)) if 48 <= data[i] < 58]
    if not at:
        return data
    start = stop = rng.choice(at)
    while stop < len(data) and data[stop] in b"0123456789.":
        stop += 1
    return data[:start] + rng.choice(STRANGE).encode() + data[stop:]


def _line(data, rng, others, words):
    """Remove, double or move a line."""
    lines = data.split(b"\n")
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.randrange(3)):
        lines.insert(rng.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


OPERATORS = (
    _flip,
    _truncate,
    _delete,
    _repeat,
    _insert,
    _number,
    _splice,
    _copy_in,
    _swap,
    _word,
    _replace_word,
    _digits,
    _line,
)


def nested(depth: int, kind: int = 0):
    """Nest lists or dictionaries."""
    node = None
    for _ in range(depth):
        node = {"a": node} if kind else [node]
    return node


def value(rng: random.Random):
    """Choose an unexpected value."""
    return rng.choice(
        (
            None,
            True,
            False,
            -1,
            0,
            1,
            1.5,
            -0.0,
            1e308,
            float("nan"),
            float("inf"),
            10**30,
            [],
            {},
            [[]],
            [None],
            {"": None},
            rng.choice(TEXTS),
            rng.choice(NUMBERS),
            -rng.choice(NUMBERS),
            [rng.choice(NUMBERS)] * 6,
            [0.5] * 8,
            {"size": [3, 3], "counts": "x"},
            {"size": [10**9, 10**9], "counts": [9, 1]},
            nested(rng.choice((3, 200)), rng.randrange(2)),
        )
    )


def change(tree, rng: random.Random, value=value):
    """Copy a tree of dictionaries and lists with one to three random changes.

    Args:
        value: function from a random generator to a new value.
    """
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = [(node, key) for node in _nodes(tree) for key in _keys(node)]
        if not places:
            return value(rng)
        node, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind < 4:
            node[key] = value(rng)
        elif kind == 4:
            del node[key]
        elif kind == 5:  # the value at another position
            other, name = rng.choice(places)
            if name in _keys(other):
                node[key] = copy.deepcopy(other[name])
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        else:
            node[rng.choice((rng.choice(TEXTS), str(rng.choice(places)[1])))] = node.pop(key)
    return tree


def _keys(node) -> list:
    return list(node) if isinstance(node, dict) else list(range(len(node)))


def _nodes(tree) -> list:
    """All dictionaries and lists of a tree, each once even if they contain each other."""
    found, todo = [], [tree]
    while todo and len(found) < 3000:
        node = todo.pop()
        if isinstance(node, (dict, list)):
            found.append(node)
            todo += node.values() if isinstance(node, dict) else node
    return found


def as_json(tree) -> bytes:
    """Write JSON with NaN and with invalid characters."""
    try:
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    except (RecursionError, TypeError):
        return b"[" * 100_000
