"""Small versions of the transfer tasks: the official files with tiny generated images.

    spec = write("cars", tmp_path)                       # tmp_path/cars/stanford_cars/...
    monkeypatch.setitem(DATASETS, "cars", spec)          # with its number of classes, any counts
    open_split("cars", "train", tmp_path)

`use(monkeypatch, "cars", tmp_path)` does the first two.
"""

import colorsys
import json
import pickle
import struct
from dataclasses import replace

import numpy as np
from PIL import Image
from scipy.io import savemat

from classification.datasets.specs import DATASETS, SUITE

TASKS = (*SUITE, "imagenet", "stylized_imagenet", "folder")
NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay")
FIRST = {"caltech101": 30, "caltech256": 60}  # training images of a class


def write(name, root, *, per_class=None, classes=3, size=32, layout="official", seed=0):
    """Write one task below `root/name`; return its spec for this number of classes.

    Each class has its own color, with strong noise, so that a classifier can learn it. All images
    differ.

    Args:
        name: one of `TASKS`.
        root: parent of the folder `name`.
        per_class: split -> images per class, at least 2; default {"train": 4, "test": 2}. The
            Caltech datasets have 30 and 60 training images per class in the official layout.
        classes: number of classes, 2 to 10.
        size: height and width, pixels; 32 for CIFAR's official files.
        layout: `official`, or `folders` (train/<class>/, test/<class>/). Datasets without an
            official layout (imagenet, stylized_imagenet, folder) are written as folders.
        seed: seed for the noise.
    """
    counts = {"train": 4, "test": 2} | (per_class or {})
    names = NAMES[:classes]
    rng = np.random.default_rng(seed)
    writer = WRITERS.get(name, write_folders) if layout == "official" else write_folders
    if layout == "official" and name in FIRST:
        counts["train"] = FIRST[name]
    writer(root / name, names, counts, lambda label: picture(rng, label, classes, size))
    return replace(DATASETS[name], classes=classes, images={})


def use(monkeypatch, name, root, **options):
    """Call `write` and put the spec into `DATASETS` until the test ends."""
    row = write(name, root, **options)
    monkeypatch.setitem(DATASETS, name, row)
    return row


def picture(rng, label, classes, size):
    """Return `(size, size, 3)` uint8: the color of the class with noise."""
    color = np.array(colorsys.hsv_to_rgb(label / classes, 0.6, 0.8)) * 255
    return (color + rng.normal(0, 40, (size, size, 3))).clip(0, 255).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def each(names, counts, split):
    """Return (label, class, index) of each image, with classes mixed as in official lists."""
    return [(i, name, n) for n in range(counts[split]) for i, name in enumerate(names)]


def write_folders(folder, names, counts, draw):
    for split in counts:
        for label, name, n in each(names, counts, split):
            save(folder / split / name / f"{split}{n:04}.jpg", draw(label))


def write_aircraft(folder, names, counts, draw):
    data = folder / "fgvc-aircraft-2013b" / "data"
    variants = [f"{name} 707" for name in names]  # official names have spaces
    text(data / "variants.txt", variants)
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = []
        for label, _, n in each(names, counts, split):
            number = f"{1 + (split == 'test')}{label:03}{n:03}"
            save(data / "images" / f"{number}.jpg", draw(label))
            lines.append(f"{number} {variants[label]}")
        text(data / f"images_variant_{file}.txt", lines)


def write_birdsnap(folder, names, counts, draw):
    base = folder / "birdsnap"
    species = [f"{i + 1}\tThe {name}\tAvis {name}\t{name}" for i, name in enumerate(names)]
    text(base / "species.txt", ["id\tcommon\tscientific\tdir", *species])
    rows, test = [], []
    for split in counts:
        for label, name, n in each(names, counts, split):
            path = f"{name}/{n + 100 * (split == 'test')}.jpg"
            save(base / "download" / "images" / path, draw(label))
            rows.append(f"http://example.org/{path}\t0\t{path}\t{label + 1}\t1\t1\t9\t9\t\t")
            test += [path] * (split == "test")
    head = "url\tmd5\tpath\tspecies_id\tbb_x1\tbb_y1\tbb_x2\tbb_y2\tback_x\tback_y"
    text(base / "images.txt", [head, *rows])
    text(base / "test_images.txt", ["path", *test])


def write_caltech101(folder, names, counts, draw):
    base = folder / "caltech101" / "101_ObjectCategories"
    for label, name, n in each(names, {"all": sum(counts.values())}, "all"):
        save(base / name / f"image_{n + 1:04}.jpg", draw(label))
    for n in range(2):
        save(base / "BACKGROUND_Google" / f"image_{n + 1:04}.jpg", draw(0))


