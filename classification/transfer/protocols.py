"""Transfer protocols, and the parts of a protocol that the user can replace."""

from dataclasses import asdict, dataclass

from robust_backbones.core.errors import UserError

# Allowed values of each part, with their meanings. Each part is an option of
# `classification.transfer`.
PARTS = {
    "normalization": {
        "weights": "use the statistics that the weights were trained with",
        "target": "use the dataset's own statistics if there are any, else no normalization",
    },
    "batchnorm": {
        "frozen": "keep the BatchNorm statistics of a frozen network",
        "adapting": "let a frozen network update its BatchNorm statistics",
    },
    "probe": {
        "logistic": "logistic regression by L-BFGS on cached features; selects the penalty",
        "knn": "k nearest neighbors on cached features; selects k",
        "sgd": "a linear layer by SGD on augmented images; selects the learning rate",
    },
    "orientation": {
        "applied": "apply the EXIF orientation",
        "ignored": "keep the stored pixels, as torchvision does",
    },
    "selection": {
        "validation": "select on a part of the training images, then train on all of them",
        "test": "select on the test images, including the epoch",
    },
}
# Hyperparameter that each probe selects. Results use the same names.
CHOICES = {"logistic": "penalty", "knn": "neighbors", "sgd": "lr"}
MODES = ("fixed-feature", "full-network")
FULL_NETWORK = {"batchnorm": "adapting", "probe": "sgd"}  # parts of every protocol in this mode


@dataclass(frozen=True)
class Protocol:
    """Protocol with one value for each of the `PARTS`.

    `batchnorm` and `probe` are options for frozen networks only. Full networks are always trained
    by SGD and update their BatchNorm statistics.
    """

    normalization: str
    batchnorm: str
    probe: str
    orientation: str
    selection: str


PROTOCOLS = {
    "clean": Protocol("weights", "frozen", "logistic", "applied", "validation"),
    # This protocol follows the authors' code, which differs from the paper's text. The code updates
    # the BatchNorm statistics of frozen layers, does not use ImageNet's normalization, ignores the
    # EXIF orientation, and selects on the test images.
    "paper": Protocol("target", "adapting", "sgd", "ignored", "test"),
}


def compose(mode: str, protocol: str, given: dict[str, str]) -> Protocol:
    """Build a protocol from a named protocol and the parts that the user gave.

    Args:
        mode: part of the network to train, one of `MODES`.
        protocol: name of the protocol, a key of `PROTOCOLS`.
        given: map from part to value, for the parts that the user gave.

    Raises:
        UserError: the parts contradict each other or the mode.
    """
    parts = asdict(PROTOCOLS[protocol]) | given
    if mode == "full-network":
        if fixed := [f"--{name}" for name in FULL_NETWORK if name in given]:
            raise UserError(
                f"{' and '.join(fixed)} with --mode full-network: only --mode fixed-feature has "
                "this option. Omit it."
            )
        parts |= FULL_NETWORK
    elif parts["probe"] != "sgd" and parts["batchnorm"] == "adapting":
        raise UserError(
            f"--probe {parts['probe']} with --batchnorm adapting: features that change during "
            "training cannot be cached. Choose --probe sgd or --batchnorm frozen."
        )
    return Protocol(**parts)


def name_of(mode: str, protocol: str, parts: Protocol) -> str:
    """Return the protocol's name with all replaced parts, such as `clean+selection=test`."""
    usual = asdict(compose(mode, protocol, {}))
    return "+".join([protocol, *(f"{k}={v}" for k, v in asdict(parts).items() if usual[k] != v)])
