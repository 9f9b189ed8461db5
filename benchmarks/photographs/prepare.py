"""Write the image folders of the study on photographs: parts of CIFAR-10, and cut-out objects.

python benchmarks/photographs/prepare.py classes cifar OUTPUT --classes dog frog --train 200
python benchmarks/photographs/prepare.py objects coco:IMAGES:ANNOTATIONS.json OUTPUT

`classes` links the first images of some classes of an image folder. `objects` cuts annotated
objects out of the photographs of one or more datasets, and prints the number of objects of each
class. Both write OUTPUT/train/<class>/ and OUTPUT/test/<class>/, always the same files for the same
input. Objects of one photograph are in the same part.
"""

import argparse
import itertools
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from classification.datasets import folders  # noqa: E402
from robust_backbones.core import cli, images  # noqa: E402
from robust_backbones.core.errors import UserError, user_errors  # noqa: E402
from robust_backbones.detection.data.custom import parse_dataset, repair_boxes  # noqa: E402

PARTS = ("train", "test")
# Names that COCO and VOC give to the five classes of the pretraining.
PRETRAINED = ("airplane", "aeroplane", "automobile", "car", "bird", "cat", "deer")


@dataclass(frozen=True)
class Rules:
    """Rules for the objects to cut out.

    Attributes:
        margin: width of the border around a box, as a fraction of its longer side.
        side: smallest shorter side of a box, in pixels.
        each: largest number of objects of a class in a photograph. More would depend on each other.
        least: smallest number of objects of a class in each part.
        most: largest number of objects of a class in each part.
    """

    margin: float = 0.1
    side: int = 24
    each: int = 2
    least: int = 12
    most: int = 40


@dataclass(frozen=True)
class Cut:
    """An object to cut out.

    Attributes:
        label: name of the class.
        photograph: image file.
        number: position of the object among the valid ones of the photograph.
        rank: position among the objects of the class in the photograph, the largest first.
        box: square around the object, within the photograph: left, top, right, bottom, in pixels.
    """

    label: str
    photograph: Path
    number: int
    rank: int
    box: tuple[int, int, int, int]


def cuts_of(dataset: str, rules: Rules) -> list[Cut]:
    """List the usable objects of a dataset.

    Objects of the pretraining classes, crowds, difficult and small objects are skipped, and objects
    whose squares are equal, because such a picture would have two labels.

    Args:
        dataset: `coco:IMAGES:ANNOTATIONS.json`, `voc:ROOT:SPLIT` or `yolo:data.yaml:SPLIT`.
        rules: which objects are usable.
    """
    found = []
    annotations = parse_dataset(f"photographs={dataset}").read()
    for photograph in annotations.images:
        usable = defaultdict(list)
        for number, thing in enumerate(repair_boxes(photograph, masks=False)[0]):
            width, height = thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
            label = annotations.classes[thing.class_index]
            if min(width, height) >= rules.side and not (thing.crowd or thing.difficult):
                square = around(thing.box, rules.margin, photograph.width, photograph.height)
                usable[label].append((-width * height, number, square))
        squares = Counter(square for objects in usable.values() for *_, square in objects)
        for label in usable.keys() - set(PRETRAINED):
            largest = sorted(each for each in usable[label] if squares[each[-1]] == 1)
            for rank, (_, number, square) in enumerate(largest[: rules.each]):
                found.append(Cut(label, photograph.file, number, rank, square))
    return found


