"""A size limit for YAML files, checked before aliases are expanded."""

import math
from pathlib import Path

import yaml

from robust_backbones.core.errors import UserError

MAX_ENTRIES = 100_000  # nested aliases of a few bytes can expand to billions of entries


def check_entries(path: str | Path, node: yaml.Node) -> None:
    """Reject a YAML file whose aliases expand to too many entries.

    Args:
        path: the file, for the message.
        node: its root node, as `yaml.compose` returns it.

    Raises:
        UserError: the file has more than `MAX_ENTRIES` entries after expanding its aliases.
    """
    if _count_entries(node, {}) > MAX_ENTRIES:
        raise UserError(f"{path} has more than {MAX_ENTRIES} entries after expanding aliases.")


def _count_entries(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of nodes below and including one; infinity if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until counted, so an alias to an ancestor is infinite
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        known[id(node)] = 1 + sum(_count_entries(child, known) for child in children)
    return known[id(node)]
