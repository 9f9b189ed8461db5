"""Read YOLO datasets, including invalid annotations.

The rules are Ultralytics' (github.com/ultralytics/ultralytics): `check_det_dataset`,
`img2label_paths` and `verify_image_label` in ultralytics/data/utils.py, and `get_img_files` in
ultralytics/data/base.py. This reader differs in four ways:

- A relative `path` starts at the folder of data.yaml, then at the current folder. Ultralytics
  starts at the current folder, then at a folder of its settings.
- `../images` is searched for in the dataset first, because Roboflow writes it for `images`.
- Each line of a label file is a box or a polygon. If one line is a polygon, Ultralytics reads the
  boxes of the file as polygons of two points.
- Invalid lines are reported. Ultralytics excludes their images.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import read_text
from robust_backbones.core.image_formats import describe_skipped, has_image_suffix
from robust_backbones.core.images import ImageError, upright_size
from robust_backbones.core.paths import expand
from robust_backbones.core.yaml_entries import MAX_ENTRIES, check_entries
from robust_backbones.detection.data.annotations import Annotations, Image, Object, Problem, unique

_SPLITS = ("train", "val", "test", "minival")
_TOLERANCE = 0.01  # allowed excess of a coordinate over [0, 1], as in Ultralytics
_NO_LABELS = ("classes.txt", "labels.txt")  # lists of class names that tools write next to labels


def read_yolo(file: Path, split: str) -> Annotations:
    """Read a split of a YOLO dataset. The size of each image is read from its header.

    Args:
        file: description of the dataset, data.yaml.
        split: key of the split in data.yaml, such as `"train"`.

    Raises:
        UserError: data.yaml is invalid, or the split has no images or no label files.
    """
    contents = _read_yaml(file)
    classes = _read_classes(file, contents)
    names = unique(dict(enumerate(classes)))
    found = Annotations(f"{file}, split {split}", list(names.values()), list(names))
    if found.classes != classes:
        text = f"{file} has names that occur twice; each is a class of its own"
        found.problems.append(Problem("same name", "", text))
    paths = _find_images(file, contents, split, found)
    labels = {path: _label_file(path) for path in paths}
    if not any(label.is_file() for label in labels.values()):
        raise UserError(
            f"{file}: split '{split}' has {counted(len(paths), 'image', 'images')}, but no label "
            f"files, such as {labels[paths[0]]}. Put them in a folder 'labels' next to 'images', "
            "with the same names."
        )
    found.problems += _labels_without_image(paths, set(labels.values()))
    with ThreadPoolExecutor(8) as pool:
        for key, path, size in zip(_ids(paths), paths, pool.map(_size, paths), strict=True):
            if isinstance(size, ImageError):
                found.problems.append(Problem(size.kind, path.name, size.reason))
            else:
                image = Image(key, path, *size)
                _read_labels(labels[path], image, found)
                found.images.append(image)
    return found


def _read_yaml(file: Path) -> dict:
    try:
        text = read_text(file)
        # This loader reads all scalars as text. YAML's own rules make `no` a boolean.
        node = yaml.compose(text, yaml.BaseLoader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{file} must have the keys names, train and val. Give a data.yaml.")
        check_entries(file, node)
        contents = yaml.load(text, yaml.BaseLoader)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{file}: the file cannot be read ({error.strerror}). Give the data.yaml of a dataset."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not YAML ({' '.join(str(error).split())}). Correct it."
        ) from None
    if contents.get("kpt_shape"):
        raise UserError(f"{file} has keypoints (kpt_shape). Only boxes and polygons are supported.")
    return contents


def _read_classes(file: Path, contents: dict) -> list[str]:
    names, count = contents.get("names"), contents.get("nc")
    if count is not None and not (isinstance(count, str) and count.isdecimal()):
        raise UserError(f"{file}: nc is {count!r}. It must be the number of classes.")
    if isinstance(names, dict):
        keys = [str(key) for key in range(len(names))]
        if set(names) != set(keys):
            raise UserError(
                f"{file}: the keys of names must be 0 to {len(keys) - 1}, without gaps."
            )
        names = [names[key] for key in keys]
    if not names and count and 0 < int(count) <= MAX_ENTRIES:
        names = [f"class_{index}" for index in range(int(count))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"{file}: names is {names!r}. It must be a list of class names.")
    if count is not None and int(count) != len(names):
        raise UserError(
            f"{file}: nc is {count}, but names has {len(names)} classes. Correct one of them."
        )
    return names


def _find_images(file: Path, contents: dict, split: str, found: Annotations) -> list[Path]:
    """Return the absolute paths of the images of a split, sorted."""
    splits = {key: contents[key] for key in _SPLITS if contents.get(key)}
    if "val" not in splits and contents.get("validation"):
        splits["val"] = contents["validation"]
    if split not in splits:
        known = f"Choose from {', '.join(splits)}" if splits else "Add the folder of its images"
        raise UserError(f"{file} has no split '{split}'. {known}.")
    given = contents.get("path") or ""
    root = _existing(file, "path", given, lambda path: [file.parent / path, path])
    listed, skipped = [], []
    for entry in splits[split] if isinstance(splits[split], list) else [splits[split]]:
        path = _existing(file, split, entry, lambda path: [root / _inner(path), root / path])
        names = list(_walk(path)) if path.is_dir() else list(_read_list(path, root))
        images = [name for name in names if has_image_suffix(name.name)]
        listed += images
        skipped += [n.name for n in set(names) - set(images) if n.suffix not in (".txt", ".cache")]
    if not listed:
        raise UserError(f"{file}: split '{split}' has no images in {path}.")
    if skipped:
        found.problems.append(Problem("skipped", "", describe_skipped(skipped)))
    for path, count in Counter(listed).items():
        if count > 1:
            found.problems.append(Problem("duplicate id", path.name, f"{path} is listed twice"))
    return sorted(set(listed))


def _inner(path: Path) -> Path:
    return Path(*path.parts[1:]) if path.parts[:1] == ("..",) else path


def _existing(file: Path, key: str, value: Any, choose: Callable[[Path], list[Path]]) -> Path:
    """Return the absolute path of the first choice that exists."""
    if not isinstance(value, str):
        raise UserError(f"{file}: {key} is {value!r}. It must be a path.")
    choices = choose(Path(expand(value)))
    for path in choices:
        if os.path.exists(path):
            return Path(os.path.abspath(path))
    full = os.path.abspath(choices[-1])
    raise UserError(
        f"{file}: {key} is '{value}', but {full} does not exist. Correct it. Paths are relative "
        "to 'path', which is relative to the folder of this file."
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except hidden files and folders."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _read_list(file: Path, root: Path) -> Iterator[Path]:
    """Yield the images in a list, one path per line, absolute or relative to the list or root."""
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a list of images ({error}).") from None
    for line in filter(None, map(str.strip, lines)):
        line = line if "/" in line else line.replace("\\", "/")  # written on Windows
        choices = [file.parent / line, root / line, Path(line)]
        path = next((path for path in choices if os.path.exists(path)), choices[0])
        yield Path(os.path.abspath(path))


def _label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder `images` in its path becomes `labels`."""
    before, found, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{before}{os.sep}labels{os.sep}{after}" if found else after).with_suffix(".txt")


