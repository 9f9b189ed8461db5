"""Pictures: truth and predictions side by side, errors, the page; through the command."""

import copy
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.detection.data import digit_scenes
from robust_backbones.detection.evaluation import saved
from robust_backbones.detection.inspect import visualize
from tests.support.detector_runs import DIGITS, TINY, small
from tests.support.detectors import photograph, write_run
from tests.support.exact_predictions import SCENES, command, exact_predictions, refused, write

# isort: split
from detectron2.data import DatasetCatalog  # after the package that prepares Detectron2


@pytest.fixture(scope="module")
def run(tmp_path_factory, resnet18_backbone):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, resnet18_backbone)
    return folder


def model(run) -> list[str]:
    """Options that name the detector of a run."""
    settings = TINY | {"MODEL.WEIGHTS": str(run / "model_final.pth")}
    return ["--config", DIGITS, *(part for pair in settings.items() for part in pair)]


class Page(HTMLParser):
    """What a page shows and refers to."""

    def __init__(self, path):
        super().__init__()
        self.images, self.references, self.cells, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.images += [attributes] if tag == "img" else []
        self.references += [unquote(attributes[k]) for k in ("src", "href") if k in attributes]

    def handle_data(self, data):
        self.text += data


def read_page(folder) -> Page:
    """The page; every file that it refers to lies beside it and every picture has a text."""
    page = Page(folder / "index.html")
    assert all((folder / name).is_file() for name in page.references)
    assert all(image["alt"].strip() for image in page.images)
    assert "color-scheme: light dark" in (folder / "index.html").read_text()
    return page


def test_pictures_of_a_detector(run):
    cfg = small(run, run / "model_final.pth")
    pictures = list(visualize.truth_and_prediction(cfg, SCENES, 2, scale=2.0, threshold=0.0))
    size = 2 * digit_scenes.SIZE
    for pixels in pictures:
        height, width, _ = pixels.shape
        assert pixels.dtype == np.uint8 and height > size and width > 2 * size
        top, gap = height - size, pixels[:, size : width - size]
        assert (gap[top:] == 255).all()
        assert (pixels[:top, :size] < 128).any() and (pixels[:top, -size:] < 128).any()  # titles
        assert (pixels[top:, :size] != pixels[top:, -size:]).any()


def test_a_backbone_alone_cannot_predict(tmp_path, resnet18_backbone):
    cfg = small(tmp_path, resnet18_backbone)
    with pytest.raises(
        UserError, match="do not fit the detector of this config.* tensors are missing"
    ):
        next(visualize.truth_and_prediction(cfg, SCENES, 1))


SIZES = [(96, 96), (40, 120), (640, 480), (1000, 3000), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size_is_drawn_between_640_and_1280_pixels(height, width):
    objects = visualize.Truth(
        np.array([[0, 0, width / 2, height]]), np.array([1]), np.array([False]), None
    )
    drawn = visualize.draw_truth(photograph(height, width), objects, ("cat", "a very long name"))
    assert max(drawn.shape) == min(max(height, width, 640), 1280)
    assert drawn.shape[0] == pytest.approx(max(drawn.shape) * min(height / width, 1), abs=2)


def test_a_drawn_box_is_where_the_box_is():
    grey = np.full((96, 96, 3), 128, np.uint8)
    objects = visualize.Truth(np.array([[24, 36, 72, 60]]), np.array([0]), np.array([False]), None)
    drawn = visualize.draw_truth(grey, objects, ("x",), scale=10)
    rows, columns = np.nonzero((drawn[:570] != 128).any(axis=2))  # above the name
    assert abs(columns.min() - 240) < 12 and abs(columns.max() - 720) < 12
    assert abs(rows.min() - 360) < 12


def test_small_images_are_enlarged_smoothly():
    edge = np.zeros((10, 10, 3), np.uint8)
    edge[:, 5:] = 200
    mask = {"size": [10, 10], "counts": [0, 100]}
    nothing = visualize.Truth(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), None)
    drawn = visualize.draw_truth(edge, nothing, None)
    assert drawn.shape == (640, 640, 3)
    assert len(np.unique(drawn[320, :, 0])) > 20  # a ramp, not a step
    masked = visualize.Truth(np.array([[0, 0, 10, 10]]), np.array([0]), np.array([False]), [mask])
    tinted = visualize.draw_truth(edge, masked, ("x",)).astype(int)
    assert (tinted[50:400, 50:600] != drawn[50:400, 50:600]).any(axis=2).all()


