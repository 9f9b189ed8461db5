"""Compare the classes, image size and image range of a trained classifier with a dataset."""

import itertools
import unicodedata
from collections.abc import Sequence

from classification.datasets.split import Split
from classification.transforms import TEST_SCALE
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core.errors import UserError

SOURCE_INPUT = ("input_size", "interpolation", "crop_pct")  # timm's names
NAMES, NUMBER = "names", "number"  # results of `check_classes`


def class_names(metadata: dict) -> tuple[str, ...] | None:
    """Return the class names in a checkpoint's metadata, in the order of its outputs, or None.

    Raises:
        UserError: the entry is not a list of strings.
    """
    names = metadata.get("class_names")
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"the weights' class_names are {names!r:.80}. They must be a list of names."
        )
    return tuple(names)


def image_size(found: Checkpoint) -> int | None:
    """Return the height and width of the training images in pixels; None if unknown."""
    size = found.training.get("image_size", found.training.get("input_size"))
    return size if type(size) is int and size > 0 else None


def source_input(found: Checkpoint) -> dict:
    """Return the input that the source of a network states: size, interpolation and crop."""
    known = {name: found.training.get(name) for name in SOURCE_INPUT}
    return {name: value for name, value in known.items() if value is not None}


def announce_input(stated: dict, size: int, weights: str) -> None:
    """Print one line if the source of a network states its input.

    Args:
        stated: output of `source_input`.
        size: height and width of the images of this run in pixels.
        weights: name of the network's checkpoint.
    """
    if stated:
        theirs = ", ".join(f"{name} {value}" for name, value in stated.items())
        print(
            f"input of {weights}: {theirs}; of this run: input_size {size}, "
            f"interpolation bilinear, crop_pct {1 / TEST_SCALE:g}",
            flush=True,
        )


def check_classes(found: Checkpoint, number: int, weights: str, source: Split) -> str:
    """Check that a classifier was trained on the classes of a dataset, in the same order.

    Args:
        found: checkpoint of the classifier.
        number: number of classes of the classifier.
        weights: name of the checkpoint.
        source: dataset.

    Returns:
        `"names"`, or `"number"` if the checkpoint has no class names to compare.

    Raises:
        UserError: the number, the names or the order of the classes differ.
    """
    if number != source.classes:
        raise UserError(
            f"--weights {weights}: the model has {number} classes, but {source.name} has "
            f"{source.classes}. Choose another --dataset, or train a model for this one."
        )
    names = class_names(found.training)
    if names is None:
        return NUMBER
    check_names(names, source.class_names, f"--weights {weights}", source.name)
    return NAMES


def check_names(known: Sequence[str], found: Sequence[str], weights: str, dataset: str) -> None:
    """Check that two lists of class names are equal.

    Args:
        known: class names of a network.
        found: class names of the data, or of another network.
        weights, dataset: names of both in the error message.

    Raises:
        UserError: the names or their order differ.
    """
    # Folders that were copied from macOS may have decomposed accents.
    one, two = ([unicodedata.normalize("NFC", name) for name in names] for names in (known, found))
    if one == two:
        return
    pairs = itertools.zip_longest(one, two, fillvalue="missing")
    first, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    where = f"{weights}: class {first} is '{a}', but '{b}' in {dataset}."
    if sorted(one) == sorted(two):
        raise UserError(
            f"{where} The names are the same in a different order, so each prediction would count "
            "as another class. Give the data in the layout of the training data."
        )
    raise UserError(
        f"{where} Choose the data that the weights were trained on. If the classes are the same, "
        "rename them as in the weights."
    )


def check_range(metadata: dict, image_range: Sequence[float] | None, weights: str) -> None:
    """Check that images with more than 8 bits are scaled as in the training of a classifier.

    Args:
        metadata: metadata of the checkpoint. Its `image_range` is absent for 8-bit images.
        image_range: values that become black and white; None if not given.
        weights: name of the checkpoint.

    Raises:
        UserError: the checkpoint has a different range, or an invalid one.
    """
    trained = metadata.get("image_range")
    if trained is None:
        return
    if not isinstance(trained, (list, tuple)) or [type(v) for v in trained] != [float, float]:
        raise UserError(f"the weights' image_range is {trained!r:.80}. It must be two numbers.")
    if list(trained) != list(image_range or ()):
        given = " ".join(f"{value:g}" for value in image_range) if image_range else "not given"
        low, high = trained
        raise UserError(
            f"--image-range is {given}, but the images of {weights} were scaled with other "
            f"values. Pass --image-range {low:g} {high:g}."
        )


def unfinished_warnings(weights: Checkpoint, name: str) -> list[dict]:
    """Return a warning if the pretraining that wrote a checkpoint is unfinished.

    Args:
        weights: contents of the checkpoint.
        name: name of the checkpoint.
    """
    finished, epochs = (weights.training.get(key) for key in ("finished_epochs", "epochs"))
    if finished is None:
        return []
    message = (
        f"the pretraining of {name} is unfinished ({finished} of {epochs} epochs). Finish it with "
        "--resume, or state the number of epochs with the results."
    )
    return [{"check": "unfinished", "message": message}]


def size_warnings(trained: int | None, size: int, weights: str) -> list[dict]:
    """Return a warning if the image size differs from the size that a network was trained with.

    Args:
        trained: height and width of the training images in pixels; None: unknown.
        size: height and width of the images in pixels.
        weights: name of the network's checkpoint.
    """
    if trained in (None, size):
        return []
    message = (
        f"the images have {size} x {size} pixels, but {weights} was trained with {trained} x "
        f"{trained}. Accuracy depends on the size. Use --image-size {trained} for the size of the "
        "training."
    )
    return [{"check": "image_size", "message": message}]
