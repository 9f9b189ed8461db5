"""Install Detectron2 into the environment of this Python, without a compiler.

Examples:
  robust-backbones install-detectron2               # the Python files of release 0.6, from PyPI
  robust-backbones install-detectron2 --official    # the newest official source, compiled

The installed release is patched for current versions of PyTorch, NumPy, Pillow and Python, and
contains the configs of the model zoo. An installed Detectron2 is not changed. The packages that
detectors need are installed too, if they are missing. Install PyTorch first.
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from robust_backbones.core.cli import Parser
from robust_backbones.core.detectron2_patches import MISSING_EXTENSION, patched
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.core.extras import DETECTION

DISTRIBUTION = "pb1-detectron2"
VERSION = "0.6+patched"
# This source archive contains the Python files of the official tag v0.6, but no C++ files, so pip
# cannot build it. Faster and Mask R-CNN use torchvision's ROIAlign and NMS.
ARCHIVE = (
    f"{DISTRIBUTION}==0.6 "
    "--hash=sha256:5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29\n"
)
OFFICIAL = "git+https://github.com/facebookresearch/detectron2.git"
# Newer versions of pip do not download the archive, because one of its extras contains a URL.
PIP = "pip==26.0 --hash=sha256:98436feffb9e31bc9339cf369fd55d3331b1580b6a6f1173bacacddcf9c34754\n"
# Folders of the archive, and where they are installed.
FOLDERS = {
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}
# Requirements of the archive that differ in the wheel. Only Caffe2 and `LazyConfig.to_py` need the
# three that are dropped, and newer versions of iopath work.
REQUIREMENTS = {
    "future": "",
    "pydot": "",
    "black==21.4b2": "",
    "iopath<0.1.10,>=0.1.7": "iopath>=0.1.7",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--official",
        action="store_true",
        help="build the newest official source (needs git and a C++ compiler)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help=f"replace an installed {DISTRIBUTION} that lacks the current patches",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Install Detectron2. Return the exit status of pip."""
    args = parse(argv)
    with user_errors():
        if importlib.util.find_spec("torch") is None:
            raise UserError("PyTorch is not installed. Install torch and torchvision first.")
        if importlib.util.find_spec("pip") is None:  # as in environments of uv
            raise UserError(f"pip is not installed in {sys.prefix}. Run: uv pip install pip")
        # The setup.py files of both sources need setuptools, which is in DETECTION, and wheel.
        if status := _pip("install", "--quiet", *DETECTION, "wheel"):
            return status
        installed = _installed()
        if not args.official and importlib.util.find_spec("detectron2"):
            if not installed or installed == VERSION or not args.replace:
                print("Detectron2 is already installed, and was not changed.")
                if installed and installed != VERSION:
                    print("It has no patches. To replace it, add --replace.")
                return 0
    if not args.official:
        return _install_release()
    if installed and (status := _pip("uninstall", "--quiet", "--yes", DISTRIBUTION)):
        return status
    return _pip("install", "--no-build-isolation", "--no-deps", "--force-reinstall", OFFICIAL)


def _installed() -> str | None:
    """Return the installed version of `DISTRIBUTION`, or None."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def _install_release() -> int:
    """Download the archive, build a wheel from it, and install the wheel.

    pip checks the archive's SHA-256 before it runs code from the archive.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, other_pip = Path(name), None
        requirements = folder / "requirements.txt"
        if not _pip_is_suitable():
            other_pip = str(folder / "pip")
            requirements.write_text(PIP)
            if status := _pip("install", "--quiet", "--target", other_pip, "-r", str(requirements)):
                return status
        requirements.write_text(ARCHIVE)
        flags = ["--quiet", "--no-deps", "--no-build-isolation", "--dest", name]
        if status := _pip("download", *flags, "-r", str(requirements), path=other_pip):
            return status
        write_wheel(folder / "pb1-detectron2-0.6.tar.gz", folder)
        # From a folder of wheels, pip records the version. From a file, it would record its path.
        flags = ["--quiet", "--no-deps", "--no-index", "--find-links", name]
        return _pip("install", *flags, f"{DISTRIBUTION}=={VERSION}")


def write_wheel(archive: Path, folder: Path) -> Path:
    """Write a wheel with the archive's Python files, patched, and the configs of the model zoo.

    Args:
        archive: source archive of Detectron2 0.6.
        folder: folder of the wheel.

    Returns:
        The path of the wheel.
    """
    project = DISTRIBUTION.replace("-", "_")
    info = f"{project}-{VERSION}.dist-info"
    contents = {"detectron2/_C.py": MISSING_EXTENSION.read_bytes()}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.partition("/")[2]
            source = next((folder for folder in FOLDERS if name.startswith(folder)), None)
            file = tar.extractfile(member)  # None for folders and links
            if file and source:
                contents[FOLDERS[source] + name.removeprefix(source)] = file.read()
            elif file and name == "LICENSE":
                contents[f"{info}/licenses/LICENSE"] = file.read()
            elif file and name == f"{project}.egg-info/requires.txt":
                contents[f"{info}/METADATA"] = _metadata(file.read().decode()).encode()
    for name, data in contents.items():
        if name.startswith("detectron2/") and name.endswith(".py"):
            module = name.removeprefix("detectron2/").removesuffix(".py").replace("/", ".")
            contents[name] = patched(module, data.decode()).encode()
    contents[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: robust-backbones\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{project}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in contents.items():
            written.writestr(name, data)
    return wheel


def _metadata(requires: str) -> str:
    """Return the wheel's metadata.

    Args:
        requires: requirements of the archive. The first section has those without an extra.
    """
    needed = [REQUIREMENTS.get(line, line) for line in requires.split("\n\n")[0].split("\n")]
    return (
        f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {VERSION}\n"
        "Summary: Detectron2 0.6 without its C++ extension, patched by robust-backbones\n"
        "Home-page: https://github.com/facebookresearch/detectron2\nLicense: Apache-2.0\n"
    ) + "".join(f"Requires-Dist: {line}\n" for line in needed if line)


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    return f"sha256={digest.rstrip('=')}"


def _pip(*arguments: str, path: str | None = None) -> int:
    """Run pip in this environment, and return its exit status.

    Args:
        arguments: command-line arguments of pip.
        path: folder with another pip to run; None for the pip of this environment.
    """
    environment = dict(os.environ, PYTHONPATH=path) if path else None
    return subprocess.call([sys.executable, "-m", "pip", *arguments], env=environment)


def _pip_is_suitable() -> bool:
    """Return whether this environment's pip can download the archive."""
    try:
        installed = metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    version = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    return version <= (26, 0)