def around(box: tuple, margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Return a square around a box, moved into the photograph and cut at its borders.

    Args:
        box: left, top, right, bottom, in pixels.
        margin: border on each side, as a fraction of the longer side of the box.
        width, height: size of the photograph, in pixels.
    """
    side = (1 + 2 * margin) * max(box[2] - box[0], box[3] - box[1])
    ends = []
    for low, high, limit in ((box[0], box[2], width), (box[1], box[3], height)):
        start = min(max((low + high - side) / 2, 0), max(limit - side, 0))
        ends.append((int(start), int(min(start + side, limit))))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def split(cuts: list[Cut], labels: Collection[str]) -> dict[Path, str]:
    """Assign each photograph to a part, so that both parts have objects of all classes.

    Photographs are sorted by their rarest class and assigned in turn.

    Args:
        cuts: usable objects.
        labels: names of the classes. Photographs without their objects are omitted.
    """
    counts = Counter(cut.label for cut in cuts)
    rarest: dict[Path, tuple[int, str]] = {}
    for cut in cuts:
        if cut.label in labels:
            key = (counts[cut.label], cut.label)
            rarest[cut.photograph] = min(key, rarest.get(cut.photograph, key))
    order = sorted(rarest, key=lambda photograph: (rarest[photograph], photograph.name))
    return dict(zip(order, itertools.cycle(PARTS), strict=False))


def choose(cuts: list[Cut], rules: Rules) -> dict[tuple[str, str], list[Cut]]:
    """Choose objects for each part and class: `{(part, class): objects}`.

    The largest objects of all photographs precede further objects of the same photographs.
    """
    counts = Counter(cut.label for cut in cuts)
    labels = {label for label, number in counts.items() if number >= len(PARTS) * rules.least}
    while True:
        parts = split(cuts, labels)
        found: dict[tuple[str, str], list[Cut]] = defaultdict(list)
        for cut in sorted(cuts, key=lambda cut: (cut.rank, cut.photograph.name, cut.number)):
            if cut.label in labels:
                found[parts[cut.photograph], cut.label].append(cut)
        few = {label for label in labels if any(len(found[p, label]) < rules.least for p in PARTS)}
        if not few:
            break
        labels -= few  # the others are split again
    return {(p, label): found[p, label][: rules.most] for p in PARTS for label in sorted(labels)}


def write_objects(datasets: list[str], output: Path, rules: Rules) -> None:
    """Cut the objects out of the photographs, and write them as PNG files."""
    chosen = choose([cut for text in datasets for cut in cuts_of(text, rules)], rules)
    if len(chosen) < 2 * len(PARTS):
        raise UserError(
            f"--least {rules.least}: fewer than two classes have enough objects. Use a smaller one."
        )
    for (part, label), cuts in chosen.items():
        folder = output / part / label
        folder.mkdir(parents=True)
        for cut in cuts:
            photograph = images.decode(cut.photograph)
            photograph.crop(cut.box).save(folder / f"{cut.photograph.stem}_{cut.number}.png")


def link_classes(source: Path, output: Path, classes: list[str], numbers: dict[str, int]) -> None:
    """Link the first images of the classes of an image folder."""
    layout = folders.find_layout(source)
    for part, label in itertools.product(PARTS, classes):
        given = folders.split_folder(layout, part) / label
        if not given.is_dir():
            raise UserError(f"--classes {label}: {given} does not exist.")
        names = sorted(path.name for path in given.iterdir() if folders.is_image(path.name))
        if len(names) < numbers[part]:
            raise UserError(f"{given} has {len(names)} images. Use --{part} {len(names)}.")
        folder = output / part / label
        folder.mkdir(parents=True)
        for name in names[: numbers[part]]:
            (folder / name).symlink_to((given / name).resolve())


def table(output: Path) -> str:
    """Return the number of images of each class as a Markdown table."""
    rows = [["class", *PARTS]]
    for folder in sorted((output / "train").iterdir()):
        counts = [len(list((output / part / folder.name).iterdir())) for part in PARTS]
        rows.append([folder.name, *map(str, counts)])
    sums = [str(sum(int(row[column]) for row in rows[1:])) for column in (1, 2)]
    rows[1:1] = [["---"] * 3]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*rows, ["all", *sums]])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("classes", help="link images of some classes").add_argument
    add("source", type=cli.path, metavar="SOURCE", help="image folder with train/ and test/")
    add("output", type=cli.path, metavar="OUTPUT", help="new folder")
    add("--classes", nargs="+", required=True, metavar="NAME", help="names of the classes")
    for part in PARTS:
        add(f"--{part}", type=cli.count, required=True, metavar="N", help="images of each class")
    add = commands.add_parser("objects", help="cut objects out of photographs").add_argument
    add("datasets", nargs="+", metavar="DATA", help="coco:IMAGES:ANNOTATIONS.json, voc:ROOT:SPLIT")
    add("output", type=cli.path, metavar="OUTPUT", help="new folder")
    for name, words in (
        ("side", "smallest shorter side of a box in pixels"),
        ("each", "largest number of objects of a class in a photograph"),
        ("least", "smallest number of objects of a class in each part"),
        ("most", "largest number of objects of a class in each part"),
    ):
        number = getattr(Rules, name)
        add(f"--{name}", type=cli.count, default=number, metavar="N", help=f"{words} ({number})")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the folders, and print the number of images of each class."""
    with user_errors():
        _prepare(parse(argv))


def _prepare(args: argparse.Namespace) -> None:
    output = args.output
    if output.exists():
        raise UserError(f"{output} already exists. Remove it, or give another folder.")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if args.command == "classes":
        numbers = {part: getattr(args, part) for part in PARTS}
        link_classes(args.source, partial, args.classes, numbers)
    else:
        rules = Rules(side=args.side, each=args.each, least=args.least, most=args.most)
        write_objects(args.datasets, partial, rules)
    partial.rename(output)
    print(table(output))


if __name__ == "__main__":
    main()
