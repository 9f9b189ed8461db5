"""Small YOLO datasets in Ultralytics' layout."""

from pathlib import Path

import numpy as np
from PIL import Image

BOX = "0 0.25 0.5 0.5 1\n"  # a cat that fills the left half
POLYGON = "1 0 0 1 0 1 0.5\n"  # a dog in the triangle (0, 0), (40, 0), (40, 15)


def yolo(
    root: Path, labels: dict[str, str | None] | None = None, text: str = "", **changes: str
) -> Path:
    """Write a dataset with images of 40 x 30 pixels, and return its data.yaml.

    Args:
        root: folder to write.
        labels: text of the label file of each image, `{"train/a": text}`; None writes no file.
        text: text of data.yaml. Empty for the splits train and val and the classes cat and dog.
        changes: replacements of lines of the default data.yaml, by their key.
    """
    labels = {"train/a": BOX + POLYGON, "val/b": BOX} if labels is None else labels
    for name, content in labels.items():
        image, label = (root / kind / name for kind in ("images", "labels"))
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(f"{image}.jpg")
        if content is not None:
            Path(f"{label}.txt").write_text(content, encoding="utf-8")
    lines = {"train": "images/train", "val": "images/val", "names": "[cat, dog]"} | changes
    text = text or "".join(f"{key}: {value}\n" for key, value in lines.items())
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return root / "data.yaml"
