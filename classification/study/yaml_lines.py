"""YAML with the line of each entry, so that mistakes can be shown where they are."""

from pathlib import Path
from typing import Any

import yaml

from robust_backbones.core.errors import UserError

LIMIT = 100_000  # entries; a few bytes of aliases of aliases can ask for billions


class Document:
    """A YAML file: plain values, and where they stand.

    Attributes:
        path: of the file.
        value: what it holds, as `yaml.safe_load` has it.
        lines: `(key, key or index, ...)` of an entry -> its line, from 1.

    Raises:
        UserError: it cannot be read, is not YAML, has a key twice or more than 100,000 entries.
    """

    def __init__(self, path: str | Path):
        self.path, self.lines, self._count = Path(path), {}, 0
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not YAML: it is not text in UTF-8.") from None
        loader = None
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            self.value = None if node is None else self._plain(loader, node, ())
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
        except RecursionError:
            raise UserError(f"{path} is nested too deeply.") from None
        finally:
            if loader:
                loader.dispose()

    def wrong(self, where: tuple, message: str) -> UserError:
        """An error that begins with the file and the line of an entry, or of what holds it."""
        while where and where not in self.lines:
            where = where[:-1]
        return UserError(f"{self.path}:{self.lines.get(where, 1)}: {message}")

    def _plain(self, loader: Any, node: Any, where: tuple) -> Any:
        self.lines.setdefault(where, node.start_mark.line + 1)
        self._count += 1
        if self._count > LIMIT:
            raise UserError(f"{self.path} has more than {LIMIT} entries.")
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(loader, n, (*where, i)) for i, n in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._value(loader, node, where)
        found = {}
        for key_node, value_node in node.value:
            key = self._value(loader, key_node, where)
            line = key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float)):
                raise UserError(f"{self.path}:{line}: the key {key!r} is neither text nor number.")
            if key in found:
                raise UserError(f"{self.path}:{line}: the key '{key}' is there twice.")
            place = (*where, key)
            self.lines[place] = line
            found[key] = self._plain(loader, value_node, place)
        return found

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, where: tuple) -> Any:
        try:
            return loader.construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
            # 2024-13-45 is taken for a date, and some tags are believed
            raise self.wrong(where, f"{error}.") from None
