"""How transfer is measured: protocols, one row each, and the parts that they are made of."""

from dataclasses import asdict, dataclass

from robust_backbones.core.errors import UserError

# Part -> its values and what they mean; each part is an option of `classification.transfer`.
PARTS = {
    "normalisation": {
        "weights": "with the statistics that the weights were trained with",
        "target": "with those of the data set where it has its own, else not at all",
    },
    "batchnorm": {
        "frozen": "of a fixed network stays as it is",
        "adapting": "of a fixed network keeps learning the statistics of the new images",
    },
    "probe": {
        "logistic": "L-BFGS on stored features, the penalty is chosen",
        "nearest": "k-NN on stored features, k is chosen",
        "sgd": "a linear layer by SGD on augmented images, the learning rate is chosen",
    },
    "selection": {
        "validation": "on a part of the training images; then all of them are trained on",
        "test": "on the test images, the epoch too",
    },
}


@dataclass(frozen=True)
class Protocol:
    """One value for each of the `PARTS`.

    `batchnorm` and `probe` are about fixed features; fine-tuning the full network is by SGD, and
    its BatchNorm learns.
    """

    normalisation: str
    batchnorm: str
    probe: str
    selection: str


PROTOCOLS = {
    "clean": Protocol("weights", "frozen", "logistic", "validation"),
    # What the authors' code does, which differs from what the paper says of it: the statistics of
    # frozen layers move, ImageNet's normalisation is dropped, and the test images decide.
    "paper": Protocol("target", "adapting", "sgd", "test"),
}
# What each probe chooses, by its name in the settings.
CHOICES = {"logistic": "penalty", "nearest": "neighbours", "sgd": "rates"}
FULL = {"batchnorm": "adapting", "probe": "sgd"}  # of the mode full-network, whatever the protocol
MODES = ("fixed-feature", "full-network")


def parts(mode: str, protocol: str, given: dict[str, str]) -> dict[str, str]:
    """The value of each part.

    Args:
        mode: of `MODES`.
        protocol: key of `PROTOCOLS`.
        given: parts that the user wants otherwise.

    Raises:
        UserError: they do not go together.
    """
    if mode == "full-network":
        if fixed := [f"--{name}" for name in FULL if name in given]:
            raise UserError(
                f"{' and '.join(fixed)} with --mode full-network: only for "
                "fixed-feature; leave it out."
            )
        return asdict(PROTOCOLS[protocol]) | given | FULL
    chosen = asdict(PROTOCOLS[protocol]) | given
    if chosen["probe"] != "sgd" and chosen["batchnorm"] == "adapting":
        raise UserError(
            f"--probe {chosen['probe']} with --batchnorm adapting: features that change while one "
            "trains cannot be stored; choose --probe sgd or --batchnorm frozen."
        )
    return chosen


def name_of(mode: str, protocol: str, chosen: dict[str, str]) -> str:
    """`clean`, or what differs from it: `clean+selection=test`."""
    usual = parts(mode, protocol, {})
    return "+".join([protocol, *(f"{k}={v}" for k, v in chosen.items() if usual[k] != v)])
