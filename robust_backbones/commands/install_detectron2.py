"""Install Detectron2 into the environment of this Python, without a compiler.

robust-backbones install-detectron2               # the Python files of release 0.6, from PyPI
robust-backbones install-detectron2 --official    # the newest official source, compiled

An installed Detectron2 is not changed. Install PyTorch first. The command needs only Python and
pip.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors

# This source archive contains the Python files of the official tag v0.6. Its C++ part is not built,
# because Faster and Mask R-CNN use torchvision's ROIAlign and NMS.
REQUIREMENT = (
    "pb1-detectron2==0.6 "
    "--hash=sha256:5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29 "
    "--config-settings=--global-option=build_py --config-settings=--build-option=--skip-build\n"
)
OFFICIAL = "git+https://github.com/facebookresearch/detectron2.git"
BUILD_TOOLS = ["setuptools<81", "wheel"]  # the setup.py files of both sources need these
# This is the newest pip known to install the archive. Options per requirement need pip 23.1.
PIP = "pip==26.0 --hash=sha256:98436feffb9e31bc9339cf369fd55d3331b1580b6a6f1173bacacddcf9c34754\n"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--official",
        action="store_true",
        help="build the newest official source (needs git and a C++ compiler)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Install Detectron2. Return the exit status of pip."""
    args = parse(argv)
    with user_errors():
        if not args.official and importlib.util.find_spec("detectron2"):
            print("Detectron2 is already installed. Nothing was changed.")
            return 0
        if importlib.util.find_spec("torch") is None:
            raise UserError("PyTorch is not installed. Install torch and torchvision first.")
    if status := _pip("install", "--quiet", *BUILD_TOOLS):
        return status
    if args.official:
        return _pip("install", "--no-build-isolation", "--no-deps", "--force-reinstall", OFFICIAL)
    return _install_release()


def _install_release() -> int:
    """Install the archive. pip checks the archive's SHA-256 before it runs code of the archive."""
    with tempfile.TemporaryDirectory() as folder:
        other_pip, requirements = None, Path(folder, "requirements.txt")
        if not _pip_is_suitable():
            other_pip = str(Path(folder, "pip"))
            requirements.write_text(PIP)
            if status := _pip("install", "--quiet", "--target", other_pip, "-r", str(requirements)):
                return status
        requirements.write_text(REQUIREMENT)
        flags = ["--use-pep517", "--no-deps", "--no-build-isolation", "--quiet"]
        return _pip("install", *flags, "-r", str(requirements), path=other_pip)


def _pip(*arguments: str, path: str | None = None) -> int:
    """Run pip in this environment, and return its exit status.

    Args:
        arguments: command-line arguments of pip.
        path: folder with another pip to run; None for the pip of this environment.
    """
    environment = dict(os.environ, PYTHONPATH=path) if path else None
    return subprocess.call([sys.executable, "-m", "pip", *arguments], env=environment)


def _pip_is_suitable() -> bool:
    """Return whether this environment's pip can install the archive (23.1 to 26.0)."""
    try:
        installed = metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    version = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    return (23, 1) <= version <= (26, 0)