@pytest.mark.parametrize("length", [100, 640, 1000, 4000])
def test_text_has_the_same_size_relative_to_the_drawing(length):
    dark = np.zeros((length, length, 3), np.uint8)
    box = np.array([[0, 0.5 * length, length, 0.6 * length]])
    objects = visualize.Truth(box, np.array([0]), np.array([False]), None)
    named, blank = (visualize.draw_truth(dark, objects, (name,)) for name in ("HHH", " "))
    rows, _ = np.nonzero((named != blank).any(axis=2))
    assert (np.ptp(rows) + 1) / len(named) == pytest.approx(visualize.TEXT, rel=0.5)


def test_truth_and_predictions_of_two_detectors(run, tmp_path, resnet18_backbone):
    write_run(tmp_path / "second", resnet18_backbone, **{"MODEL.MASK_ON": "False"})
    other = tmp_path / "second/config.yaml"
    command(
        *model(run),
        "--compare",
        f"{other}={tmp_path / 'second/model_final.pth'}",
        "--images",
        2,
        "--threshold",
        0,
        "--output",
        tmp_path / "out",
        "--name",
        "standard",
        "--name",
        "robust",
    )
    page = read_page(tmp_path / "out")
    assert len(page.images) == 6
    assert [image["alt"].split(", ")[1].split(":")[0] for image in page.images[:3]] == [
        "truth",
        "standard",
        "robust",
    ]
    counts = [sum(map(int, re.findall(r"\b(\d+) ", i["alt"].split(": ")[1]))) for i in page.images]
    assert [counts[i] for i in (1, 2, 4, 5)] == [5] * 4  # TEST.DETECTIONS_PER_IMAGE
    for digest in (run / "model_final.pth", tmp_path / "second/model_final.pth"):
        assert sha256(digest) in page.text
    sizes = {Image.open(tmp_path / "out" / image["src"]).size for image in page.images}
    assert sizes == {(640, 640)}


def test_saved_predictions_their_errors_and_the_order(tmp_path):
    """A perfect detector's file, spoiled in known ways, and each way is counted."""
    perfect = exact_predictions()
    rows = copy.deepcopy(perfect)
    worst = [i for i, row in enumerate(rows) if row["image_id"] == 7]
    assert len(worst) >= 2
    for i in worst:
        rows[i]["category_id"] = rows[i]["category_id"] % 10 + 1  # all wrong in image 7
    other = next(i for i, row in enumerate(rows) if row["image_id"] == 9)
    rows.append(rows[other] | {"score": 0.8})  # a duplicate
    rows.append(rows[other] | {"score": 0.4})  # below the threshold
    gone = next(i for i, row in enumerate(rows) if row["image_id"] == 11)
    del rows[gone]  # a missed object
    command(
        "--dataset",
        SCENES,
        "--predictions",
        write(tmp_path / "a.json", perfect),
        "--predictions",
        write(tmp_path / "b.json", rows),
        "--output",
        tmp_path / "out",
        "--images",
        1000,
        "--show",
        3,
        "--errors",
        "--sort",
        "errors",
    )
    result = json.loads((tmp_path / "out/errors.json").read_text())
    count = len(perfect)
    wrong = {kind: n for kind, n in result["metrics"]["total"]["b.json"].items() if n}
    assert wrong == {
        "right": count - len(worst) - 1,
        "wrong class": len(worst),
        "duplicate": 1,
        "missed": 1,
    }
    assert {k: n for k, n in result["metrics"]["total"]["a.json"].items() if n} == {"right": count}
    first = result["metrics"]["images"][0]
    assert first["image"].endswith("val_00007.jpg")
    assert first["counts"]["b.json"]["wrong class"] == len(worst)
    assert result["data"][SCENES]["images"] == len(result["metrics"]["images"]) == 200
    source = result["settings"]["columns"]["b.json"]
    assert source["predictions_sha256"] == sha256(tmp_path / "b.json")

    page = read_page(tmp_path / "out")
    assert len(page.images) == 9
    assert page.images[2]["alt"] == f"val_00007.jpg, b.json: {len(worst)} wrong class"
    assert f"val_00007.jpg: {len(worst)} errors" in page.text
    shown = [np.asarray(Image.open(tmp_path / "out" / image["src"])) for image in page.images[:3]]
    vermillion = [
        (np.abs(pixels.astype(int) - (0xD5, 0x5E, 0)).max(axis=2) < 40).sum() for pixels in shown
    ]
    assert vermillion[2] > 10 * max(vermillion[1], 10)


SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # a polygon: 4 x 3 pixels
MASKS = {
    "polygon": [SQUARE],
    "two polygons": [SQUARE, [7, 7, 9, 7, 9, 9, 7, 9]],
    "run lengths": {"size": [10, 10], "counts": [21, 3, 7, 3, 7, 3, 7, 3, 46]},
}


