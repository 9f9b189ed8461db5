"""Index files of the transfer tasks, shards and archives."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from classification.datasets import cifar, image_cache, shards
from classification.datasets.layouts import OfficialLayout
from classification.datasets.open import READERS
from classification.datasets.specs import DATASETS
from tests.fuzz.cases import Seed, json_seed
from tests.fuzz.mutations import as_json
from tests.support import miniature_tasks

_TASKS = (
    "aircraft",
    "birdsnap",
    "caltech101",
    "cars",
    "dtd",
    "flowers",
    "food",
    "pets",
    "sun397",
    "cifar10",
)
_INDEX = (".txt", ".mat", ".json", ".meta")


def index_seeds(folder: Path) -> list[Seed]:
    """Write every index file of every official layout, with its images."""
    found = []
    for task in _TASKS:
        counts = {"train": 2, "test": 2}
        miniature_tasks.write(task, folder, per_class=counts, classes=2, size=8)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix in _INDEX or "cifar" in str(path)):
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            if path.suffix == ".json":
                found.append(json_seed(name, json.loads(data)))
            else:
                found.append(Seed(name, data, _matlab(path) if path.suffix == ".mat" else None))
    return found


def _matlab(path: Path):
    from scipy.io import loadmat, savemat

    tree = {k: v for k, v in loadmat(path, squeeze_me=True).items() if k[0] != "_"}

    def build(rng):
        contents = dict(tree)
        key = rng.choice(list(contents))
        contents[key] = rng.choice(
            (
                np.zeros((0, 0)),
                np.array([["x"]]),
                np.array(-1),
                np.full(3, np.nan),
                np.zeros(3, bool),
                np.array([{"a": 1}], object),
                np.array(["é"], object),
                np.full((2, 2), 1e300),
                np.full(4, 10**15),
                np.array([1 + 2j]),
                contents[key],
            )
        )
        if rng.random() < 0.2:
            contents["x" + key] = contents.pop(key)
        file = io.BytesIO()
        savemat(file, contents, do_compression=rng.random() < 0.5)
        return file.getvalue()

    return build


def read_indexes(folder: Path, path: Path) -> None:
    task = path.relative_to(folder).parts[0]
    for split in ("train", "test"):
        if task == "cifar10":
            cifar.read_cifar(task, split, folder / task)
        else:
            images, labels, names, *_ = READERS[task](split, folder / task)
            assert isinstance(READERS[task], OfficialLayout)
            assert len(images) == len(labels) and names


def table_seeds(folder: Path) -> list[Seed]:
    """Write images, and tables of their labels."""
    (folder / "images").mkdir()
    for name in "abcd":
        (folder / "images" / f"{name}.png").write_bytes(_png())
    rows = [
        ("a.png", "cat", "train"),
        ("b", "dog", "train"),
        ("c", "cat", "val"),
        ("d", "dog", "val"),
    ]
    text = "filename,label,split\n" + "".join(",".join(row) + "\n" for row in rows)
    numbers = "id;class\n" + "".join(f"{row[0]};{i % 2}\n" for i, row in enumerate(rows))
    return [Seed("labels.csv", text.encode()), Seed("numbers.csv", numbers.encode())]


def read_table(folder: Path, path: Path) -> None:
    for split in ("train", "test"):
        images, labels, names, *_ = READERS["folder"](split, path)
        assert len(images) == len(labels) and len(names) > 1


def _png(rng=None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "png")
    return file.getvalue()


# Headers of a sparse file of one byte that claims a terabyte of zeros.
SPARSE = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12)}


def tar(entries, mode="w", headers=None) -> bytes:
    """Build a tar file from members `(name, contents, type, link)`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name, data, kind, link in entries:
            entry = tarfile.TarInfo(name)
            entry.pax_headers = headers or {}
            entry.size, entry.type, entry.linkname = len(data), kind, link
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def _tar_build(entries, modes=("w",)):
    names = (
        "../x.jpg",
        "/x.jpg",
        "a/../../x.cls",
        "x",
        ".jpg",
        "000.cls",
        "000.jpg",
        "é.jpg",
        "__x__.jpg",
        "a" * 300 + ".jpg",
        "train/../ant/x.png",
        "000.json",
    )
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.CONTTYPE,
        tarfile.REGTYPE,
    )

    def build(rng):
        changed = []
        for name, data, kind, link in entries:
            if rng.random() < 0.3:
                name = rng.choice(names)
            if rng.random() < 0.3:
                data = rng.choice(
                    (
                        b"",
                        b"1",
                        b"-1",
                        b"9" * 5000,
                        b"\xff",
                        b"0 ",
                        "²".encode(),
                        data[: rng.randrange(len(data) + 1)],
                        _png(),
                    )
                )
            if rng.random() < 0.1:
                kind, link = rng.choice(kinds), rng.choice(names)
            changed += [(name, data, kind, link)] * rng.choice((1, 1, 1, 0, 2))
        return tar(changed, rng.choice(modes), SPARSE if rng.random() < 0.05 else None)

    return build


def _regular(pairs) -> list[tuple]:
    return [(name, data, tarfile.REGTYPE, "") for name, data in pairs]


def shard_seeds(folder: Path) -> list[Seed]:
    entries = _regular(
        [("000.png", _png()), ("000.cls", b"0"), ("001.jpg", _png()), ("001.cls", b"1")]
    )
    index = {"version": 1, "classes": ["a", "b"], "splits": {"train": {"train-0.tar": 2}}}
    (folder / "train-0.tar").write_bytes(tar(entries))
    (folder / shards.INDEX).write_bytes(as_json(index))
    return [Seed("train-0.tar", tar(entries), _tar_build(entries))] * 3 + [
        json_seed(shards.INDEX, index)
    ]


def read_shards(folder: Path, path: Path) -> None:
    source = shards.open_shards(DATASETS["folder"], "train", folder)
    source.fingerprint()
    for sample in shards.read_samples(source.urls):
        shards.decode(sample, source.classes, source.decoding)


def archive_seeds(folder: Path) -> list[Seed]:
    os.environ["ROBUST_BACKBONES_CACHE"] = str(folder / "cache")
    entries = _regular(
        (f"x/{split}/{name}/{i}.png", _png())
        for split in ("train", "test")
        for name in ("ant", "bee")
        for i in (0, 1)
    )
    modes = ("w", "w", "w:gz", "w:xz", "w:bz2")
    return [Seed("x.tar", tar(entries, mode), _tar_build(entries, modes)) for mode in ("w", "w:gz")]


def read_archive(folder: Path, path: Path) -> None:
    for split in ("train", "test"):
        image_cache.read_decoded(split, path, 8)
