"""A small COCO dataset written to a folder."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def coco(folder, **changes) -> Path:
    """Two images of 40 x 30 with three objects of two classes, whose ids are not 1 and 2."""
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    mark = {"iscrowd": 0, "area": 100.0, "bbox": [5, 5, 10, 10], "segmentation": square}
    contents = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            mark | {"id": 1, "image_id": 7, "category_id": 20},
            mark | {"id": 2, "image_id": 7, "category_id": 10},
            mark | {"id": 3, "image_id": 3, "category_id": 10},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 10, "name": "cat"}],
    }
    for path, value in changes.items():
        part, index, key = path.split("__")
        contents[part][int(index)][key] = value
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / name)
    (folder / "marks.json").write_text(json.dumps(contents))
    return folder / "marks.json"
