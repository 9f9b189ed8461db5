"""Small folders of images and semantic masks."""

from pathlib import Path

import numpy as np
from PIL import Image

STRIPES = np.repeat(np.arange(3, dtype=np.uint8), 10)[:, None].repeat(40, 1)  # (30, 40), 0 to 2


def mask_folders(
    root: Path, masks: dict[str, np.ndarray | Image.Image] | None = None, names: str = ""
) -> tuple[Path, Path]:
    """Write images of 40 x 30 pixels and masks, and return their two folders.

    Args:
        root: folder to write.
        masks: mask of each image, by stem: an array, or an image of any mode.
        names: text of classes.txt; empty for none.
    """
    folders = root / "images", root / "masks"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for stem, mask in ({"a": STRIPES, "b": STRIPES} if masks is None else masks).items():
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(folders[0] / f"{stem}.jpg")
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(folders[1] / f"{stem}.png")
    if names:
        (folders[1] / "classes.txt").write_text(names, encoding="utf-8")
    return folders
