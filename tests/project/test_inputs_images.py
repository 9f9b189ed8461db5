"""Run every case of the table of image files in docs/reference/input_files.md."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from classification.datasets import shards
from classification.datasets.check import KINDS as CHECK_KINDS
from classification.datasets.check import check_file
from classification.datasets.image_files import read_fast
from robust_backbones.core.errors import UserError
from robust_backbones.core.image_formats import has_image_suffix
from robust_backbones.core.images import Decoding, decode
from robust_backbones.detection.data import annotations, validate
from robust_backbones.detection.data.mapper import ImageMapper
from robust_backbones.detection.inspect.predictor import as_array
from tests.support.generated_tables import check_table
from tests.support.image_files import KINDS, RANGE
from tests.support.small_detectors import tiny_config

DEEP = Decoding(RANGE)


def check_data(path, decoding: Decoding) -> list[str]:
    image = annotations.Image(1, path, 32, 24)
    found = validate.check(annotations.Annotations("a", images=[image]), decoding=decoding)
    return [problem.kind for problem in found if problem.kind != "no objects"]


def check_dataset(path, decoding: Decoding) -> list[str]:
    if not has_image_suffix(path.name):
        return ["skipped"]
    return [kind for kind, _ in check_file(path, decoding)[1]]


def map_image(path, decoding: Decoding) -> np.ndarray:
    cfg = tiny_config(**{"INPUT.IMAGE_RANGE": str(list(decoding.values or ()))})
    item = {"file_name": str(path), "image_id": 1, "annotations": []}
    return ImageMapper(cfg, is_train=True)(item)["image"].numpy()


def read_shard(path, decoding: Decoding) -> np.ndarray:
    sample = {path.suffix[1:]: path.read_bytes(), "cls": b"0", "__url__": "a", "__key__": "b"}
    return np.asarray(shards.decode(sample, 1, decoding)[0])


def checked(check: Callable, errors: set[str], path) -> str:
    """Return how a check reports a file."""
    kinds = check(path, Decoding())
    if "deep" in kinds and "scaled" in check(path, DEEP):
        return "scaled"
    word = "refused" if errors & set(kinds) else "noted"
    return f"{word}: {', '.join(kinds)}" if kinds else "read"


def used(read: Callable, path) -> str:
    """Return how a run uses a file."""
    for decoding, word in ((Decoding(), "read"), (DEEP, "scaled")):
        try:
            read(path, decoding)
            return word
        except UserError:
            continue
    return "refused"


def classified(read: Callable, path) -> str:
    return used(read, path) if has_image_suffix(path.name) else "skipped"


def classify(path) -> str:
    """Return how classification uses a file, with both decoders of JPEG files."""
    decoders = (
        lambda path, decoding: decode(path, decoding=decoding),
        lambda path, decoding: read_fast(path, 9, decoding),
    )
    exact, fast = (classified(read, path) for read in decoders)
    assert exact == fast, path
    return exact


ERRORS = {kind for kind, (level, _) in CHECK_KINDS.items() if level == "error"}
COLUMNS = {
    "`check-data`": partial(checked, check_data, set(validate.FATAL)),
    "`train`, `attack`, `corrupt`": partial(used, map_image),
    "`visualize`, `load`": partial(used, as_array),
    "`datasets check`": partial(checked, check_dataset, ERRORS),
    "classification": classify,
    "shards": partial(classified, read_shard),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, list[str]]:
    """Cells of each kind of file."""
    folder, found = tmp_path_factory.mktemp("images"), {}
    for number, kind in enumerate(KINDS):
        path = kind.write(folder, str(number))
        cells = [cell(path) for cell in COLUMNS.values()]
        name = re.sub("^EXIF orientation [2-8]$", "EXIF orientation 2 to 8", kind.title)
        assert found.setdefault(name, cells) == cells, f"rows of {name} differ"
    return found


def test_the_table_is_what_the_readers_do(rows):
    merged: dict[tuple[str, ...], list[str]] = {}  # kinds with equal cells share a row
    for name, cells in rows.items():
        merged.setdefault(tuple(cells), []).append(name)
    table = [[", ".join(names), *cells] for cells, names in merged.items()]
    check_table("docs/reference/input_files.md", "images", [["image file", *COLUMNS], *table])


def test_all_readers_agree(rows):
    """A file that one command reads is read by all. Class folders are listed by file extension."""
    for name, cells in rows.items():
        words = {cell.split(":")[0].replace("noted", "read") for cell in cells}
        expected = {"refused", "read", "skipped"} if name.startswith("HEIC") else {cells[1]}
        assert words == expected, (name, cells)
