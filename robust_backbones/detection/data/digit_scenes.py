"""Digit scenes: a small detection and segmentation dataset that needs no download.

Each scene contains some of scikit-learn's 1,797 handwritten digits, with random sizes, colors and
positions. The background is a texture from one of scikit-image's photographs. The masks are exact.
Training and validation scenes share neither digits nor parts of photographs. The scenes are
deterministic. They are written once to the cache, in COCO's and in VOC's layout, and with semantic
masks.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from robust_backbones.core.digits import read_digits
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import cache_dir, locked

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEMANTIC_CLASSES = ("background", *CLASSES)
SIZE = 96  # height and width of a scene, in pixels
SPLITS = {"train": 1200, "val": 200}  # split -> number of scenes
DIGITS = (1, 4)  # smallest and largest number of digits per scene
DIGIT_SIZE = (20, 44)  # smallest and largest height and width of a digit, in pixels
DIGITS_TRAIN = 1437  # training scenes contain scikit-learn's first 1,437 digits
TEXTURES = ("brick", "grass", "gravel")
SEED = 2020
VERSION = 2  # part of the folder's name; increase it if any file changes
MASKS = "SegmentationClass"  # folder of the semantic masks, with the name of VOC's


def folder() -> Path:
    """Return the folder of the scenes, which may not exist yet."""
    return cache_dir() / f"digit_scenes_v{VERSION}"


def coco_file(split: str) -> str:
    """Return the path of the COCO annotation file of a split, relative to `folder()`."""
    return f"instances_{split}.json"


def ensure() -> Path:
    """Create the scenes if they do not exist, and return their folder.

    If several processes call this function, only one of them creates the scenes.

    Raises:
        UserError: the cache cannot be written, or the disk is full.
    """
    target = folder()
    if target.is_dir():
        return target
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            _write(target)
    return target


def _write(target: Path) -> None:
    temporary = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        for split in SPLITS:
            _write_split(temporary, split)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write {target}: {error.strerror}. Free disk space, or set "
            "ROBUST_BACKBONES_CACHE to another folder."
        ) from None


def draw_scene(
    digits: tuple[np.ndarray, np.ndarray], textures: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[dict]]:
    """Draw one scene.

    Args:
        digits: digits to choose from: images `(n, 8, 8)`, float in [0, 16], and labels `(n,)`.
        textures: gray photographs to choose from, `(H, W)` uint8. H and W are at least `SIZE`.
        rng: random generator.

    Returns:
        The image `(SIZE, SIZE, 3)`, uint8 RGB, and `{"label": int, "mask": (SIZE, SIZE) bool}` for
        each digit. The digits do not overlap.
    """
    image = _background(textures, rng)
    taken = np.zeros((SIZE, SIZE), bool)
    objects = []
    for _ in range(rng.integers(DIGITS[0], DIGITS[1] + 1)):
        window = _free_window(taken, rng)
        if window is None:
            break
        taken[window] = True
        index = rng.integers(len(digits[1]))
        side = window[0].stop - window[0].start
        stroke = np.asarray(
            Image.fromarray(digits[0][index].astype(np.float32) / 16).resize((side, side), 2)
        )
        color = _contrasting_color(image[window], rng)
        opacity = np.clip((stroke - 0.3) / 0.3, 0, 1)[..., None]
        image[window] = image[window] * (1 - opacity) + color * opacity
        mask = np.zeros((SIZE, SIZE), bool)
        mask[window] = opacity[..., 0] >= 0.5
        objects.append({"label": int(digits[1][index]), "mask": mask})
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), objects


def _free_window(taken: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Draw a random square without occupied pixels; return None after 20 failed attempts.

    Args:
        taken: mask of the occupied pixels, `(SIZE, SIZE)` bool.
        rng: random generator.
    """
    for _ in range(20):
        side = int(rng.integers(DIGIT_SIZE[0], DIGIT_SIZE[1] + 1))
        top, left = rng.integers(0, SIZE - side + 1, 2)
        window = np.s_[top : top + side, left : left + side]
        if not taken[window].any():
            return window
    return None


