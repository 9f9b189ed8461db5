"""Check detection datasets and print their problems."""

import csv
import hashlib
import json

from robust_backbones.core.files import atomic
from robust_backbones.core.images import Decoding
from robust_backbones.detection.data import custom, semantic_masks
from robust_backbones.detection.data.annotations import Annotations, Problem
from robust_backbones.detection.data.catalog import annotations_of
from robust_backbones.detection.data.validate import (
    FATAL,
    MASKS,
    NOTES,
    REPAIRABLE,
    check,
    class_counts,
)


def report(
    datasets: list[str],
    pixels: bool,
    masks: bool,
    listed: int,
    csv_file: str | None,
    image_range: list[float] | None = None,
    json_file: str | None = None,
    repair: bool = False,
) -> int:
    """Print the problems of each dataset, and return the total number of errors.

    Args:
        datasets: custom datasets (`NAME=coco:...`, `NAME=voc:...`) or names of registered datasets.
        pixels: whether to open the image files.
        masks: whether missing and broken masks are errors.
        listed: maximum number of problems to print for each kind.
        csv_file: path of a CSV file with all problems to write; None to write no file.
        image_range: values that become black and white in images with more than 8 bits per channel;
            None: such images are errors.
        json_file: path of a JSON file with a summary of each dataset; None to write no file.
        repair: whether problems that `DATASETS.REPAIR` repairs are notes.

    Raises:
        UserError: a dataset is unknown or its annotations cannot be read.
    """
    errors, rows, decoding = 0, [], Decoding(image_range)
    summaries = []
    severities = _severities(masks, repair)
    for text in datasets:
        by_path = custom.is_path(text)
        name = text.split("=")[0] if by_path else text
        annotations = custom.parse_dataset(text).read() if by_path else annotations_of(text)
        if annotations.semantic:
            annotations.problems += semantic_masks.count_pixels(annotations)
        problems = check(annotations, pixels, decoding)
        rows += [(name, p.kind, p.image, p.text) for p in problems]
        _print_counts(name, annotations)
        if by_path and (rule := custom.parse_dataset(text).split_rule()):
            print(f"  note: {rule}")
        own = _print_problems(problems, severities, listed)
        summaries.append(_summary(name, annotations, own))
        errors += own
    if csv_file:
        with (
            atomic(csv_file) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("dataset", "kind", "image", "text"))
            writer.writerows(rows)
    if json_file:
        with atomic(json_file) as temporary:
            temporary.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    return errors


def _print_counts(name: str, annotations: Annotations) -> None:
    counts = class_counts(annotations) or []
    what = "labeled pixel" if annotations.semantic else "object"
    print(
        f"{name}: {_counted(len(annotations.images), 'image')}, {_counted(sum(counts), what)}, "
        f"{_counted(len(annotations.classes), 'class', 'classes')}"
    )
    each = zip(annotations.classes, counts, strict=bool(counts))
    print("  " + ", ".join(f"{name} {count}" for name, count in each))


def _summary(name: str, annotations: Annotations, errors: int) -> dict:
    """Describe a dataset for programs. The digest covers the annotations, but not the pixels."""
    images = [
        [
            image.file.name,
            semantic_masks.digest(image.mask)
            if image.mask
            else [[thing.class_index, thing.box] for thing in image.objects],
        ]
        for image in annotations.images
    ]
    text = json.dumps([annotations.classes, images], default=str)
    return {
        "name": name,
        "images": len(annotations.images),
        "classes": annotations.classes,
        "objects": class_counts(annotations) or [],
        "errors": errors,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def _severities(masks: bool, repair: bool) -> list[tuple[dict[str, str], str]]:
    """Return the kinds of problems, each with its severity."""
    return [
        (FATAL, "error"),
        (REPAIRABLE, "note" if repair else "error"),
        (MASKS, "error" if masks else "note"),
        (NOTES, "note"),
    ]


def _print_problems(
    problems: list[Problem], severities: list[tuple[dict[str, str], str]], listed: int
) -> int:
    errors = 0
    for kinds, severity in severities:
        for kind, meaning in kinds.items():
            some = [problem for problem in problems if problem.kind == kind]
            if some:
                errors += len(some) * (severity == "error")
                print(f"  {severity}: {kind}, {len(some)}: {meaning}")
                for problem in some[:listed]:
                    print(f"    {problem.image + ': ' if problem.image else ''}{problem.text}")
    print(f"  {_counted(errors, 'error')}" if errors else "  no errors")
    return errors


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
