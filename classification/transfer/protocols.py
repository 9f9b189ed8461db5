"""Transfer protocols as rows of a table, and the parts that they consist of."""

from dataclasses import asdict, dataclass

from robust_backbones.core.errors import UserError

# Part -> its values and their meaning. Each part is an option of `classification.transfer`.
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
    "selection": {
        "validation": "select on a part of the training images, then train on all of them",
        "test": "select on the test images, including the epoch",
    },
}
# The hyperparameter that each probe selects, by its name in results.
CHOICES = {"logistic": "penalty", "knn": "neighbors", "sgd": "lr"}
MODES = ("fixed-feature", "full-network")
FULL_NETWORK = {"batchnorm": "adapting", "probe": "sgd"}  # the same in every protocol


@dataclass(frozen=True)
class Protocol:
    """One value for each of the `PARTS`.

    `batchnorm` and `probe` concern frozen networks. Full networks are fine-tuned by SGD, and update
    their BatchNorm statistics.
    """

    normalization: str
    batchnorm: str
    probe: str
    selection: str


PROTOCOLS = {
    "clean": Protocol("weights", "frozen", "logistic", "validation"),
    # The authors' code, which differs from the paper's text: BatchNorm statistics of frozen layers
    # are updated, ImageNet's normalization is not used, and the test images select.
    "paper": Protocol("target", "adapting", "sgd", "test"),
}


def compose(mode: str, protocol: str, given: dict[str, str]) -> Protocol:
    """Replace parts of a named protocol.

    Args:
        mode: one of `MODES`.
        protocol: key of `PROTOCOLS`.
        given: parts that the user chose.

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
    """Return the protocol's name and the parts that differ from it: `clean+selection=test`."""
    usual = asdict(compose(mode, protocol, {}))
    return "+".join([protocol, *(f"{k}={v}" for k, v in asdict(parts).items() if usual[k] != v)])
