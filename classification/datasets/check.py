"""Look at every image of a dataset: what is damaged, what is odd, what is in both splits."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from classification import datasets
from classification.datasets.layouts import Official
from classification.datasets.shards import ShardSource
from classification.datasets.specs import Dataset
from classification.datasets.split import Files, Source
from classification.progress import ProgressLine
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic

SPLITS = ("train", "test")
BLOCK = 256  # images between two signs of life
LEAK = 0.01  # official splits share a few images; a larger share of the test split is a mistake
SHOWN = 3  # file names in a line; a report file has all

# What may be found -> (level, words after "n images"). Errors make data unusable.
KINDS = {
    "layout": ("error", "cannot be opened"),
    "unreadable": ("error", "cannot be read"),
    "truncated": ("error", "end too early"),
    "deep": ("error", "have more than 8 bits a channel, which would be cut off"),
    "leak": ("error", "train and test share too many images"),
    "count": ("warning", "not the number of the authors' copy"),
    "no images": ("warning", "classes have no images"),
    "format": ("warning", "have another format than their name says"),
    "grey": ("warning", "are grey, three equal channels are made of them"),
    "cmyk": ("warning", "are CMYK, converted to RGB without a colour profile"),
    "transparent": ("warning", "have an alpha channel, which is dropped"),
    "animated": ("warning", "are animated, the first picture is taken"),
    "overlap": ("warning", "of test are in train, too"),
    "duplicate": ("warning", "are there twice in their split"),
    "two labels": ("warning", "are there again with another label"),
}
MODES = {
    "L": "grey",
    "1": "grey",
    "LA": "grey",
    "CMYK": "cmyk",
    "RGBA": "transparent",
    "PA": "transparent",
    "I": "deep",
    "F": "deep",
    "I;16": "deep",
    "I;16B": "deep",
    "I;16L": "deep",
    "I;16N": "deep",
}
FORMATS = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP",),
    ".webp": ("WEBP",),
    ".ppm": ("PPM",),
    ".pgm": ("PPM",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
}


@dataclass(frozen=True)
class Finding:
    """One odd thing: a key of `KINDS`, the split and file it is in, and what exactly."""

    kind: str
    split: str = ""
    file: str = ""
    detail: str = ""

    @property
    def level(self) -> str:
        """error or warning."""
        return KINDS[self.kind][0]


@dataclass
class Report:
    """What a check saw.

    Attributes:
        name, place: the dataset and where it lies.
        layout: official, folders, or how else its images are kept.
        splits: split -> images, classes, smallest and largest class (images), fingerprint.
        findings: all odd things.
    """

    name: str
    place: str = ""
    layout: str = ""
    splits: dict[str, dict] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)


def check(name: str, root: str | Path | None = None) -> Report:
    """Open both splits and decode every image.

    Args:
        name: a key of `DATASETS`.
        root: as in `datasets.open_split`.

    Raises:
        UserError: no such dataset, or nowhere to look. Faults of the data are findings.
    """
    row = datasets.find(name)
    root = datasets.place(name, root)
    report = Report(name, place=str(root or "in installed packages"))
    try:
        sources = {split: datasets.open_split(name, split, root) for split in SPLITS}
    except UserError as error:
        report.findings.append(Finding("layout", detail=str(error)))
        return report
    report.layout, report.place = _layout(row, root, sources["train"], report.place)
    line = ProgressLine(sum(len(source) for source in sources.values()))
    contents = {}
    for split, source in sources.items():
        report.splits[split] = _describe(source)
        report.findings += _counts(row, split, source)
        if isinstance(source, ShardSource):  # their images are seen only while training
            continue
        contents[split], findings = _look(source, split, line)
        report.findings += findings
    line.clear()
    if len(contents) == len(SPLITS):
        report.findings += _overlaps(contents)
    return report


def _layout(
    row: Dataset, root: str | Path | None, source: Source | ShardSource, place: str
) -> tuple[str, str]:
    """What the layout is called, and where exactly the images lie."""
    reader = datasets.reader(row)
    if isinstance(reader, Official) and root is not None:
        kind, folder = reader.layout(root)
        return kind, str(folder)
    if isinstance(source, ShardSource):
        return "shards, whose images are not checked here", place
    return ("folders" if isinstance(source.images, Files) else "in memory"), place


def _describe(source: Source | ShardSource) -> dict:
    numbers = {"images": len(source), "classes": source.classes}
    if source.labels is not None:
        sizes = source.labels.bincount(minlength=source.classes)
        numbers |= {"smallest class": int(sizes.min()), "largest class": int(sizes.max())}
    try:
        return numbers | {"fingerprint": source.fingerprint()}
    except UserError as error:  # a link that leads nowhere: the image is a finding, too
        return numbers | {"fingerprint": f"not possible ({error})"}


def _counts(row: Dataset, split: str, source: Source | ShardSource) -> Iterator[Finding]:
    expected = row.images.get(split, len(source))
    if len(source) != expected:  # where an exact number is asked for, opening has failed
        yield Finding("count", split, detail=f"{len(source)} {split} images instead of {expected}")
    if source.labels is not None:
        sizes = source.labels.bincount(minlength=source.classes).tolist()
        for label in (label for label, size in enumerate(sizes) if not size):
            yield Finding("no images", split, source.class_names[label])


def _look(source: Source, split: str, line: ProgressLine) -> tuple[list, list[Finding]]:
    """(file, label, digest or None) of each image, and findings."""
    contents, findings = [], []
    labels = source.labels.tolist()
    images = source.images

    def one(i: int) -> tuple[str, bytes | None, list]:
        if isinstance(images, Files):
            path = images.path(i)
            return str(path), *look(path)
        return f"image {i}", hashlib.sha256(images[i].numpy().tobytes()).digest(), []

    # Decoding lets go of Python's lock, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        for start in range(0, len(labels), BLOCK):
            block = range(start, min(start + BLOCK, len(labels)))
            for i, (file, digest, odd) in zip(block, pool.map(one, block), strict=True):
                contents.append((file, labels[i], digest))
                findings += [Finding(kind, split, file, detail) for kind, detail in odd]
            line.show(len(block), f"checking {source.name} {split}")
    return contents, findings


def look(path: Path) -> tuple[bytes | None, list[tuple[str, str]]]:
    """Decode one image.

    Returns:
        a digest of its RGB pixels (None: it has none), and pairs (key of `KINDS`, detail).
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            odd = list(_odd(path, image))
            image.load()
            pixels = image.convert("RGB")
    except UnidentifiedImageError:
        return None, [("unreadable", "no known image format" if data else "empty file")]
    except Exception as error:  # a damaged file can raise anything in a decoder
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        return None, [(kind, str(error))]
    digest = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()
    return digest, odd


