"""Facts about each dataset: size, split, statistics, metric, and where to download it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classification.datasets.split_names import has_splits
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.input_statistics import DATASET, PRESETS, InputStatistics
from robust_backbones.core.paths import expand

TOP1, MEAN_PER_CLASS = "top1", "mean_per_class"
METRIC_TITLES = {TOP1: "top-1", MEAN_PER_CLASS: "mean per class"}
SPLITS = ("train", "val", "test")
STORED_SPLITS = ("train", "test")  # val is held out from train
DATA_VARIABLE = "ROBUST_BACKBONES_DATA"  # environment variable: folder with one folder per dataset


@dataclass(frozen=True)
class DatasetSpec:
    """Facts about one classification dataset.

    Attributes:
        name: key of `DATASETS`.
        classes: number of classes, or None if it depends on the user's data.
        image_size: height and width of the input images of a classifier, pixels.
        statistics: input statistics of a network that is trained on the dataset.
        augmentation: training augmentation, a key of `transforms.AUGMENTATIONS`.
        images: number of images of each split, if known.
        needs_root: whether the user must give the path of the data.
        shards: whether the data may be WebDataset tar files; see `shards`.
        recipe: training recipe for a network from random weights, a key of `recipes.RECIPES`.
        title: name for text and tables.
        metric: accuracy that the paper reports, a key of `METRIC_TITLES`.
        split_rule: description of the training and test images.
        exact_counts: whether a number of images that differs from `images` is an error (True) or a
            warning (False).
        torchvision: name of the class in `torchvision.datasets` that downloads the dataset; empty
            if there is no such class.
        manual_download: description of where to find the files.
        homepage: web page of the dataset's authors.
        license: license that the authors state.
        transfer_augmentation: augmentation in transfer learning, a key of
            `transforms.AUGMENTATIONS`.
    """

    name: str
    classes: int | None
    image_size: int
    statistics: InputStatistics
    augmentation: str
    images: dict[str, int] = field(default_factory=dict)
    needs_root: bool = True
    shards: bool = False
    recipe: str = "paper"
    title: str = ""
    metric: str = TOP1
    split_rule: str = ""
    exact_counts: bool = True
    torchvision: str = ""
    manual_download: str = ""
    homepage: str = ""
    license: str = "not stated"
    transfer_augmentation: str = "imagenet_plain"

    def check_classes(self, root: str | Path | None, found: int) -> None:
        """Compare the number of classes in the data with the expected number.

        Raises:
            UserError: the number of classes is wrong.
        """
        if self.classes not in (None, found):
            raise UserError(
                f"{root}: found {found} classes, but {self.name} has {self.classes}. Use the "
                "dataset 'folder' for your own data."
            )


_IMAGENET = PRESETS["imagenet"].of(DATASET)
_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CALTECH_BROKEN = ". The links in old releases of torchvision are broken: use the newest release"
_RESEARCH = "non-commercial research"


def _embedded(
    name: str, classes: int, augmentation: str, train: int, test: int, **more: Any
) -> DatasetSpec:
    # ImageNet's statistics are used so that the weights match the detectors' input normalization.
    images = {"train": train, "test": test}
    return DatasetSpec(
        name, classes, 32, _IMAGENET, augmentation, images, needs_root=False, recipe="quick", **more
    )


def _imagenet_like(
    name: str, classes: int | None = 1000, images: dict[str, int] | None = None, **more: Any
) -> DatasetSpec:
    return DatasetSpec(name, classes, 224, _IMAGENET, "imagenet", images or {}, shards=True, **more)


def _task(
    name: str, classes: int, train: int, test: int, homepage: str, files: str = "", **more: Any
) -> DatasetSpec:
    """Describe a photographic dataset of the transfer suite. Its homepage has the `files`."""
    if files:
        more["manual_download"] = f"{homepage}: {files}"
    images = {"train": train, "test": test}
    return DatasetSpec(
        name, classes, 224, _IMAGENET, "imagenet_plain", images, homepage=homepage, **more
    )


def _cifar(name: str, classes: int, **more: Any) -> DatasetSpec:
    return DatasetSpec(
        name,
        classes,
        32,
        PRESETS[name].of(DATASET),
        "crop4_flip",
        {"train": 50_000, "test": 10_000},
        recipe="cifar",
        split_rule="official train / test",
        homepage=_CIFAR_PAGE,
        manual_download=_CIFAR_PAGE,
        **more,
    )


# The paper's authors used these sizes, splits and metrics for the 12 tasks.
_SPECS = (
    _embedded(
        "digits",
        10,
        "shift2",  # no flips: a mirrored digit is another character
        1437,
        360,
        title="handwritten digits from scikit-learn",
        split_rule="training: the first 1437",
        homepage="https://scikit-learn.org",
        license="see scikit-learn",
        transfer_augmentation="shift2",
    ),
    _embedded(
        "textures",
        6,
        "crop4_flip",
        3906,
        384,
        title="patches of scikit-image's photographs",
        split_rule="training: the left part of each photograph; test: the right part",
        homepage="https://scikit-image.org",
        license="see scikit-image",
    ),
    _embedded(
        "faces",
        2,
        "crop4_flip",
        150,
        50,
        title="faces and other patches from scikit-image",
        split_rule="training: the first 75 of each class",
        homepage="https://scikit-image.org",
        license="see scikit-image",
    ),
    _cifar("cifar10", 10, title="CIFAR-10", torchvision="CIFAR10"),
    _cifar("cifar100", 100, title="CIFAR-100, fine classes", torchvision="CIFAR100"),
    _imagenet_like(
        "imagenet",
        images={"train": 1_281_167, "test": 50_000},
        title="ImageNet (ILSVRC 2012)",
        split_rule="official train / val",
        homepage="https://image-net.org",
        license=_RESEARCH,
        manual_download="https://image-net.org (requires an account): ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar. Unpack each class of the first into train/<class>/, and sort the "
        "images of the second into val/<class>/",
    ),
    _imagenet_like(
        "stylized_imagenet",
        images={"train": 1_281_167, "test": 50_000},
        title="Stylized ImageNet",
        split_rule="ImageNet's train / val",
        homepage="https://github.com/rgeirhos/Stylized-ImageNet",
        license="as ImageNet",
        manual_download="its license forbids redistribution. Create it from ImageNet with the "
        "code in https://github.com/rgeirhos/Stylized-ImageNet, as train/<class>/ and val/<class>/",
    ),
    _imagenet_like(
        "folder",
        classes=None,
        title="your own image folders",
        split_rule="train / test, or 20 % of each class are test images",
        license="yours",
        manual_download="your own data, as train/<class>/<image> and test/<class>/<image>, as "
        "<class>/<image>, or as a CSV file of names and labels",
    ),
    _task(
        "aircraft",
        100,
        6667,
        3333,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        files="fgvc-aircraft-2013b.tar.gz",
        title="FGVC-Aircraft, variants",
        metric=MEAN_PER_CLASS,
        split_rule="official trainval / test",
        torchvision="FGVCAircraft",
        license=_RESEARCH,
    ),
    _task(
        "birdsnap",
        500,
        32677,
        8171,
        "https://thomasberg.org",
        exact_counts=False,
        title="Birdsnap",
        split_rule="official test list, or your folders; the authors' 80/20 split is unpublished",
        license="not stated; photographs from Flickr",
        manual_download="the official archive is a list of URLs, and many are dead. Use "
        "birdsnap.tgz (1.1) from https://thomasberg.org and its get_birdsnap.py, or the images of "
        "the Hugging Face datasets sasha/birdsnap (39860 images) and isaacchung/birdsnap. The "
        "paper's absolute numbers cannot be reproduced: only compare networks on the same split",
    ),
    _task(
        "caltech101",
        101,
        3030,
        5647,
        "https://data.caltech.edu/records/mzrjq-6wc02",
        files="caltech-101.zip, which contains 101_ObjectCategories.tar.gz" + _CALTECH_BROKEN,
        title="Caltech-101",
        metric=MEAN_PER_CLASS,
        torchvision="Caltech101",
        split_rule="training: the first 30 of each class; no background class",
        license="CC BY 4.0",
    ),
    _task(
        "caltech256",
        257,
        15420,
        15187,
        "https://data.caltech.edu/records/nyy15-4j048",
        files="256_ObjectCategories.tar" + _CALTECH_BROKEN,
        title="Caltech-256",
        metric=MEAN_PER_CLASS,
        torchvision="Caltech256",
        split_rule="training: the first 60 of each class; clutter is a class",
        license="CC BY 4.0",
    ),
    _task(
        "cars",
        196,
        8144,
        8041,
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        title="Stanford Cars",
        split_rule="official train / test",
        manual_download="its server has been offline since 2023. "
        "https://github.com/pytorch/vision/issues/7545 has copies: the images at "
        "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset, devkit/ at "
        "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz, and "
        "cars_test_annos_withlabels.mat in comment 1631441616",
    ),
    _task(
        "dtd",
        47,
        3760,
        1880,
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        files="dtd-r1.0.1.tar.gz",
        title="Describable Textures",
        torchvision="DTD",
        split_rule="official partition 1: train1 + val1 / test1",
        license="research",
    ),
    _task(
        "flowers",
        102,
        2040,
        6149,
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        files="102flowers.tgz, setid.mat, imagelabels.mat",
        title="Oxford 102 Flowers",
        metric=MEAN_PER_CLASS,
        split_rule="official train + val / test",
        torchvision="Flowers102",
    ),
    _task(
        "food",
        101,
        75750,
        25250,
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        files="food-101.tar.gz",
        title="Food-101",
        split_rule="official train / test",
        torchvision="Food101",
        license="scientific fair use",
    ),
    _task(
        "pets",
        37,
        3680,
        3669,
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        files="images.tar.gz, annotations.tar.gz",
        title="Oxford-IIIT Pets",
        metric=MEAN_PER_CLASS,
        split_rule="official trainval / test",
        torchvision="OxfordIIITPet",
        license="CC BY-SA 4.0",
    ),
    _task(
        "sun397",
        397,
        19850,
        19850,
        "https://vision.princeton.edu/projects/2010/SUN/",
        title="SUN397",
        split_rule="official partition 1: Training_01 / Testing_01, 50 + 50 of each class",
        manual_download="the links on https://vision.princeton.edu/projects/2010/SUN/ "
        "(SUN397.tar.gz, Partitions.zip) are dead. Copies: OpenDataLab/SUN397, the Hugging Face "
        "dataset tanganke/sun397, https://www.kaggle.com/datasets/lash45/sun397-50-50 (train/ and "
        "test/)",
    ),
)
DATASETS = {spec.name: spec for spec in _SPECS}

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


def find_dataset(name: str) -> DatasetSpec:
    """Look up a dataset by name.

    Raises:
        UserError: no dataset has that name.
    """
    if name not in DATASETS:
        known = choose_from(
            name,
            DATASETS,
            "For your own images, choose folder. List all names with: "
            "robust-backbones datasets list",
        )
        raise UserError(f"dataset '{name}' is unknown. {known}")
    return DATASETS[name]


def locate(name: str, root: Path | str | None = None) -> Path | str | None:
    """Return the path of a dataset: `root`, or its subfolder `name` if that exists.

    Args:
        name: key of `DATASETS`.
        root: path of the dataset (a folder, a tar file or a URL), or of a folder with one folder
            per dataset (default: `$ROBUST_BACKBONES_DATA`).

    Returns:
        Path of the dataset, or None for bundled data without a root.

    Raises:
        UserError: the dataset needs a path, and neither `root` nor the variable is set.
    """
    if not DATASETS[name].needs_root:
        return root
    root = root or os.environ.get(DATA_VARIABLE) or None
    if root is None:
        raise UserError(
            f"dataset '{name}' needs data, and no path was given. Pass --data PATH, or set "
            f"{DATA_VARIABLE} to the folder that contains {name}/."
        )
    root = Path(expand(root)) if isinstance(root, Path) else expand(root)
    below = os.path.join(root, name)
    # A root with its own split folders is the dataset itself, even if it has a folder `name`.
    return Path(below) if os.path.isdir(below) and not has_splits(root) else root
