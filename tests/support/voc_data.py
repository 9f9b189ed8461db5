"""Small folders of images with annotations in VOC's XML, in any layout."""

from pathlib import Path

import numpy as np
from PIL import Image

XML = (
    "<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height></size>"
    "{objects}</annotation>"
)
OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def voc(
    root: Path,
    images: dict[str, list[tuple]],
    splits: dict[str, str] | None = None,
    folders: tuple[str, str] = ("Annotations", "JPEGImages"),
) -> Path:
    """Write images of 40 x 30 pixels with annotations, and return the folder.

    Args:
        root: folder to write.
        images: objects `(class, (xmin, ymin, xmax, ymax))` of each image, by its name.
        splits: text of each file in `ImageSets/Main`; None to write no `ImageSets`.
        folders: folders of the annotations and of the images, relative to `root`.
    """
    marks, pictures = (root / name for name in folders)
    for folder in (marks, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    for name, objects in images.items():
        parts = "".join(OBJECT.format(label, *box) for label, box in objects)
        (marks / f"{name}.xml").write_text(XML.format(name=name, objects=parts), encoding="utf-8")
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(pictures / f"{name}.jpg")
    if splits is not None:
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        for split, text in splits.items():
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
    return root
