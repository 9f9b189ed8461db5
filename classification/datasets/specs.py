"""The table of datasets: what each one is, how it is cut, where people find it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}


@dataclass(frozen=True)
class Dataset:
    """One classification task.

    Attributes:
        classes: number of classes; None: as many as the data has.
        image_size: height and width of the images that a classifier of it sees, pixels.
        mean, std: RGB statistics that a classifier of it normalises with, for images in [0, 1].
        augmentation: a key of `transforms.AUGMENTATIONS`, for training.
        reader: `module:function`, imported when needed; `(split, root)` -> images, labels, class
            names, as in `sources.Source`. Its splits are train and test.
        images: split -> number of images, where known; another number is an error.
        needs_root: whether the user says where the data lies.
        shards: whether WebDataset tar files are understood, see `shards`.
        recipe: a key of `recipes.RECIPES`: how a network is trained on it from nothing.
        title: its name in prose.
        metric: a key of `METRICS`: what its accuracy means in the paper.
        rule: which images train and which test.
        exact: whether another number of images than `images` is an error; else it is a warning.
        torchvision: class of `torchvision.datasets` that can fetch it; "": none can today.
        by_hand: where people find the files.
        source: page of those who made it.
        licence: as its makers state it.
        transfer_augmentation: a key of `transforms.AUGMENTATIONS`: how other networks learn it.
    """

    classes: int | None
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    reader: str
    images: dict[str, int] = field(default_factory=dict)
    needs_root: bool = True
    shards: bool = False
    recipe: str = "paper"
    title: str = ""
    metric: str = "top1"
    rule: str = ""
    exact: bool = True
    torchvision: str = ""
    by_hand: str = ""
    source: str = ""
    licence: str = "not stated"
    transfer_augmentation: str = "imagenet_plain"


_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_HERE = "classification.datasets."
_TREE = _HERE + "folders:read_tree"
_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CALTECH_BROKEN = "torchvision's links were dead for some months of 2025: use its newest release."
_RESEARCH = "non-commercial research"


def _embedded(classes: int, augmentation: str, train: int, test: int, **more: Any) -> Dataset:
    # ImageNet's statistics, so that the weights fit the detector's input contract as they are.
    return Dataset(
        classes,
        32,
        *_IMAGENET,
        augmentation,
        images={"train": train, "test": test},
        needs_root=False,
        recipe="quick",
        **more,
    )


def _task(reader: str, classes: int, train: int, test: int, **more: Any) -> Dataset:
    """Of the transfer suite, in photographs."""
    return Dataset(
        classes,
        224,
        *_IMAGENET,
        "imagenet_plain",
        _HERE + "layouts:" + reader,
        {"train": train, "test": test},
        **more,
    )


def _cifar(
    reader: str,
    classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    **more: Any,
) -> Dataset:
    return Dataset(
        classes,
        32,
        mean,
        std,
        "crop4_flip",
        _HERE + "cifar:" + reader,
        {"train": 50_000, "test": 10_000},
        recipe="cifar",
        rule="official train / test",
        source=_CIFAR_PAGE,
        by_hand=_CIFAR_PAGE,
        **more,
    )


# Sizes, splits and metrics of the 12 tasks are those of the paper's authors.
DATASETS = {
    "digits": _embedded(
        10,
        "shift2",
        1437,
        360,
        reader=_HERE + "embedded:read_digits",
        title="handwritten digits of scikit-learn",
        rule="the first 1437 train",
        source="https://scikit-learn.org",
        licence="see scikit-learn",
        transfer_augmentation="shift2",
    ),  # a mirrored digit is another one
    "textures": _embedded(
        6,
        "crop4_flip",
        3906,
        384,
        reader=_HERE + "embedded:read_textures",
        title="patches of scikit-image's photographs",
        rule="left part trains, right part tests",
        source="https://scikit-image.org",
        licence="see scikit-image",
    ),
    "faces": _embedded(
        2,
        "crop4_flip",
        150,
        50,
        reader=_HERE + "embedded:read_faces",
        title="faces or not, of scikit-image",
        rule="the first 75 of each class train",
        source="https://scikit-image.org",
        licence="see scikit-image",
    ),
    # Statistics as the published models' library has them.
    "cifar10": _cifar(
        "read_cifar10",
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        title="CIFAR-10",
        torchvision="CIFAR10",
    ),
    "cifar100": _cifar(
        "read_cifar100",
        100,
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
        title="CIFAR-100, fine classes",
        torchvision="CIFAR100",
    ),
    "imagenet": Dataset(
        1000,
        224,
        *_IMAGENET,
        "imagenet",
        _TREE,
        {"train": 1_281_167, "test": 50_000},
        shards=True,
        title="ImageNet (ILSVRC 2012)",
        rule="official train / val",
        source="https://image-net.org",
        licence=_RESEARCH,
        by_hand="https://image-net.org (an account is needed): ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar. Unpack each class of the first into train/<class>/, sort the "
        "second's images into val/<class>/.",
    ),
    "stylized_imagenet": Dataset(
        1000,
        224,
        *_IMAGENET,
        "imagenet",
        _TREE,
        {"train": 1_281_167, "test": 50_000},
        shards=True,
        title="Stylized ImageNet",
        rule="ImageNet's train / val",
        licence="as ImageNet",
        source="https://github.com/rgeirhos/Stylized-ImageNet",
        by_hand="nobody may pass it on: make it from ImageNet with the programs of "
        "https://github.com/rgeirhos/Stylized-ImageNet, as train/<class>/ and val/<class>/.",
    ),
    "folder": Dataset(
        None,
        224,
        *_IMAGENET,
        "imagenet",
        _TREE,
        shards=True,
        title="your own image folders",
        rule="train / test",
        licence="yours",
        by_hand="it is your own data: train/<class>/<image> and test/<class>/<image>.",
    ),
    "aircraft": _task(
        "aircraft",
        100,
        6667,
        3333,
        title="FGVC-Aircraft, variants",
        metric="mean_per_class",
        rule="official trainval / test",
        torchvision="FGVCAircraft",
        source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        licence=_RESEARCH,
        by_hand="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/: fgvc-aircraft-2013b.tar.gz",
    ),
    "birdsnap": _task(
        "birdsnap",
        500,
        32677,
        8171,
        exact=False,
        title="Birdsnap",
        rule="official test list, or your folders; the authors' 80/20 split was not published",
        source="https://thomasberg.org",
        licence="not stated; photographs from Flickr",
        by_hand="the official archive is a list of URLs, many of them dead: birdsnap.tgz (1.1) "
        "from https://thomasberg.org and its get_birdsnap.py, or the images of the Hugging Face "
        "datasets sasha/birdsnap (39860 images) and isaacchung/birdsnap. Absolute numbers of the "
        "paper cannot be matched; compare networks on your one split.",
    ),
    "caltech101": _task(
        "caltech101",
        101,
        3030,
        5647,
        title="Caltech-101",
        metric="mean_per_class",
        torchvision="Caltech101",
        rule="the first 30 of each class train, the others test; no background class",
        source="https://data.caltech.edu/records/mzrjq-6wc02",
        licence="CC BY 4.0",
        by_hand="https://data.caltech.edu/records/mzrjq-6wc02: caltech-101.zip, in it "
        "101_ObjectCategories.tar.gz. " + _CALTECH_BROKEN,
    ),
    "caltech256": _task(
        "caltech256",
        257,
        15420,
        15187,
        title="Caltech-256",
        metric="mean_per_class",
        torchvision="Caltech256",
        rule="the first 60 of each class train, the others test; clutter is a class",
        source="https://data.caltech.edu/records/nyy15-4j048",
        licence="CC BY 4.0",
        by_hand="https://data.caltech.edu/records/nyy15-4j048: 256_ObjectCategories.tar. "
        + _CALTECH_BROKEN,
    ),
    "cars": _task(
        "cars",
        196,
        8144,
        8041,
        title="Stanford Cars",
        rule="official train / test",
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        by_hand="its server is gone since 2023; https://github.com/pytorch/vision/issues/7545 has "
        "copies: the images at https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset,"
        " devkit/ at https://github.com/pytorch/vision/files/11644847/car_devkit.tgz, and in a "
        "comment (1631441616) the third part, cars_test_annos_withlabels.mat.",
    ),
    "dtd": _task(
        "dtd",
        47,
        3760,
        1880,
        title="Describable Textures",
        torchvision="DTD",
        rule="official partition 1: train1 + val1 / test1",
        licence="research",
        source="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        by_hand="https://www.robots.ox.ac.uk/~vgg/data/dtd/: dtd-r1.0.1.tar.gz",
    ),
    "flowers": _task(
        "flowers",
        102,
        2040,
        6149,
        title="Oxford 102 Flowers",
        metric="mean_per_class",
        rule="official train + val / test",
        torchvision="Flowers102",
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        by_hand="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/: 102flowers.tgz, setid.mat, "
        "imagelabels.mat",
    ),
    "food": _task(
        "food",
        101,
        75750,
        25250,
        title="Food-101",
        rule="official train / test",
        torchvision="Food101",
        licence="scientific fair use",
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        by_hand="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/: food-101.tar.gz",
    ),
    "pets": _task(
        "pets",
        37,
        3680,
        3669,
        title="Oxford-IIIT Pets",
        metric="mean_per_class",
        rule="official trainval / test",
        torchvision="OxfordIIITPet",
        licence="CC BY-SA 4.0",
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        by_hand="https://www.robots.ox.ac.uk/~vgg/data/pets/: images.tar.gz, annotations.tar.gz",
    ),
    "sun397": _task(
        "sun397",
        397,
        19850,
        19850,
        title="SUN397",
        rule="official partition 1: Training_01 / Testing_01, 50 + 50 of each class",
        source="https://vision.princeton.edu/projects/2010/SUN/",
        by_hand="the links of https://vision.princeton.edu/projects/2010/SUN/ (SUN397.tar.gz, "
        "Partitions.zip) are dead; copies: OpenDataLab/SUN397, the Hugging Face dataset "
        "tanganke/sun397, https://www.kaggle.com/datasets/lash45/sun397-50-50 (train/ and test/).",
    ),
}

# The 12 tasks of Salman et al. 2020.
SUITE = (
    "aircraft",
    "birdsnap",
    "cifar10",
    "cifar100",
    "caltech101",
    "caltech256",
    "cars",
    "dtd",
    "flowers",
    "food",
    "pets",
    "sun397",
)


def find(name: str) -> Dataset:
    """The row of a dataset.

    Raises:
        UserError: no dataset has that name.
    """
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is unknown; one of: {', '.join(DATASETS)}.")
    return DATASETS[name]


def check_classes(name: str, row: Dataset, root: str | Path | None, found: int) -> None:
    """Compare the number of classes in the data with that of the row.

    Raises:
        UserError: the class counts differ.
    """
    if row.classes not in (None, found):
        raise UserError(
            f"{root} has {found} classes, {name} has {row.classes}; use the dataset "
            "'folder' for data of your own."
        )
