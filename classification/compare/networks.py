"""Read the networks of a comparison, and check that they can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from classification import known_classes
from classification.report.comparisons import recipe_differences
from classification.report.networks import is_twin
from classification.report.result_kinds import network
from classification.transfer.result import describe_source
from robust_backbones import weights
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError


@dataclass(frozen=True)
class Network:
    """Network of a comparison.

    Attributes:
        weights: path, published name or URL, as the user gave it.
        label: unique short name for the study's axis `weights`.
        path: local file.
        sha256: SHA-256 of the file.
        arch: architecture.
        constraint: norm of the attack during pretraining, `"l2"` or `"linf"`.
        eps: radius of this attack for images in [0, 1]; 0: standard training.
        pretrained_on: dataset that the network was pretrained on; empty: not recorded.
        image_size: height and width of the pretraining images in pixels; None: not recorded.
        source: recorded pretraining recipe, as in the settings of a transfer result.
        assumed_standard: whether the file does not record how the network was trained.
        checkpoint: contents of the file.
    """

    weights: str
    label: str
    path: Path
    sha256: str
    arch: str
    constraint: str
    eps: float
    pretrained_on: str
    image_size: int | None
    source: dict
    assumed_standard: bool
    checkpoint: Checkpoint = field(repr=False)


def read_networks(sources: Sequence[str], pretrained_on: str = "") -> list[Network]:
    """Fetch and read the networks, and check that robust ones can be compared with standard ones.

    Args:
        sources: paths, published names or URLs.
        pretrained_on: pretraining dataset of networks whose files do not record it.

    Raises:
        UserError: a file cannot be fetched or read, or as for `comparable`.
    """
    return comparable([_read(source, pretrained_on) for source in sources])


def comparable(found: list[Network]) -> list[Network]:
    """Add labels to the networks, and check that robust ones can be compared with standard ones.

    Raises:
        UserError: two files are equal, or a network has no counterpart to be compared with.
    """
    _check_unique(found)
    _check_sides(found)
    return _with_labels(found)


def _read(source: str, pretrained_on: str) -> Network:
    path = weights.fetch_weights(source)
    checkpoint = read_weights(source, path=path)
    recipe = describe_source(checkpoint)
    facts = network({"source": recipe}, source, {"pretrained_on": pretrained_on})
    eps = facts["eps"]
    if eps is None:
        raise UserError(
            f"--weights {source}: the network is not standard, and its eps is unknown. Give a "
            "published network with an eps, or a checkpoint of classification.pretrain."
        )
    return Network(
        source,
        "",
        path,
        checkpoint.sha256,
        checkpoint.arch,
        facts["constraint"],
        eps,
        facts["pretrained_on"],
        known_classes.image_size(checkpoint),
        recipe,
        facts.get("assumed_standard", False),
        checkpoint,
    )


def _with_labels(found: list[Network]) -> list[Network]:
    """Add labels such as `standard` and `eps 3`, with as much detail as unique labels need."""
    details = [
        lambda n: "",
        lambda n: n.constraint if n.eps else "",
        lambda n: n.arch,
        lambda n: weights.short_name(n.weights),
        lambda n: n.sha256[:8],
    ]
    plain = ["standard" if not n.eps else f"eps {show_eps(n.constraint, n.eps)}" for n in found]
    labels = plain
    for detail in details:
        twice = {label for label, count in Counter(labels).items() if count > 1}
        if not twice:
            break
        labels = [
            f"{label} {detail(n)}".strip() if label in twice else label
            for label, n in zip(labels, found, strict=True)
        ]
    return [replace(n, label=label) for n, label in zip(found, labels, strict=True)]


def _check_unique(found: Sequence[Network]) -> None:
    for one, other in combinations(found, 2):
        if one.sha256 == other.sha256:
            raise UserError(
                f"--weights {one.weights} and {other.weights} are the same file. Remove one."
            )


def _check_sides(found: Sequence[Network]) -> None:
    """Check that every network has a counterpart: a robust one, or a standard one."""
    for side, other in (("robust", "standard"), ("standard", "robust")):
        if not any(bool(n.eps) == (side == "robust") for n in found):
            archs = _listed({n.arch for n in found})
            raise UserError(
                f"--weights: only {other} networks ({_listed(n.weights for n in found)}). Add a "
                f"{side} twin ({archs}). `robust-backbones zoo list` lists the published ones."
            )
    for one in found:
        rivals = [n for n in found if bool(n.eps) != bool(one.eps)]
        if not any(_same_origin(n, one) for n in rivals):
            raise UserError(
                f"--weights {one.weights}: {_origin(one)}, but {rivals[0].weights}: "
                f"{_origin(rivals[0])}. Their difference would not be due to robustness. Give "
                "robust and standard networks with the same pretraining data, or name data that is "
                "not recorded with --pretrained-on."
            )


def _same_origin(one: Network, other: Network) -> bool:
    """Return whether networks have the same pretraining data, or one is the other's known twin."""
    pairs = ((one.weights, other.weights), (other.weights, one.weights))
    return one.pretrained_on == other.pretrained_on or any(is_twin(*pair) for pair in pairs)


def _origin(one: Network) -> str:
    return f"pretrained on {one.pretrained_on}" if one.pretrained_on else "pretraining not recorded"


def describe(found: Sequence[Network]) -> list[str]:
    """Describe the networks in sentences: which they are, and in what their recipes differ."""
    lines = [
        f"  {n.label:16} {n.weights} ({n.arch}, {_origin(n)}, "
        f"{'standard' if not n.eps else f'{n.constraint} eps {show_eps(n.constraint, n.eps)}'})"
        for n in found
    ]
    lines += [
        f"warning: {n.weights} does not record how it was trained. It counts as standard."
        for n in found
        if n.assumed_standard
    ]
    lines += [
        f"warning: {warning['message']}"
        for n in found
        for warning in known_classes.unfinished_warnings(n.checkpoint, n.weights)
    ]
    robust, standard = ([n for n in found if bool(n.eps) is side] for side in (True, False))
    differences = dict.fromkeys(
        words
        for one in robust
        for other in standard
        if _same_origin(one, other)
        for words in _differences(one, other)
    )
    if differences:
        lines.append(f"warning: the networks differ in more than eps: {', '.join(differences)}.")
    else:
        lines.append("These networks are twins: their recorded recipes differ only in eps.")
    return lines


def _differences(one: Network, other: Network) -> tuple[str, ...]:
    more = {
        "architecture": (one.arch, other.arch),
        "image size": (one.image_size, other.image_size),
    }
    own = tuple(words for words, (a, b) in more.items() if None not in (a, b) and a != b)
    return (*own, *recipe_differences(one.source, other.source))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