def _labels_without_image(images: list[Path], used: set[Path]) -> list[Problem]:
    """Report label files that belong to no image.

    Only label folders whose images are all in the split are searched.
    """
    folders = {path.parent for path in images if _label_file(path).parent != path.parent}
    files = set()
    for folder in sorted(folders):
        own = {_label_file(path) for path in folder.iterdir() if has_image_suffix(path.name)}
        labels = _label_file(folder / "any").parent
        if own <= used and labels.is_dir():
            files |= {path for path in labels.glob("*.txt") if path.name not in _NO_LABELS} - own
    return [
        Problem("unknown image", path.name, f"{path} has labels, but its image does not exist")
        for path in sorted(files)
        if path.stat().st_size
    ]


def _ids(paths: list[Path]) -> list[str]:
    """Return an id for each image: its name without suffix, or its path if names repeat."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    top = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, top) for path in paths]


def _size(path: Path) -> tuple[int, int] | ImageError:
    try:
        return upright_size(path)
    except ImageError as error:
        return error


def _read_labels(file: Path, image: Image, found: Annotations) -> None:
    """Add the objects in a label file to an image. Without a file, the image has no objects."""
    try:
        lines = read_text(file).splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        found.problems.append(Problem("bad label", image.file.name, f"{file}: {error}"))
        return
    seen: dict[tuple, int] = {}
    for number, line in enumerate(lines, 1):
        if not (words := line.split()):
            continue
        where = f"{file}, line {number}"
        try:
            values = _parse(words)
        except ValueError as error:
            found.problems.append(Problem("bad label", image.file.name, f"{where}: {error}"))
            continue
        if values in seen:
            text = f"{where} repeats line {seen[values]}"
            found.problems.append(Problem("repeated label", image.file.name, text))
            continue
        seen[values] = number
        index = int(values[0])
        if index >= len(found.classes):
            text = f"{where}: class {index}, but the classes are 0 to {len(found.classes) - 1}"
            found.problems.append(Problem("unknown class", image.file.name, text))
        known = index if index < len(found.classes) else None
        image.objects.append(_object(known, values[1:], image))


def _parse(words: list[str]) -> tuple[float, ...]:
    """Convert the columns of a line to numbers: class, then a box or the points of a polygon.

    Raises:
        ValueError: a column is not a number or out of range, or their number is wrong.
    """
    values = []
    for word in words:
        try:
            values.append(float(word))
        except ValueError:
            raise ValueError(f"'{word[:40]}' is not a number") from None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(
            f"{len(values)} columns, but a box has 5 (class, x and y of the center, width, height),"
            " and a polygon has the class and x and y of at least 3 points"
        )
    if not (math.isfinite(values[0]) and values[0] >= 0 and values[0] == int(values[0])):
        raise ValueError(f"class {words[0]} is not a whole number of at least 0")
    for word, value in zip(words[1:], values[1:], strict=True):
        if not -_TOLERANCE <= value <= 1 + _TOLERANCE:
            raise ValueError(f"{word} is outside [0, 1]. Divide x by the width and y by the height")
    return tuple(values)


def _object(index: int | None, values: tuple[float, ...], image: Image) -> Object:
    """Convert a box or polygon, in fractions of the image, to an object in pixels."""
    if len(values) == 4:
        width, height = values[2] * image.width, values[3] * image.height
        left, top = values[0] * image.width - width / 2, values[1] * image.height - height / 2
        points, area = None, width * height
    else:
        xs = [value * image.width for value in values[::2]]
        ys = [value * image.height for value in values[1::2]]
        left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
        points = [value for point in zip(xs, ys, strict=True) for value in point]
        area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    return Object(
        index,
        (left, top, left + width, top + height),
        [left, top, width, height],
        empty=not (width > 0 and height > 0),
        area=area,
        segmentation=points and [points],
    )
