"""Config files as plain YAML: nothing in them is run, and their size is their own."""

import io
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from robust_backbones.core.errors import UserError
from robust_backbones.core.resources import config_file
from robust_backbones.core.yaml_entries import check_entries


class _Files(CfgNode):
    """Config files and their `_BASE_`s as plain YAML; Detectron2 would obey tags that name Python
    objects, and so run what a file says."""

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        if "://" not in filename:
            filename = str(config_file(filename))  # `_BASE_: robust-backbones/base/voc.yaml`
        with super()._open_cfg(filename) as file:
            text = file.read()
        node = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{filename} is no config: it must be a mapping of keys to values.")
        check_entries(filename, node)
        return io.StringIO(text)


# What fvcore, yacs and PyYAML raise for a file or a value that is none.
WRONG = (
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    SyntaxError,
    RecursionError,
    MemoryError,
    yaml.YAMLError,
    OSError,
)


def read(path: str | Path, version: int) -> CfgNode:
    """What a config file and its `_BASE_`s hold.

    Args:
        version: Detectron2's, of configs.

    Raises:
        UserError: no mapping, too many entries, or of another version.
        one of `WRONG`: no YAML, or a base that is none.
    """
    try:
        found = _Files.load_yaml_with_base(str(path), allow_unsafe=False)
    except UserError as error:  # of which file, and how one came to it
        own = str(error).startswith(str(path))
        raise error if own else UserError(f"a _BASE_ of {path}: {error}") from None
    if found.get("VERSION", version) != version:
        raise UserError(f"{path}: VERSION is {found['VERSION']}; only {version} is supported.")
    return CfgNode(found)