def _odd(path: Path, image: Image.Image) -> Iterator[tuple[str, str]]:
    if image.format not in FORMATS.get(path.suffix.lower(), (image.format,)):
        yield "format", f"it is {image.format}"
    if image.mode in MODES:
        yield MODES[image.mode], f"mode {image.mode}"
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # of MPO, others are previews
        yield "animated", f"{frames} pictures"


def _overlaps(contents: dict[str, list[tuple]]) -> Iterator[Finding]:
    """Images of equal pixels, within the splits and between them."""
    readable = {
        split: [image for image in images if image[2]] for split, images in contents.items()
    }
    seen = {split: {} for split in SPLITS}
    for split, images in readable.items():
        for file, label, digest in images:
            first, its_label = seen[split].setdefault(digest, (file, label))
            if first != file:
                kind = "duplicate" if label == its_label else "two labels"
                yield Finding(kind, split, file, f"as {first}")
    shared = [
        (file, seen["train"][digest][0])
        for file, _, digest in readable["test"]
        if digest in seen["train"]
    ]
    for file, other in shared:
        yield Finding("overlap", "test", file, f"as {other}")
    total = len(contents["test"])
    if len(shared) > LEAK * total:
        yield Finding("leak", detail=f"{len(shared)} of {total} test images are training images")


def lines(report: Report) -> Iterator[str]:
    """The report in words: one line for each split and each kind of finding."""
    layout = f", layout: {report.layout}" if report.layout else ""
    yield f"{report.name}: {report.place}{layout}"
    below = f"{report.place}/"
    for split, numbers in report.splits.items():
        shown = [f"{numbers['images']} images, {numbers['classes']} classes"]
        if "smallest class" in numbers:
            shown.append(f"of {numbers['smallest class']} to {numbers['largest class']} images")
        yield f"  {split:8} {' '.join(shown)}, fingerprint {numbers['fingerprint']}"
    for kind, (level, words) in KINDS.items():
        found = [finding for finding in report.findings if finding.kind == kind]
        if not found:
            continue
        shown = [(f.file.removeprefix(below), f.detail.replace(below, "")) for f in found if f.file]
        files = [f"{file} ({detail})" if detail else file for file, detail in shown]
        if not files:
            yield f"  {level:8} {'; '.join(f.detail for f in found)} ({words})"
            continue
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        yield f"  {level:8} {len(files)} {words}: {', '.join(files[:SHOWN])}{more}"
    if not report.findings:
        yield "  good     nothing wrong"


def write(path: Path, reports: list[Report]) -> None:
    """All findings, as CSV rows if `path` ends so, else as JSON with the numbers, too."""
    rows = [
        {"dataset": report.name, "level": finding.level, **asdict(finding)}
        for report in reports
        for finding in report.findings
    ]
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            heads = ("dataset", "level", "kind", "split", "file", "detail")
            table = csv.DictWriter(file, heads)
            table.writeheader()
            table.writerows(rows)
        else:
            json.dump(
                [asdict(report) | {"usable": report.usable} for report in reports], file, indent=2
            )
