"""The runner for changed images: right scores, the change applied, rows kept and taken up again."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.detection.data import mapper, subset
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.robustness import grid
from robust_backbones.detection.robustness.grid import Condition
from tests.support.small_detectors import DIGITS, overrides, tiny_config, tiny_detector, tiny_file

COCO = "digit_scenes_val"


class Oracle(torch.nn.Module):
    """Detects the truth in images that are not black, and nothing in others."""

    def forward(self, batch):
        from detectron2.structures import Boxes, BoxMode, Instances

        outputs = []
        for item in batch:
            truth = item["truth"] if item["image"].any() else []
            corners = [
                BoxMode.convert([*r["bbox"]], r["bbox_mode"], BoxMode.XYXY_ABS) for r in truth
            ]
            found = Instances((item["height"], item["width"]))
            found.pred_boxes = Boxes(torch.tensor(corners).reshape(-1, 4))
            found.scores = torch.ones(len(truth))
            found.pred_classes = torch.tensor([row["category_id"] for row in truth]).long()
            outputs.append({"instances": found})
        return outputs


def load(number, item):
    """Without the image: the numbers of the images stand in for it."""
    return {
        "image": torch.full((3, 4, 4), 1.0),
        "truth": item["annotations"],
        "number": number,
        **{key: item[key] for key in ("image_id", "height", "width")},
    }


def darken(numbers):
    """A change that blackens some images, and records which."""

    def change(model, batch):
        dark = [{**i, "image": i["image"] * (i["number"] not in numbers)} for i in batch]
        return dark, {"numbers": [item["number"] for item in batch]}

    return change


def measured(condition, items, folder, dataset=COCO, **more):
    name = subset.register(dataset, items)
    evaluator = build_evaluator(tiny_config(), name, str(folder / "scores"))
    return grid.measure(Oracle(), items, condition, evaluator, **more)


@pytest.mark.parametrize(("dataset", "images"), [(COCO, 12), ("digit_scenes_voc_val", 50)])
def test_a_detector_that_knows_the_truth_has_ap_100(tmp_path, dataset, images):
    items = subset.choose(dataset, images, seed=0)
    row = measured(Condition("clean", load, facts={"eps": 0.0}), items, tmp_path, dataset)
    objects = sum(len(item["annotations"]) for _, item in items)
    assert row["bbox"]["AP"] == pytest.approx(100)
    assert row["detections"] == objects
    assert row["eps"] == 0.0 and row["seconds"] > 0
    assert {"AP", "AP50"} <= row["bbox"].keys()
    assert not [metric for metric in row["bbox"] if "-" in metric]  # "AP-one"
    if dataset == COCO:
        assert row["bbox"]["APl"] is None  # there is no large digit: null, not NaN


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (5, 0), (5, 2)])
def test_the_change_is_what_is_scored_and_all_batches_are_recorded(tmp_path, size, workers):
    items = subset.choose(COCO, 12, seed=0)
    numbers = [number for number, _ in items]
    ticks = []
    condition = Condition(
        "dark", load, darken(numbers[:6]), lambda records: {"records": records}, cost=3
    )
    row = measured(condition, items, tmp_path, batch_size=size, workers=workers, tick=ticks.append)
    assert 10 < row["bbox"]["AP"] < 90
    assert [n for record in row["records"] for n in record["numbers"]] == numbers
    assert sum(ticks) == 36 and len(ticks) == len(row["records"]) == -(-12 // size)
    seen = sum(len(item["annotations"]) for _, item in items[6:])
    assert row["detections"] == seen


UNREADABLE = {
    "image 'none.png' does not exist": "none.png",
    "test_grid.py cannot be read as an image .unknown image format.. Replace": __file__,
}


def read(path, number, item):
    return mapper.read_image(path)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("message", UNREADABLE)
def test_an_image_that_cannot_be_used_is_named(tmp_path, message, workers):
    items = subset.choose(COCO, 2, seed=0)
    condition = Condition("clean", partial(read, UNREADABLE[message]))
    with pytest.raises(UserError, match=message) as told:
        measured(condition, items, tmp_path, workers=workers)
    assert "Traceback" not in str(told.value)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """`run(conditions, settings)` on an oracle; counts how often each condition is measured."""
    items = subset.choose(COCO, 6, seed=0)
    found = grid.Target(tiny_config(), "digest", COCO, items)
    monkeypatch.setattr(grid, "load_model", lambda cfg: Oracle())
    counted, plain = [], grid.measure

    def measure(model, items, condition, *args):
        counted.append(condition.name)
        return plain(model, items, condition, *args)

    monkeypatch.setattr(grid, "measure", measure)

    def run(plan, settings=None):
        settings = settings or found.settings(seed=0)
        return grid.measure_all(found, plan, settings, tmp_path)

    return SimpleNamespace(run=run, counted=counted, found=found, folder=tmp_path)


def plan(*names):
    changes = {"clean": None, "half": darken(range(100)), "black": darken(range(200))}
    return [Condition(name, load, changes.get(name)) for name in names]


def test_rows_are_kept_and_further_conditions_join_them(study, capsys):
    first = study.run(plan("clean", "half"))
    again = study.run(plan("clean", "half", "black"))
    assert study.counted == ["clean", "half", "black"]
    assert {name: again[name] for name in first} == first
    assert study.run(plan("black", "clean")).keys() == {"black", "clean"}
    assert study.counted == ["clean", "half", "black"]
    assert "2 of 2 conditions are measured already" in capsys.readouterr().out


def test_an_interrupted_study_goes_on(study):
    def broken(model, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run([*plan("clean"), Condition("half", load, broken)])
    rows = study.run(plan("clean", "half"))
    assert study.counted == ["clean", "half", "half"]
    assert rows["half"]["bbox"]["AP"] < rows["clean"]["bbox"]["AP"]
    left = {path.name for path in study.folder.iterdir()}
    assert left == {"cells.json"}  # nothing half-written


def test_nothing_detected_is_an_ap_of_0(study):
    rows = study.run(plan("clean", "black"))
    assert rows["black"]["detections"] == 0
    assert rows["black"]["bbox"]["AP"] == rows["black"]["bbox"]["AP50"] == 0.0
    assert rows["black"]["bbox"]["APl"] is None
    assert json.loads((study.folder / "cells.json").read_text())["cells"] == rows


OTHER = [
    ({"seed": 1}, "seed is 0 there, 1 here"),
    ({"weights_sha256": "else"}, "weights_sha256 is digest there, else here"),
    ({"config": {"MODEL.MASK_ON": False}}, "MODEL.MASK_ON is True there, False here"),
]


@pytest.mark.parametrize(("change", "message"), OTHER, ids=[next(iter(c)) for c, _ in OTHER])
def test_rows_of_other_settings_are_refused(study, change, message):
    study.run(plan("clean"))
    settings = study.found.settings(seed=0)
    settings["config"] = settings["config"] | change.pop("config", {})
    with pytest.raises(UserError, match=f"with different settings: {message}. Use the same"):
        study.run(plan("clean"), settings | change)


def test_keys_that_change_no_figure_may_differ(study):
    study.run(plan("clean"))
    cfg = tiny_config(
        OUTPUT_DIR="elsewhere", **{"DATALOADER.NUM_WORKERS": "0", "SOLVER.BASE_LR": "0.5"}
    )
    found = grid.Target(cfg, "digest", COCO, study.found.items)
    study.run(plan("clean"), found.settings(seed=0))
    assert study.counted == ["clean"]


def test_a_foreign_file_is_not_taken_for_rows(study):
    (study.folder / "cells.json").write_text('{"cells": []}')
    with pytest.raises(
        UserError, match="cells.json was not written by this program. Choose another"
    ):
        study.run(plan("clean"))


def test_clean_images_are_predicted_on_as_detectron2_does(tmp_path):
    """Box by box, against its own test loader and loop."""
    from detectron2.data import DatasetMapper, build_detection_test_loader
    from detectron2.evaluation import inference_on_dataset

    from robust_backbones.detection.robustness.attack_report import AttackSettings
    from robust_backbones.detection.robustness.attack_report import conditions as attack_conditions

    cfg = tiny_config(**{"INPUT.MIN_SIZE_TEST": "64"})
    model, items = tiny_detector(cfg).eval(), subset.choose(COCO, 4, seed=0)
    attack = AttackSettings("linf", 1, ("all",), 1)
    (clean,) = attack_conditions(cfg, COCO, [], attack, seed=0, pictures=[], folder=tmp_path)
    ours, theirs = recorder(), recorder()
    row = grid.measure(model, items, clean, ours)
    loader = build_detection_test_loader(
        [item for _, item in items], mapper=DatasetMapper(cfg, is_train=False)
    )
    inference_on_dataset(model, loader, theirs)
    assert ours.seen == theirs.seen and row["detections"] == sum(map(len, ours.seen)) > 0


def recorder():
    """An evaluator that keeps what it is given, and scores nothing."""
    from detectron2.evaluation import DatasetEvaluator

    class Recorder(DatasetEvaluator):
        def reset(self):
            self.seen = []

        def process(self, inputs, outputs):
            for item, output in zip(inputs, outputs, strict=True):
                found = output["instances"]
                rows = zip(
                    found.scores.tolist(),
                    found.pred_classes.tolist(),
                    found.pred_boxes.tensor.tolist(),
                    found.pred_masks.sum((1, 2)).tolist(),
                    strict=True,
                )
                self.seen.append([(item["image_id"], item["file_name"], *row) for row in rows])

        def evaluate(self):
            return {}

    return Recorder()


MISTAKES = [
    ({}, "MODEL.WEIGHTS is empty. Give the checkpoint of a trained detector"),
    ({"MODEL.WEIGHTS": "none.pth"}, "MODEL.WEIGHTS 'none.pth' does not exist"),
    ({"DATASETS.TEST": "()"}, r"DATASETS.TEST is \(\). Give one dataset"),
    (
        {"DATASETS.TEST": "['nothing']", "MODEL.WEIGHTS": str(DIGITS)},
        "dataset 'nothing' is not registered",
    ),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES, ids=[m[:25] for _, m in MISTAKES])
def test_what_cannot_be_measured(more, message):
    with pytest.raises(UserError, match=message):
        grid.find_target(DIGITS, overrides(**more), None, None, 0)


def test_a_backbone_is_no_detector(resnet18_backbone):
    cfg = tiny_config(**{"MODEL.WEIGHTS": str(resnet18_backbone)})
    with pytest.raises(
        UserError, match="do not fit the detector of this config.* tensors are missing"
    ):
        grid.load_model(cfg)


def test_a_subject_names_its_file_and_loads_it(tmp_path):
    path = tiny_file(tmp_path / "detector.pth", tiny_config())
    found = grid.find_target(DIGITS, overrides(**{"MODEL.WEIGHTS": str(path)}), None, 3, 0)
    assert found.weights_sha256 == sha256(path) and len(found.items) == 3
    model = grid.load_model(found.cfg)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    wanted = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(t, wanted[name]) for name, t in model.state_dict().items())
