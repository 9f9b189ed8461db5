"""Limit the size of YAML files before their aliases are expanded."""

import math
from pathlib import Path

import yaml

from robust_backbones.core.errors import UserError

MAX_ENTRIES = 100_000  # nested aliases of a few bytes can expand to billions of entries


def check_entries(path: str | Path, node: yaml.Node) -> None:
    """Reject a YAML file whose aliases expand to too many entries.

    Args:
        path: path of the file, for the error message.
        node: root node of the file, as `yaml.compose` returns it.

    Raises:
        UserError: the file has more than `MAX_ENTRIES` entries after expanding its aliases.
    """
    if _count_entries(node, {}) > MAX_ENTRIES:
        raise UserError(f"{path} has more than {MAX_ENTRIES} entries after expanding aliases.")


def _count_entries(node: yaml.Node, known: dict[int, float]) -> float:
    """Count a node and all nodes below it. Return infinity if the node contains itself.

    Args:
        node: node to count.
        known: counts of earlier nodes, by their id. The counts of new nodes are added.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # an alias to an ancestor counts as infinite
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        known[id(node)] = 1 + sum(_count_entries(child, known) for child in children)
    return known[id(node)]
