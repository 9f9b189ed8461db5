"""Annotations of COCO, VOC and YOLO, and saved predictions."""

import robust_backbones.detection  # isort: skip  # noqa: F401  (before Detectron2)
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import custom, validate
from robust_backbones.detection.evaluation import coco_scores, saved
from tests.fuzz.cases import Seed, json_seed
from tests.fuzz.mutations import value as strange

COCO = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 8, "height": 8},
        {"id": 2, "file_name": "b.jpg", "width": 8, "height": 8},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [1, 1, 3.5, 4],
            "area": 14,
            "iscrowd": 0,
            "segmentation": [[1, 1, 4, 1, 4, 5]],
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 5,
            "bbox": [0, 0, 8, 8],
            "area": 64,
            "iscrowd": 1,
            "segmentation": {"size": [8, 8], "counts": [0, 64]},
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 5,
            "bbox": [0, 0, 2, 2],
            "area": 4,
            "iscrowd": 0,
            "segmentation": {"size": [8, 8], "counts": "0P2"},
        },
    ],
}
PREDICTIONS = [
    {
        "image_id": 1,
        "category_id": 3,
        "score": 0.9,
        "bbox": [1, 1, 3, 4],
        "segmentation": {"size": [8, 8], "counts": "0P2"},
    },
    {
        "image_id": 2,
        "category_id": 5,
        "score": 0.5,
        "bbox": [0, 0, 8, 8],
        "segmentation": [[1, 1, 4, 1, 4, 5]],
    },
]


def read_coco(folder: Path, path: Path) -> None:
    """Read annotations like check_data and a training on custom data."""
    source = custom.CustomDataset("x", "coco", str(folder), str(path))
    _use(source)


def _use(source: custom.CustomDataset) -> None:
    found = source.read()
    validate.check(found, pixels=False)
    refused = []
    for task in ("bbox", "segm"):  # evaluate also scores data that training refuses
        try:
            coco_scores.score(found, [], task)
        except UserError as error:
            refused.append(error)
    for repair in (False, True):
        validate.refuse_faults("x, " + source.folder, found, repair)
        custom.load_dicts(source, found.classes, repair)
    if refused:
        raise refused[0]


def read_predictions(folder: Path, path: Path) -> None:
    saved.score_file(folder / "predictions.json", folder / "truth.json")


def prediction_seeds(folder: Path) -> list[Seed]:
    seeds = [json_seed("predictions.json", PREDICTIONS), json_seed("truth.json", COCO)]
    for seed in seeds:
        (folder / seed.file).write_bytes(seed.data)
    return [seeds[0], *seeds]


def read_drawn(folder: Path, path: Path) -> None:
    """Read predictions like visualize."""
    name = "fuzz"
    if name not in DatasetCatalog:
        items = [{"image_id": i, "file_name": "a", "width": 8, "height": 8} for i in (1, 2)]
        DatasetCatalog.register(name, lambda: items)
        MetadataCatalog.get(name).set(
            thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={3: 0, 5: 1}
        )
    for rows in saved.read_predictions(path, name).values():
        saved.to_instances(rows, 8, 8, str(path))


_VOC = b"""<?xml version="1.0"?>
<annotation>
  <folder>x</folder><filename>a.jpg</filename>
  <size><width>8</width><height>8</height><depth>3</depth></size>
  <object><name>cat</name><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>7.5</xmax><ymax>8</ymax></bndbox></object>
  <object><name>dog</name>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>
</annotation>
"""
_ENTITIES = (
    b'<!DOCTYPE x [<!ENTITY a0 "ha">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 10))
    + b"]>"
)
XML_WORDS = (
    b"&a9;",
    b"&lt;",
    b"&#0;",
    b"&#x110000;",
    b"<![CDATA[",
    b"]]>",
    b"<!--",
    b"-1",
    b'<!DOCTYPE x SYSTEM "file:///etc/passwd">',
    b"<object>",
    b"</object>",
    b"<name>",
    b"<a>" * 5000,
    b'<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>',
    b"inf",
    b"nan",
    b"1e400",
    b'encoding="utf-16"',
    b'encoding="x"',
    b'encoding="utf-7"',
    b"\xff\xfe",
    b"<?x ?>",
    b'xmlns="x"',
    b"<bndbox>",
    b"<xmin>",
    b"<filename>../../x</filename>",
    b"9" * 400,
    b"<xi:include href='/etc/passwd'/>",
    b"<size/>",
    _ENTITIES,
)


def voc_seeds(folder: Path) -> list[Seed]:
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb 1\n")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "b.xml").write_bytes(_VOC)

    def build(rng):
        kind = rng.randrange(12)
        if kind == 0:
            return _VOC.replace(b"<annotation>", _ENTITIES + b"<annotation>").replace(
                b"cat", b"&a9;"
            )
        if kind == 1:
            return b"<a>" * 50_000 + rng.choice((b"", b"</a>" * 50_000))
        if kind == 2:
            code = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7", "cp037"))
            text = _VOC.decode().replace("cat", rng.choice(("é", "cat")))
            return text.replace('"1.0"', f'"1.0" encoding="{code}"').encode(code)
        words = [b"cat", b"0", b"1", b"8", b"7.5", b"a.jpg", b"name", b"object", b"xmin", b"size"]
        return _VOC.replace(
            rng.choice(words),
            rng.choice((*XML_WORDS, str(strange(rng)).encode("utf-8", "replace"))),
            rng.choice((1, -1)),
        )

    split = Seed("ImageSets/Main/train.txt", b"a\nb 1\n")
    (folder / "Annotations" / "a.xml").write_bytes(_VOC)
    return [Seed("Annotations/a.xml", _VOC, build)] * 4 + [split]


def read_voc(folder: Path, path: Path) -> None:
    _use(custom.CustomDataset("x", "voc", str(folder), "train"))


_YOLO = b"""path: .
train: images/train
names:
  0: cat
  1: dog
nc: 2
"""
_LABELS = b"0 0.25 0.5 0.5 1\n1 0 0 1 0 1 0.5\n"


def yolo_seeds(folder: Path) -> list[Seed]:
    image, label = folder / "images/train/a.png", folder / "labels/train/a.txt"
    for path in (image, label):
        path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(image)
    label.write_bytes(_LABELS)
    (folder / "data.yaml").write_bytes(_YOLO)
    words = [b"cat", b"0", b"1", b"2", b"path", b"images/train", b"names", b".", b"\n", b" "]

    def build(text):
        return lambda rng: text.replace(
            rng.choice(words), str(strange(rng)).encode("utf-8", "replace"), rng.choice((1, -1))
        )

    names = {"data.yaml": _YOLO, "labels/train/a.txt": _LABELS}
    return [Seed(name, text, build(text)) for name, text in names.items()]


def read_yolo(folder: Path, path: Path) -> None:
    _use(custom.CustomDataset("x", "yolo", str(folder / "data.yaml"), "train"))