def write_caltech256(folder, names, counts, draw):
    base = folder / "caltech256" / "256_ObjectCategories"
    for label, name, n in each(names, {"all": sum(counts.values())}, "all"):
        save(base / f"{label + 1:03}.{name}" / f"{label + 1:03}_{n + 1:04}.jpg", draw(label))
    (base / f"001.{names[0]}" / "RENAME2").write_text("a stray file of the official archive")


def write_cars(folder, names, counts, draw):
    base = folder / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    classes = np.array([f"{name} Coupe 2012" for name in names], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": classes})
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for i, (label, _, _) in enumerate(each(names, counts, split)):
            save(base / f"cars_{split}" / f"{i + 1:05}.jpg", draw(label))
            rows.append((1, 1, 9, 9, label + 1, f"{i + 1:05}.jpg"))
        kinds = [
            (key, "O") for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        ]
        savemat(base / file, {"annotations": np.array(rows, dtype=kinds)})


def write_dtd(folder, names, counts, draw):
    base = folder / "dtd" / "dtd"
    lists = {"train": [], "val": [], "test": []}
    for split in counts:
        for label, name, n in each(names, counts, split):
            path = f"{name}/{name}_{n + 100 * (split == 'test'):04}.jpg"
            save(base / "images" / path, draw(label))
            lists["val" if split == "train" and n % 2 else split].append(path)
    for part, paths in lists.items():
        text(base / "labels" / f"{part}1.txt", paths)
        text(base / "labels" / f"{part}2.txt", paths[::-1])


def write_flowers(folder, names, counts, draw):
    base = folder / "flowers-102"
    numbers, labels = {"trnid": [], "valid": [], "tstid": []}, []
    for split in ("test", "train"):  # as officially, test images have low numbers
        for label, _, n in each(names, counts, split):
            labels.append(label + 1)
            save(base / "jpg" / f"image_{len(labels):05}.jpg", draw(label))
            part = "tstid" if split == "test" else ("trnid", "valid")[n % 2]
            numbers[part].append(len(labels))
    savemat(base / "setid.mat", {key: np.array([ids]) for key, ids in numbers.items()})
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})


def write_food(folder, names, counts, draw):
    base = folder / "food-101"
    text(base / "meta" / "classes.txt", names)
    for split in counts:
        listed = {name: [] for name in reversed(names)}
        for label, name, n in each(names, counts, split):
            path = f"{name}/{1000 * (split == 'test') + n}"
            save(base / "images" / f"{path}.jpg", draw(label))
            listed[name].append(path)
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))


def write_pets(folder, names, counts, draw):
    base = folder / "oxford-iiit-pet"
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = []
        for label, name, n in each(names, counts, split):
            image = f"{name}_hound_{n + 100 * (split == 'test')}"
            save(base / "images" / f"{image}.jpg", draw(label))
            lines.append(f"{image} {label + 1} {1 + label % 2} {label + 1}")
        text(base / "annotations" / f"{file}.txt", lines)


def write_sun397(folder, names, counts, draw):
    base = folder / "SUN397"
    classes = [f"/a/{name}" if i else f"/a/{name}/outdoor" for i, name in enumerate(names)]
    text(base / "ClassName.txt", classes)
    for split, file in (("train", "Training"), ("test", "Testing")):
        lines = []
        for label, _, n in each(names, counts, split):
            lines.append(f"{classes[label]}/sun_{split}{n}.jpg")
            save(base / lines[-1][1:], draw(label))
        text(folder / "Partitions" / f"{file}_01.txt", lines)


class _Python2(pickle._Pickler):
    """Pickle byte strings as Python 2 did; CIFAR's official files contain them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_string


def python2(path, contents):
    with open(path, "wb") as file:
        _Python2(file, protocol=2).dump(contents)


def _cifar(base, files, meta, key, names_key):
    def write_cifar(folder, names, counts, draw):
        (folder / base).mkdir(parents=True)
        for split, parts in files.items():
            labels = [label for label, _, _ in each(names, counts, split)]
            rows = np.stack([draw(label).transpose(2, 0, 1).reshape(-1) for label in labels])
            for part, chosen in zip(
                parts, np.array_split(np.arange(len(rows)), len(parts)), strict=True
            ):
                batch = {b"data": rows[chosen], key: [labels[i] for i in chosen]}
                python2(folder / base / part, batch)
        python2(folder / base / meta, {names_key: [name.encode() for name in names]})

    return write_cifar


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
WRITERS = {
    "aircraft": write_aircraft,
    "birdsnap": write_birdsnap,
    "caltech101": write_caltech101,
    "caltech256": write_caltech256,
    "cars": write_cars,
    "cifar10": _cifar(
        "cifar-10-batches-py",
        {"train": _FIVE, "test": ("test_batch",)},
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    "cifar100": _cifar(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        b"fine_labels",
        b"fine_label_names",
    ),
    "dtd": write_dtd,
    "flowers": write_flowers,
    "food": write_food,
    "pets": write_pets,
    "sun397": write_sun397,
}
