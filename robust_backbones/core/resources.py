"""Find packaged configs, and determine the version of the code."""

import functools
import os
import subprocess
from pathlib import Path

from robust_backbones import __version__
from robust_backbones.core.errors import UserError, either, nearest
from robust_backbones.core.paths import expand

_PACKAGE = Path(__file__).resolve().parents[1]
_PREFIX = "robust-backbones"  # `_BASE_: robust-backbones/base/voc.yaml` names a packaged config
_YAML = (".yaml", ".yml")


def configs() -> Path:
    """Return the folder of the packaged configs.

    setup.py installs `configs/` as `robust_backbones/configs`. In a clone, the folder is next to
    the package.
    """
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def get_config_file(name: str) -> str:
    """Return the path of a packaged config, as `detectron2.model_zoo.get_config_file` does.

    Args:
        name: path below `configs/`, such as `coco_mask_rcnn_robust_eps3.yaml`,
            `base/robust_resnet_fpn.yaml` or `studies/table1.yaml`.

    Raises:
        UserError: no packaged config has this name. The message suggests similar names.
    """
    file = _packaged(Path(name))
    if file is None:
        known = sorted(path.relative_to(configs()).as_posix() for path in configs().rglob("*.yaml"))
        raise UserError(
            f"no packaged config is named '{name}'. {_suggestion(name, known, configs())}"
        )
    return str(file)


def config_file(path: str | Path) -> Path:
    """Return `path` if the file exists, or else the packaged config with this name.

    If there is no such config, return `path`. Examples of names are `configs/studies/demo.yaml`,
    `coco_mask_rcnn_robust_eps3.yaml` and `robust-backbones/base/voc.yaml`.
    """
    path = Path(expand(path))
    if path.suffix not in _YAML or path.exists():
        return path
    return _packaged(path) or path


def require_config(path: str | Path, kind: str = "config", under: str = "") -> Path:
    """Return `config_file(path)`, and check that the file exists.

    Commands call this function before the slow import of Detectron2.

    Args:
        path: config file, or the name of a packaged one.
        kind: kind of the file, for the message.
        under: folder below `configs/` with the packaged files of this kind.

    Raises:
        UserError: the file does not exist, or is a folder. The message suggests similar names.
    """
    file = config_file(path)
    if file.is_file():
        return file
    fault = "is a folder" if file.is_dir() else "does not exist"
    folders = (file.parent, Path("configs", under))
    near = [str(p) for folder in folders for p in folder.glob("*.yaml")]
    near += [str(Path(under, p.name)) for p in (configs() / under).glob("*.yaml")]
    suggestion = _suggestion(str(path), near, configs() / under)
    raise UserError(f"{kind} file '{path}' {fault}. {suggestion}")


def _packaged(path: Path) -> Path | None:
    parts = path.parts
    if _PREFIX in parts:
        parts = parts[len(parts) - parts[::-1].index(_PREFIX) :]
    elif path.is_absolute():
        return None
    file = configs().joinpath(*parts[parts[:1] == ("configs",) :])
    return file if ".." not in parts and file.is_file() else None


def _suggestion(name: str, known: list[str], folder: Path) -> str:
    by_stem = {Path(text).stem: text for text in reversed(known)}  # keep the first text per stem
    near = nearest(Path(name).stem, reversed(by_stem))
    if not near:
        return f"The packaged files are in {folder}."
    return f"Did you mean {either(by_stem[stem] for stem in near)}?"


def python_environment() -> dict[str, str]:
    """Return the environment of a Python process that imports this project.

    With its folder in PYTHONPATH, the commands of a clone work without installation.
    """
    path = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


@functools.cache
def version() -> str:
    """Return the version of the code. In a clone, append the commit: `0.2.0+1a2b3c4d5e6f`.

    Also append `-dirty` if tracked files differ from the commit.
    """
    if not (_PACKAGE.parent / ".git").exists():
        return __version__
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        described = subprocess.run(
            [*command, "--abbrev=12"],
            cwd=_PACKAGE.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):  # git is missing or fails
        return __version__
    return f"{__version__}+{described.stdout.strip()}"
