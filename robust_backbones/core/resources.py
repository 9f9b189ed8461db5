"""What lies beside the packages in a clone and inside them in a wheel, configs/ and tools/; and the
commit that a clone is at."""

import difflib
import functools
import subprocess
from pathlib import Path

from robust_backbones import __version__
from robust_backbones.core.errors import UserError

_HERE = Path(__file__).resolve().parents[1]
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


def detector_config(path: str | Path) -> Path:
    """As `config_file`, of a detector. Programs ask before they import Detectron2: seconds.

    Raises:
        UserError: it is not there; the configs of a name like it are named.
    """
    path = config_file(path)
    if path.is_file():
        return path
    ours = {p.stem: Path(p.name) for p in (root() / "configs").glob("*.yaml")}
    there = {p.stem: p for place in (path.parent, Path("configs")) for p in place.glob("*.yaml")}
    found = ours | there
    near = difflib.get_close_matches(path.stem, found, n=4, cutoff=0.3)
    hint = "did you mean " + ", ".join(str(found[n]) for n in near) if near else "see configs/"
    raise UserError(f"config file '{path}' does not exist; {hint}.")


@functools.cache
def version() -> str:
    """`0.1.0`; in a clone with its commit, `0.1.0+1a2b3c4d5e6f`, and `-dirty` where tracked files
    differ from it."""
    if not (_HERE.parent / ".git").exists():
        return __version__
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(
            [*command, "--abbrev=12"],
            cwd=_HERE.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or one that may not read this
        return __version__
    return f"{__version__}+{said.stdout.strip()}"