@pytest.mark.parametrize(
    ("form", "pixels"),
    [(MASKS["polygon"], 12), (MASKS["two polygons"], 16), (MASKS["run lengths"], 12)],
)
def test_masks_of_saved_predictions_in_any_of_cocos_forms(form, pixels):
    row = {"image_id": 1, "category_id": 2, "bbox": [2, 1, 4, 3], "score": 1, "segmentation": form}
    found = saved.to_instances([row], 10, 10)
    assert found.pred_boxes.tensor.tolist() == [[2, 1, 6, 4]]
    assert found.pred_masks.sum() == pixels and found.pred_masks[0, 1:4, 2:6].all()


def test_the_same_seed_chooses_the_same_images(tmp_path):
    chosen = []
    for seed in (1, 1, 2):
        command(
            "--dataset",
            SCENES,
            "--truth-only",
            "--images",
            3,
            "--seed",
            seed,
            "--output",
            tmp_path / f"{len(chosen)}",
        )
        page = read_page(tmp_path / f"{len(chosen)}")
        chosen.append([image["alt"] for image in page.images])
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(alts) for alts in chosen] == [3, 3, 3]


def test_your_own_data_by_path(tmp_path):
    root = digit_scenes.ensure()
    command(
        "--dataset", f"mine=voc:{root}:val", "--truth-only", "--images", 1, "--output", tmp_path
    )
    (image,) = read_page(tmp_path).images
    words = image["alt"].split("truth: ")[1].replace(",", "").split()
    assert set(words[1::2]) <= set(digit_scenes.CLASSES)


def test_crowds_and_difficult_objects_are_ignored_ones():
    item = copy.deepcopy(DatasetCatalog.get(SCENES)[0])
    item["annotations"] = [copy.deepcopy(item["annotations"][0]) for _ in range(3)]
    item["annotations"][1]["iscrowd"] = 1
    item["annotations"][2]["difficult"] = 1
    assert visualize.truth(item).ignored.tolist() == [False, True, True]


def test_curves_by_the_command(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"iteration": 1, "total_loss": 2.0}\n')
    command("--curves", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out")
    assert capsys.readouterr().out.strip().endswith("/out/curves.png")
    assert Image.open(tmp_path / "out/curves.png").format == "PNG"


OPTIONS = [
    ([], "give --config and MODEL.WEIGHTS, or --predictions, or --truth-only (see"),
    (["--truth-only"], "give --dataset or --config"),
    (
        ["--truth-only", "--errors", "--dataset", SCENES],
        "--truth-only cannot be combined with --compare",
    ),
    (["--truth-only", "--dataset", "none_val"], "dataset 'none_val' is not registered. "),
    (
        ["--truth-only", "--dataset", SCENES, "--images", "0"],
        "'0' is not a whole number of at least 1",
    ),
    (["--truth-only", "--dataset", SCENES, "--threshold", "50"], "'50' is not a number in [0, 1]"),
    (["--truth-only", "--dataset", SCENES, "--sort", "errors"], "--sort errors needs --errors"),
    (["--truth-only", "--dataset", SCENES, "MODEL.NOTHING", "1"], "MODEL.NOTHING is not a"),
    (["--truth-only", "--dataset", SCENES, "--name", "a"], "--name a: give at most 0 different"),
    (["--truth-only", "--dataset", "x=y"], "dataset 'x=y' is not a name and path. Give NAME=coco:"),
    (["--predictions", "a", "--dataset", SCENES, "--compare", "b"], "--compare needs --config"),
    (["--config", "none.yaml"], "config file 'none.yaml' does not exist"),
    (["--config", str(DIGITS), "MODEL.WEIGHTS", "none.pth"], "'none.pth' does not exist"),
    (["--curves", "none"], "'none' cannot be read"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[m[:30] for _, m in OPTIONS])
def test_errors_are_one_line_and_exit_with_2(tmp_path, capsys, options, message):
    line = refused(capsys, *options, "--output", tmp_path)
    assert line.startswith("error: ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_a_detector_of_other_classes_is_refused(run, tmp_path, capsys):
    root = digit_scenes.ensure()
    own = f"mine=coco:{root / 'JPEGImages'}:{root / digit_scenes.coco_file('val')}"
    contents = json.loads((root / digit_scenes.coco_file("val")).read_text())
    for row in contents["categories"]:
        row["name"] = row["name"].upper()
    (tmp_path / "upper.json").write_text(json.dumps(contents))
    line = refused(
        capsys,
        *model(run),
        "--output",
        tmp_path / "out",
        "--dataset",
        own.rsplit(":", 1)[0] + f":{tmp_path / 'upper.json'}",
    )
    assert "model_final.pth detects 10 classes (zero, one, two, three, …), but dataset" in line
    assert "'mine' has 10 classes (ZERO, ONE, TWO, THREE, …)" in line
