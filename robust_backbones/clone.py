"""What lies beside the packages in a clone and inside them in a wheel, configs/ and tools/; and the
commit that a clone is at."""

import functools
import subprocess
from pathlib import Path

from robust_backbones import __version__

_HERE = Path(__file__).resolve().parent
CARRIED = "_clone"  # where setup.py puts them in a wheel


def root() -> Path:
    """The folder that holds `configs` and `tools`."""
    carried = _HERE / CARRIED
    return carried if carried.is_dir() else _HERE.parent


def config_file(path: str | Path) -> Path:
    """`path`; or, where no such file is, the config or study of that name which comes with the
    packages: `configs/studies/demo.yaml`, `coco_mask_rcnn_robust_eps3.yaml`."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml") or path.is_absolute() or path.exists():
        return path
    ours = (root() / path, root() / "configs" / path)
    return next((file for file in ours if file.is_file()), path)


@functools.cache
def version() -> str:
    """`0.1.0`; in a clone with its commit, `0.1.0+1a2b3c4d5e6f`, and `-dirty` where tracked files
    differ from it."""
    if not (_HERE.parent / ".git").exists():
        return __version__
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run([*command, "--abbrev=12"], cwd=_HERE.parent, capture_output=True,
                              text=True, check=True, timeout=10)  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # no git, or one that may not read this
        return __version__
    return f"{__version__}+{said.stdout.strip()}"
