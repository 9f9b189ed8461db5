"""Common corruptions of images: 15 kinds at 5 severities, for testing and never for training.

They are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261) in the form for images of any
size that Michaelis et al. 2019 (arXiv 1907.07484) test detectors with. The computation is that of
the package imagecorruptions-imaug, a maintained copy of those authors' own. The copy chooses among
six frost pictures, the authors' package among the first five. Only the first five are used here,
because the sixth is much weaker.
"""

import contextlib
import importlib.metadata
import io
import types
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.loader import seed_from
from robust_backbones.detection.robustness.grid import CLEAN, Condition

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug"
# Without its requirements: the package asks for opencv-python, whose files and those of
# opencv-python-headless, which is here, overwrite each other. Both give the module it needs.
INSTALL = f"pip install numba && pip install --no-deps {PACKAGE}"
SMALLEST = 32  # pixels: the package's limit to a side
_OWN_GENERATOR = ("impulse_noise", "glass_blur")  # others draw from NumPy's global one
FROST_PICTURES, FROST_PACKAGED = 5, 6  # pictures of the authors and of the package


def package_version() -> str:
    """Version of the package that corrupts.

    Raises:
        UserError: it is not installed; says how to do that.
    """
    _package()
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # another one of the same module name
        raise _absent() from None


def _package() -> types.ModuleType:
    try:
        import imagecorruptions
    except ImportError:
        raise _absent() from None
    return imagecorruptions


def _absent() -> UserError:
    return UserError(f"common corruptions need the package {PACKAGE}; install it: {INSTALL}")


def corrupt(image: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt one image; equal arguments give equal images, and no global generator moves.

    Args:
        image: `(H, W, 3)` uint8 RGB, each side at least `SMALLEST`.
        kind: one of `KINDS`.
        severity: one of `SEVERITIES`.
        seed: of the kinds that are random, in [0, 2**63).

    Returns:
        An image of the same form.

    Raises:
        UserError: the package is not installed, or the arguments are not as said above.
    """
    package = _package()
    if kind not in KINDS or severity not in SEVERITIES:
        raise UserError(
            f"corruption '{kind}' at severity {severity} is unknown; the kinds are "
            f"{', '.join(KINDS)}, the severities {', '.join(map(str, SEVERITIES))}."
        )
    if min(image.shape[:2]) < SMALLEST:
        raise UserError(
            f"an image is {image.shape[1]} x {image.shape[0]} pixels; corruptions need at least "
            f"{SMALLEST} x {SMALLEST}: leave it out of the data set."
        )
    seed %= 2**32  # what NumPy takes
    if kind == "frost":
        seed = _frost_seed(seed)
    own = {"seed": seed} if kind in _OWN_GENERATOR else {}
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where an image's size is odd
            return package.corrupt(image, severity, kind, **own)
    finally:
        np.random.set_state(before)


def _frost_seed(seed: int) -> int:
    """The next seed whose first random number, which selects the picture, gives one of the authors'
    pictures."""
    while np.random.RandomState(seed).randint(FROST_PACKAGED) >= FROST_PICTURES:
        seed = (seed + 1) % 2**32
    return seed


def choose(names: list[str] | None) -> list[str]:
    """Kinds by their names or those of `GROUPS`, in the table's order; None: all.

    Raises:
        UserError: there is no such kind or group.
    """
    wanted = set()
    for name in names or KINDS:
        if name not in GROUPS and name not in KINDS:
            raise UserError(
                f"corruption '{name}' is unknown; one of: {', '.join(KINDS)}, or a group: "
                f"{', '.join(GROUPS)}."
            )
        wanted |= set(GROUPS.get(name, (name,)))
    return [kind for kind in KINDS if kind in wanted]


def conditions(cfg: CfgNode, kinds: list[str], severities: list[int], seed: int) -> list[Condition]:
    """The clean images, and each kind at each severity.

    The image of the file is corrupted, then resized. Random numbers follow from seed, number of the
    image in its data set, kind and severity.

    Args:
        cfg: the detector's.
        kinds: of `KINDS`.
        severities: of `SEVERITIES`.
        seed: of the random corruptions.
    """
    resize = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))
    load = partial(_load, resize, cfg.INPUT.FORMAT, seed)
    rows = [Condition(CLEAN, partial(load, None, 0))]
    for kind in kinds:
        for severity in severities:
            facts = {"corruption": kind, "severity": severity}
            rows.append(Condition(f"{kind} {severity}", partial(load, kind, severity), facts=facts))
    return rows


def _load(
    resize: Any, channels: str, seed: int, kind: str | None, severity: int, number: int, item: dict
) -> dict:
    """What Detectron2's `DatasetMapper` gives for tests, from the corrupted image."""
    image = detection_utils.read_image(item["file_name"], format="RGB")
    detection_utils.check_image_size(item, image)
    if kind is not None:
        own = seed_from(seed, number, KINDS.index(kind), severity)
        image = corrupt(image, kind, severity, own)
    if channels == "BGR":
        image = image[:, :, ::-1]
    augmented = T.AugInput(image)
    resize(augmented)
    pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
    rest = {key: value for key, value in item.items() if key != "annotations"}
    return rest | {"image": torch.as_tensor(pixels)}
