"""Name files that are not weights by their first bytes: web pages, pointers, other formats."""

import re

# Suffixes of checkpoints in messages; no suffix is required.
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".pkl")
HEAD = 512  # number of bytes that `foreign_kind` needs

# Each row has a pattern of the first bytes, the name of the kind, and the fix.
_KINDS = [
    (rb"$(?<!.)", "empty", "Download it again."),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer (run: git lfs pull)",
        "Give the file that it points to.",
    ),
    (rb"\s*<(!doctype|html|head|!--)", "an HTML page", "Download the file that the page links to."),
    (rb"\s*<\?xml", "an XML message", "Check the URL it came from."),
    (
        rb'\s*\{\s*"(metadata|weight_map)"\s*:\s*\{',
        "the index of a sharded safetensors model",
        "Merge the shards into one file.",
    ),
    (rb'\s*\{(\s*["}]|[\n\r])', "a JSON message", "Check the URL it came from."),
    (rb"\x89HDF\r\n", "an HDF5 file (Keras)", "Give a PyTorch checkpoint."),
    (rb"\x08[\x01-\x1f]\x12[^\x00]\w+", "an ONNX model", "Give its PyTorch checkpoint."),
    (rb"\x93NUMPY", "a NumPy array", "Give a PyTorch checkpoint."),
    (rb"GGUF", "a GGUF model", "Give a PyTorch checkpoint."),
    (rb"\x1f\x8b\x08|BZh\d|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive", "Unpack it first."),
    (rb".{257}ustar", "a tar archive", "Unpack it first."),
]
_COMPILED = [(re.compile(p, re.DOTALL | re.IGNORECASE), name, fix) for p, name, fix in _KINDS]


def foreign_kind(head: bytes) -> tuple[str, str]:
    """Recognize a file that cannot contain PyTorch weights.

    Args:
        head: first `HEAD` bytes of the file.

    Returns:
        `(kind, fix)`, such as `("an HTML page", "Check the URL ...")`. Both are empty if the file
        can be a weight file.
    """
    if head[8:9] == b"{":  # safetensors: the first 8 bytes are a length
        return "", ""
    found = ((name, fix) for pattern, name, fix in _COMPILED if pattern.match(head))
    return next(found, ("", ""))
