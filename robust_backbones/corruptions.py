"""Common corruptions of images: 15 kinds at 5 severities, for evaluation and never for training.

The corruptions were published by Hendrycks and Dietterich 2019 (arXiv 1903.12261). Michaelis et al.
2019 (arXiv 1907.07484) made them independent of the image size, to evaluate detectors. This module
computes them with imagecorruptions-imaug, a maintained copy of the authors' package. The copy
chooses among six frost pictures, and the original package among the first five. This module uses
the first five pictures, because the sixth is much weaker.
"""

import contextlib
import importlib.metadata
import io
import types

import numpy as np

from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.extras import install_command

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug"
# Install the package without its requirements. It requires opencv-python, which would overwrite
# files of opencv-python-headless, a requirement of this project. The module cv2 is in both.
INSTALL = f"{install_command('corruptions')} && pip install --no-deps {PACKAGE}"
SMALLEST = 32  # shortest side of an image that the package accepts, pixels
# These kinds have an argument for the seed. Other kinds use NumPy's global generator.
_SEED_ARGUMENT = ("impulse_noise", "glass_blur")
FROST_PICTURES, FROST_PACKAGED = 5, 6  # numbers of pictures in the authors' package and its copy


def package_version() -> str:
    """Return the version of imagecorruptions-imaug.

    Raises:
        UserError: the package is not installed.
    """
    _package()
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # the module belongs to another package
        raise _not_installed() from None


def _package() -> types.ModuleType:
    try:
        import imagecorruptions  # optional, because it requires OpenCV and numba
    except ImportError:
        raise _not_installed() from None
    return imagecorruptions


def _not_installed() -> UserError:
    return UserError(f"common corruptions: {PACKAGE} is not installed. Run: {INSTALL}")


def corrupt(image: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt one image.

    Equal arguments give equal images. NumPy's global random state is restored afterwards.

    Args:
        image: image `(H, W, 3)`, uint8 RGB, with at least `SMALLEST` pixels per side.
        kind: kind of corruption, one of `KINDS`.
        severity: severity of the corruption, one of `SEVERITIES`.
        seed: seed for corruptions with random numbers, in [0, 2**63).

    Returns:
        The corrupted image, `(H, W, 3)` uint8 RGB.

    Raises:
        UserError: the package is not installed, the kind or severity is unknown, or the image is
            too small.
    """
    package = _package()
    if kind not in KINDS or severity not in SEVERITIES:
        raise UserError(
            f"corruption '{kind}' at severity {severity} is unknown. Choose a severity from "
            f"{', '.join(map(str, SEVERITIES))} and a kind from {', '.join(KINDS)}."
        )
    if min(image.shape[:2]) < SMALLEST:
        raise UserError(
            f"an image has {image.shape[1]} x {image.shape[0]} pixels, but corruptions need at "
            f"least {SMALLEST} x {SMALLEST}. Remove the image from the dataset."
        )
    seed %= 2**32  # the range of NumPy's seeds
    if kind == "frost":
        seed = _frost_seed(seed)
    argument = {"seed": seed} if kind in _SEED_ARGUMENT else {}
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides warnings about odd image sizes
            return package.corrupt(image, severity, kind, **argument)
    finally:
        np.random.set_state(before)


def _frost_seed(seed: int) -> int:
    """Find the next seed whose first random number selects one of the authors' pictures."""
    while np.random.RandomState(seed).randint(FROST_PACKAGED) >= FROST_PICTURES:
        seed = (seed + 1) % 2**32
    return seed


def choose(names: list[str] | None) -> list[str]:
    """Return the selected kinds of corruption, in the order of `KINDS`.

    Args:
        names: names of kinds and of groups, the keys of `GROUPS`; None for all kinds.

    Raises:
        UserError: a name is neither a kind nor a group.
    """
    wanted = set()
    for name in names or KINDS:
        if name not in GROUPS and name not in KINDS:
            known = choose_from(
                name,
                [*GROUPS, *KINDS],
                f"Choose from the groups {', '.join(GROUPS)} and the kinds {', '.join(KINDS)}.",
            )
            raise UserError(f"corruption '{name}' is unknown. {known}")
        wanted |= set(GROUPS.get(name, (name,)))
    return [kind for kind in KINDS if kind in wanted]
