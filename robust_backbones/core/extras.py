"""Packages that only some features need, and the command that installs them.

setup.py reads `EXTRAS` from this file before the package is installed, so it imports nothing.
"""

DETECTION = (
    "pycocotools",
    "hotcoco>=1.3,<2",  # fast COCO metrics with the numbers of pycocotools
    "fvcore",
    "iopath",
    "yacs",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "cloudpickle",
    "packaging",
    "termcolor",
    "setuptools<81",  # Detectron2 0.6 imports pkg_resources
)

# Extra -> its requirements. `robust-backbones install-detectron2` also installs `detection`.
EXTRAS = {
    # Detectron2 itself is not listed, because PyPI has no wheel of it.
    "detection": DETECTION,
    # Also needed: pip install --no-deps imagecorruptions-imaug. It is not listed because it
    # requires opencv-python, which overwrites files of opencv-python-headless.
    "corruptions": ("numba",),
    "attacks": ("pyautoattack",),  # robustness-eval --autoattack
    "timm": ("timm>=1.0",),  # timm networks: ConvNeXt, Swin, ViT and others
    "drive": ("gdown>=6.5",),  # published weights on Google Drive
    "dill": ("dill",),  # convert --allow-pickle for files of the robustness library
    "ray": ("ray>=2.40",),  # study --executor ray
    "shards": ("webdataset>=1.0",),  # training data as tar files
}

INSTALL_DETECTRON2 = "robust-backbones install-detectron2"


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra.

    It names the packages instead of the extra, so it works for a clone and for a wheel, and does
    not depend on who owns the project's name on a package index.
    """
    return INSTALL_DETECTRON2 if extra == "detection" else pip_install(*EXTRAS[extra])


def pip_install(*requirements: str) -> str:
    """Return the command that installs the requirements, quoted for a shell."""
    quoted = (f'"{r}"' if set(r) & set("<>!=~") else r for r in requirements)
    return f"pip install {' '.join(quoted)}"


def missing(package: str, extra: str, need: str = "") -> str:
    """Return the message that a package of an extra is not installed.

    Args:
        package: the package.
        extra: key of `EXTRAS`.
        need: feature or option that needs the package, or empty.
    """
    start = f"{need}: " if need else ""
    return f"{start}{package} is not installed. Run: {install_command(extra)}"