def _background(textures: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Crop a random part of a random texture and tint it: `(SIZE, SIZE, 3)`, float in [0, 255]."""
    texture = textures[int(rng.integers(len(textures)))]
    top, left = (int(rng.integers(0, n - SIZE + 1)) for n in texture.shape)
    gray = texture[top : top + SIZE, left : left + SIZE].astype(np.float32)
    tint = rng.uniform(0.6, 1.0, 3)
    return gray[..., None] * tint


def _contrasting_color(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a color at least 90 gray levels lighter or darker than the mean of the patch."""
    mean = patch.mean()
    levels = rng.uniform(0, 60, 3) if mean > 150 else rng.uniform(mean + 90, 255, 3)
    return levels


def _sources(split: str) -> tuple[tuple[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Return the digits and the textures of a split.

    Training scenes use the first digits and the left three quarters of each photograph.
    """
    import skimage.data  # imported here, because it takes a second, and scenes are created once

    digits, labels = read_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    textures = []
    for name in TEXTURES:
        photo = getattr(skimage.data, name)()
        border = photo.shape[1] * 3 // 4
        textures.append(photo[:, :border] if split == "train" else photo[:, border:])
    return (digits[part], labels[part]), textures


def _write_split(root: Path, split: str) -> None:
    digits, textures = _sources(split)
    rng = np.random.default_rng([SEED, list(SPLITS).index(split)])
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", MASKS):
        (root / name).mkdir(parents=True, exist_ok=True)
    images, annotations, stems = [], [], []
    for number in range(SPLITS[split]):
        pixels, objects = draw_scene(digits, textures, rng)
        stem = f"{split}_{number:05d}"
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.jpg", quality=95)
        semantic_mask(objects).save(root / MASKS / f"{stem}.png")
        stems.append(stem)
        images.append({"id": number, "file_name": f"{stem}.jpg", "width": SIZE, "height": SIZE})
        rows = [_coco_row(item, number, len(annotations) + i + 1) for i, item in enumerate(objects)]
        annotations += rows
        (root / "Annotations" / f"{stem}.xml").write_text(_voc_xml(stem, rows), encoding="utf-8")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    contents = {
        "info": {"description": "digit scenes", "version": VERSION},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    (root / coco_file(split)).write_text(json.dumps(contents), encoding="utf-8")
    (root / MASKS / "classes.txt").write_text("\n".join(SEMANTIC_CLASSES) + "\n")


def semantic_mask(objects: list[dict]) -> Image.Image:
    """Return the semantic mask of a scene, indices of `SEMANTIC_CLASSES`, as a gray image."""
    indices = np.zeros((SIZE, SIZE), np.uint8)
    for item in objects:
        indices[item["mask"]] = item["label"] + 1
    return Image.fromarray(indices)


def _coco_row(item: dict, image_id: int, row_id: int) -> dict:
    code = coco_mask.encode(np.asfortranarray(item["mask"]))
    return {
        "id": row_id,
        "image_id": image_id,
        "category_id": item["label"] + 1,
        "bbox": [float(v) for v in coco_mask.toBbox(code)],
        "area": int(coco_mask.area(code)),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
        "iscrowd": 0,
    }


def _voc_xml(stem: str, rows: list[dict]) -> str:
    """Return a VOC annotation as XML.

    VOC counts pixels from 1, and a box includes its last pixel.
    """
    objects = ""
    for row in rows:
        x, y, w, h = (int(v) for v in row["bbox"])
        objects += (
            f"<object><name>{escape(CLASSES[row['category_id'] - 1])}</name>"
            "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
            f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            "</bndbox></object>"
        )
    return (
        f"<annotation><filename>{escape(stem)}.jpg</filename><size><width>{SIZE}</width>"
        f"<height>{SIZE}</height><depth>3</depth></size>{objects}</annotation>\n"
    )
