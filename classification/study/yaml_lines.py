"""Read YAML files with line numbers, so that error messages can name the line."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.files import read_text
from robust_backbones.core.yaml_entries import check_entries


@dataclass(frozen=True)
class Entry:
    """A value in a YAML file and its location.

    Attributes:
        path: path of the file.
        value: plain Python value, as `yaml.safe_load` returns it.
        keys: keys and list indices that lead from the top of the file to the value.
        lines: line number, from 1, of every entry in the file, by the entry's `keys`.
    """

    path: Path
    value: Any
    keys: tuple = ()
    lines: dict[tuple, int] = field(default_factory=dict, repr=False)

    def child(self, key: Any, default: Any = None) -> "Entry":
        """Return the entry at a key of a mapping. A missing key has the value `default`."""
        return replace(self, value=self.value.get(key, default), keys=(*self.keys, key))

    def children(self) -> list["Entry"]:
        """Return the entries of a list."""
        return [
            replace(self, value=value, keys=(*self.keys, i)) for i, value in enumerate(self.value)
        ]

    def error(self, message: str, *keys: Any) -> UserError:
        """Return an error that begins with the file and a line.

        Args:
            message: problem, allowed values, and fix.
            keys: keys of the wrong entry, below this entry. If the file has no such entry, the
                message names the line of the nearest enclosing entry.
        """
        where = (*self.keys, *keys)
        while where and where not in self.lines:
            where = where[:-1]
        return UserError(f"{self.path}:{self.lines.get(where, 1)}: {message}")

    def check_keys(self, allowed: Sequence[str]) -> None:
        """Raise a `UserError` if a mapping has a key that is not allowed."""
        for key in self.value:
            if key not in allowed:
                raise self.error(f"unknown key '{key}'. {choose_from(str(key), allowed)}", key)

    def mapping(self) -> dict:
        """Return the value. Raise a `UserError` if the value is not a mapping."""
        if not isinstance(self.value, dict):
            raise self.error(f"{self.keys[-1]} must be a mapping of names to values.")
        return self.value


def read_yaml(path: str | Path) -> Entry:
    """Read a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, has a duplicate key or too many entries.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not YAML: it is not UTF-8 text.") from None
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        top = Entry(Path(path), None)
        if node is None:
            return top
        check_entries(path, node)
        return replace(top, value=_value(loader, node, top))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply.") from None
    finally:
        if loader:
            loader.dispose()


def _value(loader: yaml.SafeLoader, node: yaml.Node, at: Entry) -> Any:
    """Return the plain value of a node, and record the line numbers of all entries in it."""
    at.lines.setdefault(at.keys, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        places = (replace(at, keys=(*at.keys, i)) for i in range(len(node.value)))
        return [_value(loader, n, p) for n, p in zip(node.value, places, strict=True)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node, at)
    found = {}
    for key_node, value_node in node.value:
        key = _scalar(loader, key_node, at)
        place = f"{at.path}:{key_node.start_mark.line + 1}"
        if not isinstance(key, (str, int, float)):
            raise UserError(f"{place}: the key {key!r} is neither a string nor a number.")
        if key in found:
            raise UserError(f"{place}: duplicate key '{key}'.")
        keys = (*at.keys, key)
        at.lines[keys] = key_node.start_mark.line + 1
        found[key] = _value(loader, value_node, replace(at, keys=keys))
    return found


def _scalar(loader: yaml.SafeLoader, node: yaml.Node, at: Entry) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML raises these errors for invalid dates such as 2024-13-45 and for text that does not
        # fit an explicit tag such as !!int.
        raise at.error(f"{error}.") from None
