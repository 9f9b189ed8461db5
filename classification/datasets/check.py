"""Check every image of a dataset: damaged files, unusual formats, images in both splits."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from classification.datasets.folders import find_layout, junk_below, skipped_below
from classification.datasets.image_files import ImageFiles
from classification.datasets.label_tables import is_table, read_table
from classification.datasets.layouts import OFFICIAL
from classification.datasets.open import open_split
from classification.datasets.specs import STORED_SPLITS, DatasetSpec, find_dataset, locate
from classification.datasets.split import ImageSplit, Split, has_images
from classification.progress import ProgressLine
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.core.image_formats import missing_decoder
from robust_backbones.core.images import FINDINGS, Decoding, examine
from robust_backbones.core.workers import cores

BLOCK = 256  # images per progress update
MAX_OVERLAP = 0.01  # allowed fraction of test images in train; official splits share a few images
SHOWN = 3  # file names per printed line; a report file lists all names

# Maps a kind of finding to (level, printed description). Data with an error is unusable. A note is
# not a problem.
KINDS = {
    "layout": ("error", "cannot be opened"),
    **{kind: row for kind, row in FINDINGS.items() if row[0] == "error"},
    "leak": ("error", "train and test share too many images"),
    "count": ("warning", "the paper's authors used a different number"),
    "no images": ("warning", "classes have no images"),
    "similar classes": ("warning", "classes have almost the same name as another class"),
    "skipped": (
        "warning",
        "files in class folders are skipped, because they cannot be read as images",
    ),
    "unused split": ("warning", "folder is not used, because there is a test split"),
    **{kind: row for kind, row in FINDINGS.items() if row[0] == "warning"},
    "overlap": ("warning", "in test are also in train"),
    "duplicate": ("warning", "are duplicates in the same split"),
    "two labels": ("warning", "are duplicates with different labels"),
    "unused": ("note", "are not used"),
    "junk": ("note", "are ignored, because other programs created them"),
}


@dataclass(frozen=True)
class Finding:
    """A problem in the data.

    Attributes:
        kind: key of `KINDS`.
        split: split that has the problem; empty if the problem concerns the whole dataset.
        file: path of the image file, number of the image, or class name; empty if the problem
            concerns the whole split.
        detail: details, such as the message of the decoder.
    """

    kind: str
    split: str = ""
    file: str = ""
    detail: str = ""

    @property
    def level(self) -> str:
        """Level of the finding, `error`, `warning` or `note`."""
        return KINDS[self.kind][0]


@dataclass
class DatasetReport:
    """The result of checking a dataset.

    Attributes:
        name, path: name and location of the dataset.
        layout: description of how the images are stored, such as `official` or `folders`.
        splits: summary of each split by its name: numbers of images and classes, sizes of the
            smallest and the largest class, origin, and fingerprint.
        findings: all problems in the data.
    """

    name: str
    path: str = ""
    layout: str = ""
    splits: dict[str, dict] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the dataset can be used, because no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)


class CheckedImage(NamedTuple):
    """File name, label and pixel digest of an image. The digest is None if decoding failed."""

    file: str
    label: int
    digest: bytes | None


def check_dataset(
    name: str, root: str | Path | None = None, decoding: Decoding | None = None
) -> DatasetReport:
    """Open both splits and decode every image. Problems in the data become findings.

    Args:
        name: key of `DATASETS`.
        root, decoding: path of the data and settings of the decoder, as in `open_split`.

    Raises:
        UserError: the dataset is unknown, or needs a path that is not given.
    """
    spec = find_dataset(name)
    root = locate(name, root)
    report = DatasetReport(name, path=str(root or "in installed packages"))
    try:
        splits = {
            split: open_split(name, split, root, decoding=decoding) for split in STORED_SPLITS
        }
    except UserError as error:
        report.findings.append(Finding("layout", detail=str(error)))
        return report
    report.layout, report.path = _layout(spec, root, splits["train"], report.path)
    train = splits["train"]
    report.findings += _similar_classes(train.class_names)
    if has_images(train) and isinstance(train.images, ImageFiles):
        report.findings += _unused(report.layout, Path(report.path))
    line = ProgressLine(sum(len(opened) for opened in splits.values()))
    checked = {}
    for split, opened in splits.items():
        report.splits[split] = _summary(opened)
        report.findings += _wrong_counts(spec, opened)
        if has_images(opened):  # images in shards are decoded during training only
            checked[split], findings = _check_images(opened, line)
            report.findings += findings
    line.clear()
    if len(checked) == len(STORED_SPLITS):
        report.findings += _overlaps(checked)
    return report


def _layout(spec: DatasetSpec, root: str | Path | None, opened: Split, path: str) -> tuple:
    """Return the name of the layout and the exact location of the images."""
    if spec.name in OFFICIAL and root is not None:
        kind, folder = OFFICIAL[spec.name].detect(root)
        return kind, str(folder)
    if not has_images(opened):
        return "shards, whose images are not checked", path
    if not isinstance(opened.images, ImageFiles):
        return "in memory", path
    if is_table(path):
        return read_table(path).kind, path
    layout = find_layout(path)
    return layout.kind, str(layout.root)


def _unused(layout: str, path: Path) -> Iterator[Finding]:
    """Find files and folders that are not used."""
    if is_table(path):
        yield from (
            Finding("unused", file=str(path.parent / name)) for name in read_table(path).unlisted
        )
        path = path.parent
    elif layout != "official":
        found = find_layout(path)
        yield from (Finding("unused", file=str(folder)) for folder in found.unused)
        for file in skipped_below(found):
            yield Finding("skipped", file=str(file), detail=missing_decoder(file.name))
        if found.unused_val:
            yield Finding("unused split", "val", str(found.unused_val))
    yield from (Finding("junk", file=name) for name in junk_below(path))


def _summary(opened: Split) -> dict:
    numbers: dict = {"images": len(opened), "classes": opened.classes}
    if opened.origin:
        numbers["split"] = opened.origin
    if sizes := opened.class_sizes():
        numbers |= {"smallest class": min(sizes), "largest class": max(sizes)}
    try:
        return numbers | {"fingerprint": opened.fingerprint()}
    except UserError as error:  # a broken link, which is also reported as an unreadable image
        return numbers | {"fingerprint": f"not possible ({error})"}


def _wrong_counts(spec: DatasetSpec, opened: Split) -> Iterator[Finding]:
    expected = spec.images.get(opened.split, len(opened))
    if len(opened) != expected:  # for datasets with exact counts, opening has already failed
        detail = f"{len(opened)} {opened.split} images instead of {expected}"
        yield Finding("count", opened.split, detail=detail)
    for label, size in enumerate(opened.class_sizes() or ()):
        if not size:
            yield Finding("no images", opened.split, opened.class_names[label])


def _similar_classes(names: Sequence[str] | None) -> Iterator[Finding]:
    """Find class names that differ only in case, spaces, `_` or their form in Unicode."""
    first: dict[str, str] = {}
    for name in names or ():
        plain = unicodedata.normalize("NFKC", name).casefold()
        other = first.setdefault(re.sub(r"[\s_]+", " ", plain).strip(), name)
        if other != name:
            yield Finding("similar classes", file=name, detail=f"as {other}")


def _check_images(
    opened: ImageSplit, line: ProgressLine
) -> tuple[list[CheckedImage], list[Finding]]:
    checked, findings = [], []
    labels = opened.labels.tolist()
    images = opened.images

    def check_one(i: int) -> tuple[str, bytes | None, list]:
        if isinstance(images, ImageFiles):
            path = images.path(i)
            return str(path), *check_file(path, opened.decoding)
        return f"image {i}", hashlib.sha256(images[i].numpy().tobytes()).digest(), []

    # Threads suffice, because decoding releases the GIL.
    with ThreadPoolExecutor(cores()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
        for start in range(0, len(labels), BLOCK):
            block = range(start, min(start + BLOCK, len(labels)))
            for i, (file, digest, problems) in zip(block, pool.map(check_one, block), strict=True):
                checked.append(CheckedImage(file, labels[i], digest))
                findings += [Finding(kind, opened.split, file, text) for kind, text in problems]
            line.show(len(block), f"checking {opened.name} {opened.split}")
    return checked, findings


def check_file(path: Path, decoding: Decoding) -> tuple[bytes | None, list[tuple[str, str]]]:
    """Decode one image file.

    Returns:
        SHA-256 digest of the image size and RGB pixels, or None if the image cannot be decoded; and
        its problems as pairs (key of `KINDS`, detail).
    """
    examined = examine(path, decoding)
    if examined.image is None:
        return None, examined.findings
    pixels = repr(examined.image.size).encode() + examined.image.tobytes()
    return hashlib.sha256(pixels).digest(), examined.findings


def _overlaps(checked: dict[str, list[CheckedImage]]) -> Iterator[Finding]:
    """Find images with equal pixels, within and between the splits."""
    seen: dict[str, dict[bytes, CheckedImage]] = {split: {} for split in STORED_SPLITS}
    for split, images in checked.items():
        for image in images:
            if image.digest is None:
                continue
            first = seen[split].setdefault(image.digest, image)
            if first.file != image.file:
                kind = "duplicate" if image.label == first.label else "two labels"
                yield Finding(kind, split, image.file, f"as {first.file}")
    shared = [image for image in checked["test"] if image.digest in seen["train"]]
    for image in shared:
        assert image.digest is not None
        yield Finding("overlap", "test", image.file, f"as {seen['train'][image.digest].file}")
    total = len(checked["test"])
    if len(shared) > MAX_OVERLAP * total:
        yield Finding("leak", detail=f"{len(shared)} of {total} test images are also in train")


def lines(report: DatasetReport) -> Iterator[str]:
    """Yield the report as text: one line for each split and each kind of finding."""
    layout = f", layout: {report.layout}" if report.layout else ""
    yield f"{report.name}: {report.path}{layout}"
    below = f"{report.path}/"
    for split, numbers in report.splits.items():
        shown = f"{numbers['images']} images, {numbers['classes']} classes"
        if "smallest class" in numbers:
            shown += f" with {numbers['smallest class']} to {numbers['largest class']} images"
        origin = f", from {numbers['split']}" if "split" in numbers else ""
        yield f"  {split:8} {shown}{origin}, fingerprint {numbers['fingerprint']}"
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
    if all(finding.level == "note" for finding in report.findings):
        yield "  good     no problems found"


def write_report(path: Path, reports: list[DatasetReport]) -> None:
    """Write all findings as CSV if `path` ends in .csv, else as JSON with the summaries."""
    rows = [
        {"dataset": report.name, "level": finding.level, **asdict(finding)}
        for report in reports
        for finding in report.findings
    ]
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, ("dataset", "level", "kind", "split", "file", "detail"))
            table.writeheader()
            table.writerows(rows)
        else:
            json.dump(
                [asdict(report) | {"usable": report.usable} for report in reports], file, indent=2
            )
