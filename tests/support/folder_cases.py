"""Kinds of VOC and YOLO folders that people have, sound and unsound."""

from collections.abc import Callable
from pathlib import Path

from tests.support.annotation_cases import Case, detections
from tests.support.voc_data import voc
from tests.support.yolo_data import BOX, POLYGON, yolo

CAT, DOG = ("cat", (6, 6, 15, 15)), ("dog", (6, 6, 15, 15))
IMAGES = {"a": [CAT, DOG], "b": [CAT]}
SPLITS = {"train": "a\nb\n"}
# The random split with `all` has both images.
FOUND = detections(("a", 0), ("a", 1), ("b", 0))


def _voc(
    message, kind, images=IMAGES, splits=SPLITS, split="train", found=FOUND, edit=None, **more
):
    def build(folder: Path) -> str:
        root = voc(folder / "data", images, splits, **more)
        if edit:
            edit(root)
        return f"mine=voc:{root}:{split}"

    return Case("VOC", kind, build, found, message)


def _in_xml(old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "Annotations" / "a.xml"
        path.write_text(path.read_text().replace(old, new))

    return edit


VOC = [
    _voc("no errors", "valid"),
    _voc("no ImageSets: 2 of 2 images are 'all'", "no `ImageSets`", splits=None, split="all",
         folders=("annots", "pictures")),
    _voc("no ImageSets: 2 of 2", "XML next to the images, no `ImageSets`", splits=None,
         split="all", folders=(".", ".")),
    _voc("b.xml is missing", "an image without XML, no `ImageSets`", splits=None, split="all",
         found=FOUND[:2], edit=lambda root: (root / "Annotations/b.xml").unlink()),
    _voc("has no XML files. It contains JPEGImages/", "no XML files", splits=None,
         edit=lambda root: [path.unlink() for path in root.glob("Annotations/*")]
         + [(root / "Annotations").rmdir()]),
    _voc("has no ImageSets/Main/test.txt. Choose from train, val, all",
         "no `ImageSets`, an unknown split", splits=None, split="test"),
    _voc("split 'test' does not exist", "an unknown split", split="test"),
    _voc("lists 'a.jpg', but", "file names with extensions in a split",
         splits={"train": "a.jpg\n"}),
    _voc("no errors", "names with spaces", images={"my a": [CAT, DOG]},
         splits={"train": "my a\n"}, found=detections(("my a", 0), ("my a", 1))),
    _voc("no errors", "a split file for one class, with -1, 0, 1",
         splits={"train": "a  1\nb -1\n"}),
    _voc("no errors", "a split file with a byte order mark", splits={"train": "\ufeffa\r\nb\r\n"}),
    _voc("a is listed twice", "a repeated name in a split", splits={"train": "a\na\n"},
         found=FOUND[:2]),
    _voc("difficult, 1", "difficult objects", images=IMAGES | {"b": [CAT, DOG]},
         edit=_in_xml("<name>dog</name>", "<name>dog</name><difficult>1</difficult>"),
         found=[*FOUND, *detections(("b", 1))]),
    _voc("box [6, 6, 6, 15]", "a box with zero area",
         images=IMAGES | {"b": [CAT, ("cat", (6, 6, 6, 15))]}),
    _voc("box [6, 6, 60, 15] in 40 x 30", "a box outside the image",
         images=IMAGES | {"b": [("cat", (6, 6, 60, 15))]}),
    _voc("an object has no <bndbox/xmin>", "an object without a box",
         edit=_in_xml("xmin", "left")),
    _voc("remove <!DOCTYPE", "a DOCTYPE", edit=_in_xml("<annotation>", "<!DOCTYPE a><annotation>")),
]  # fmt: skip

LABELS = {"train/a": BOX, "train/b": "1 0.5 0.5 0.5 0.5\n"}
BOXES = [
    {"image_id": "a", "category_id": 0, "bbox": [0, 0, 20, 30], "score": 0.9},
    {"image_id": "b", "category_id": 1, "bbox": [10, 7.5, 20, 15], "score": 0.9},
]


def _yolo(message, kind, labels=None, found=BOXES, edit=None, ap=100, **changes):
    def build(folder: Path) -> str:
        file = yolo(folder / "data", LABELS | (labels or {}), **changes)
        if edit:
            edit(file.parent)
        return f"mine=yolo:{file}:train"

    return Case("YOLO", kind, build, found, message, ap)


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


SEGMENT = {"train/a": "0 0 0 0.5 0 0.5 1 0 1\n", "train/b": POLYGON}
DOG_BELOW = [BOXES[0], BOXES[1] | {"bbox": [0, 0, 40, 15]}]
YOLO = [
    _yolo("no errors", "boxes"),
    _yolo("no errors", "polygons", labels=SEGMENT, found=DOG_BELOW),
    _yolo("object 0 (cat) has no mask", "boxes and polygons", labels={"train/b": POLYGON},
          found=DOG_BELOW),
    _yolo("no errors", "`../images/train`, as Roboflow writes it", train="../images/train"),
    _yolo("no errors", "a list of images", train="list.txt", edit=lambda root: (
        root / "list.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n")),
    _yolo("no objects, 1", "an image without a label file", labels={"train/c": None}),
    _yolo("but no label files", "no label files", edit=lambda root: (root / "labels").rename(
        root / "other")),
    _yolo("has labels, but its image does not exist", "a label file without an image",
          labels={"train/c": BOX}, edit=_unlink("images/train/c.jpg")),
    _yolo("line 2 repeats line 1", "a repeated line", labels={"train/a": 2 * BOX}),
    _yolo("line 2: class 2, but the classes are 0 to 1", "a class that is not in `names`",
          labels={"train/a": BOX + "2 0.5 0.5 0.2 0.2\n"}),
    _yolo("120 is outside [0, 1]", "boxes in pixels", labels={"train/a": "0 120 80 40 40\n"}),
    _yolo("4 columns, but a box has 5", "four columns", labels={"train/a": "0 0.5 0.5 0.5\n"}),
    _yolo("6 columns, but a box has 5", "a score in a sixth column",
          labels={"train/a": "0 0.5 0.5 0.5 0.5 0.9\n"}),
    _yolo("box [36, 12, 8, 6] in 40 x 30", "a box outside the image",
          labels={"train/a": "0 1 0.5 0.2 0.2\n"}),
    _yolo("nc is 3, but names has 2 classes", "`nc` and `names` differ", nc="3"),
    _yolo("has keypoints", "keypoints", kpt_shape="[17, 3]"),
    _yolo("data.yaml: path is '/content/data'", "a `path` from another machine",
          path="/content/data"),
]  # fmt: skip
