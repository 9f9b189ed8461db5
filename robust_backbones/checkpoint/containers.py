"""Find the state dict of the network in the contents of a checkpoint file."""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from robust_backbones.checkpoint.wrappers import find_networks
from robust_backbones.core.errors import UserError

_FIRST = ("model", "state_dict")  # entries with priority over other sets of tensors
_AVERAGE = re.compile(r"(^|[_.])(ema|swa|avg|averaged?)($|[_.])")
_CHOOSE = "Choose one: robust-backbones convert FILE TARGET --key NAME"


def find_state(
    contents: Any, source: object, key: str | None = None
) -> tuple[dict[str, Tensor], dict, dict[str, str]]:
    """Find the state dict of the network in a file.

    It is the contents themselves, the entry `model` or `state_dict`, or the only other entry that
    is a dictionary of tensors. Averages of the weights are dropped if the weights are in the file.

    Args:
        contents: loaded contents of the file.
        source: name of the file in error messages.
        key: name of the entry, with dots between nested names. The last names can be the prefix of
            the network's tensors, such as `teacher.backbone`. None: found as described.

    Returns:
        `(state dict, other entries of the file, {dropped key: reason})`.

    Raises:
        UserError: the contents are not a dictionary of tensors, several entries are possible, or
            the file does not contain `key`.
    """
    contents = _without_module(contents)
    if not isinstance(contents, dict):
        raise UserError(
            f"{source}: the file contains a {type(contents).__name__}, not a dictionary of "
            "tensors. Save a state_dict."
        )
    contents = {name: _without_module(value) for name, value in contents.items()}
    sets = dict(_tensor_sets(contents))
    if key is not None:
        return _chosen(contents, sets, source, key)
    name = next((k for k in _FIRST if isinstance(contents.get(k), dict)), None)
    if name is None and sets and "" not in sets:
        trained = [k for k in sets if not _AVERAGE.search(k)] or list(sets)
        if trained[1:]:
            raise UserError(f"{source}: several sets of tensors: {_shown(trained)}. {_CHOOSE}.")
        name = trained[0]
    state = sets[name] if name in sets else contents.get(name, contents)
    if nested := [k for k in sets if name and k.startswith(f"{name}.")]:
        raise UserError(f"{source}: '{name}' contains {_shown(nested)}. {_CHOOSE}.")
    _require_tensors(state, source)
    rest = _others(contents, name)
    others = [k for k, v in rest.items() if isinstance(v, dict) and _contains_tensors(v)]
    return (
        state,
        rest,
        dict.fromkeys(others, "another set of tensors (averaged weights, optimizer)"),
    )


def _without_module(value: Any) -> Any:
    """Return the state dict of a whole pickled network, and any other value unchanged."""
    return value.state_dict() if isinstance(value, nn.Module) else value


def _tensor_sets(contents: dict) -> Iterator[tuple[str, dict]]:
    """Yield `(name, dictionary)` for all dictionaries with the weights of layers.

    The state of an optimizer is a dictionary of tensors too, but none is named `weight`.
    """
    pending, seen = [("", contents)], set()
    for path, node in pending:
        if not all(isinstance(k, str) for k in node):
            continue
        if all(isinstance(v, Tensor) for v in node.values()):
            if any(k.endswith(".weight") for k in node):
                yield path, node
        elif id(node) not in seen:
            seen.add(id(node))  # a container can contain itself
            inner = [(k, v) for k, v in node.items() if isinstance(v, dict)]
            pending += [(f"{path}.{k}" if path else k, v) for k, v in inner]


def _chosen(
    contents: dict, sets: dict[str, dict], source: object, key: str
) -> tuple[dict[str, Tensor], dict, dict[str, str]]:
    """Return the part of the file that the user chose, as `find_state` does."""
    fitting = [name for name in sets if name and f"{key}.".startswith(f"{name}.")]
    if fitting:
        name = max(fitting, key=len)
        state, rest, prefix = sets[name], _others(contents, name), key[len(name) + 1 :]
    else:  # a prefix in the state dict that is read without `key`
        prefix = key
        try:
            state, rest, _ = find_state(contents, source)
        except UserError:
            if not sets:
                raise
            state, rest = {}, {}  # the error below lists the sets of tensors
    prefix += "." * bool(prefix)
    inside = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    if not inside:
        choices = [*filter(None, sets), *(p.rstrip(".") for p in find_networks(state) if p)]
        fix = f"Choose from {_shown(choices)}." if choices else "It has only one. Omit --key."
        raise UserError(f"{source}: --key {key}: no such network. {fix}")
    outside = [k for k in state if not k.startswith(prefix)]
    return inside, rest, dict.fromkeys(outside, f"outside the part that --key {key} chose")


def _others(contents: dict, name: str | None) -> dict:
    """Return the entries of a file other than the one that contains `name`."""
    if not name:
        return {}
    return {k: v for k, v in contents.items() if not f"{name}.".startswith(f"{k}.")}


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")


def _contains_tensors(node: dict) -> bool:
    pending, seen = [node], {id(node)}
    for inner in pending:
        if any(isinstance(v, Tensor) for v in inner.values()):
            return True
        # A container can contain itself, or another one many times.
        more = {id(v): v for v in inner.values() if isinstance(v, dict) and id(v) not in seen}
        seen.update(more)
        pending += more.values()
    return False


def _require_tensors(state: dict, source: object) -> None:
    bad = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if bad or not state:
        what = f"'{bad[0]}' is a {type(state[bad[0]]).__name__}" if bad else "it is empty"
        raise UserError(f"{source}: not a dictionary of tensors ({what}). Save a state_dict.")
    if not all(isinstance(k, str) for k in state):
        raise UserError(f"{source}: some keys are not strings. Save a state_dict.")
