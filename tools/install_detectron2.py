#!/usr/bin/env python
"""Install Detectron2 into the environment of the Python that runs this, without a compiler.

    python tools/install_detectron2.py              # the 0.6 release's Python files, from PyPI
    python tools/install_detectron2.py --official   # the newest official source, compiled

An existing Detectron2 is left alone. PyTorch must be installed already. Needs only Python and pip.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# A source archive whose Python files are those of the official tag v0.6. The C++ part is left out:
# Faster and Mask R-CNN use torchvision's ROIAlign and NMS.
REQUIREMENT = (
    "pb1-detectron2==0.6 "
    "--hash=sha256:5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29 "
    "--config-settings=--global-option=build_py --config-settings=--build-option=--skip-build\n"
)
OFFICIAL = "git+https://github.com/facebookresearch/detectron2.git"
BUILD_TOOLS = ["setuptools<81", "wheel"]  # what both archives' setup.py builds with
# The newest known to take the archive; 23.1 brought per-line settings.
PIP = "pip==26.0 --hash=sha256:98436feffb9e31bc9339cf369fd55d3331b1580b6a6f1173bacacddcf9c34754\n"


def pip(*args: str, path: str | None = None) -> int:
    """Run pip, or the one in folder `path`, in this environment; returns its exit status."""
    environment = dict(os.environ, PYTHONPATH=path) if path else None
    return subprocess.call([sys.executable, "-m", "pip", *args], env=environment)


def pip_is_suitable() -> bool:
    """Whether this environment's own pip can install the archive (23.1 to 26.0)."""
    try:
        import pip as installed
    except ImportError:
        return False
    version = tuple(int(part) for part in installed.__version__.split(".")[:2] if part.isdigit())
    return (23, 1) <= version <= (26, 0)


def install_release() -> int:
    """Install the archive, its SHA-256 checked by pip before anything of it is used."""
    with tempfile.TemporaryDirectory() as folder:
        own, requirements = None, Path(folder, "requirements.txt")
        if not pip_is_suitable():
            own = str(Path(folder, "pip"))
            requirements.write_text(PIP)
            if status := pip("install", "--quiet", "--target", own, "-r", str(requirements)):
                return status
        requirements.write_text(REQUIREMENT)
        flags = ["--use-pep517", "--no-deps", "--no-build-isolation", "--quiet"]
        return pip("install", *flags, "-r", str(requirements), path=own)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", action="store_true", help="build the newest official source (needs git, C++)"
    )
    args = parser.parse_args()
    if not args.official and importlib.util.find_spec("detectron2"):
        print("Detectron2 is installed already; left as it is.")
        return 0
    if importlib.util.find_spec("torch") is None:
        print("error: PyTorch is missing; install torch and torchvision first.", file=sys.stderr)
        return 2
    if status := pip("install", "--quiet", *BUILD_TOOLS):
        return status
    if args.official:
        return pip("install", "--no-build-isolation", "--no-deps", "--force-reinstall", OFFICIAL)
    return install_release()


if __name__ == "__main__":
    sys.exit(main())
