"""Run every case of the table of annotations in docs/reference/input_files.md."""

import contextlib
import json
import logging

import pytest

from robust_backbones.commands import check_data, evaluate, visualize
from robust_backbones.core.errors import UserError
from tests.support import ROOT
from tests.support.annotation_cases import CASES as COCO
from tests.support.annotation_cases import Case
from tests.support.folder_cases import VOC, YOLO
from tests.support.generated_tables import check_table

CASES = [*COCO, *VOC, *YOLO]
CONFIG = ROOT / "configs/voc_faster_rcnn_robust_eps3.yaml"
COMMANDS = (
    "check-data",
    "train boxes",
    "train masks",
    "train, registered",
    "evaluate",
    "visualize",
)
_found: dict[str, list[str]] = {}


@contextlib.contextmanager
def warnings_of_the_project():
    """Collect the warnings that the project logs. Detectron2 changes the loggers, so not caplog."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger("robust_backbones")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def checked(case: Case, folder, capsys) -> str:
    try:
        errors = check_data.main([case.build(folder)])
    except SystemExit as stop:
        assert stop.code == 2
        text = capsys.readouterr().err
    else:
        text = capsys.readouterr().out
        if not errors:
            assert case.message in text
            return "noted" if "note:" in text else "read"
    assert case.message in text
    return "refused"


def trained(case: Case, folder, *options: str, registered: bool = False) -> str:
    """Prepare a training. The objects it learns are the objects that its evaluation expects."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    from robust_backbones.detection import config, run_checks
    from robust_backbones.detection.evaluation import build_evaluator
    from tests.support.small_detections import evaluate as scored
    from tests.support.small_detections import exact

    data = case.build(folder)
    keys = ["MODEL.WEIGHTS", "", "MODEL.ROBUST.ARCH", "resnet18", "OUTPUT_DIR", str(folder / "run")]
    if registered:
        _, images, file = data.split(":")
        data = "registered"
        register_coco_instances(data, {}, file, images)
        keys += ["MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    try:
        cfg = config.load_config(CONFIG, [*keys, *options], {"TRAIN": [data], "TEST": [data]})
        with warnings_of_the_project() as warnings:
            run_checks.check_inputs(cfg, train=True)
        name = cfg.DATASETS.TRAIN[0]
        dicts = DatasetCatalog.get(name)
        results = scored(build_evaluator(cfg, name, str(folder / "scores")), *exact(dicts))
        assert results["bbox"]["AP50"] == pytest.approx(100) or registered and warnings
        return "noted" if warnings else "read"
    except UserError:
        return "refused"
    finally:
        if registered:
            DatasetCatalog.remove(data)
            MetadataCatalog.remove(data)


def evaluated(case: Case, folder, capsys) -> str:
    """Score perfect detections."""
    data = case.build(folder)
    file = folder / "found.json"
    file.write_text(json.dumps(case.found))
    kind, _, paths = data.partition("=")[2].partition(":")
    truth = ["--annotations", paths.split(":")[1]] if kind == "coco" else ["--dataset", data]
    try:
        with warnings_of_the_project() as warnings:
            evaluate.main([str(file), *truth, "--tasks", "bbox"])
    except SystemExit as stop:
        assert stop.code == 2
        return "refused"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"AP: bbox {case.ap:.2f}"
    return "noted" if warnings else "read"


def drawn(case: Case, folder) -> str:
    data = case.build(folder)
    try:
        with warnings_of_the_project() as warnings:
            visualize.main(["--output", str(folder / "page"), "--truth-only", "--dataset", data])
    except SystemExit as stop:
        assert stop.code == 2
        return "refused"
    return "noted" if warnings else "read"


@pytest.mark.parametrize("case", CASES, ids=[f"{case.format}: {case.kind}" for case in CASES])
def test_what_every_command_does(tmp_path, capsys, case):
    folders = [tmp_path / name.replace(", ", "_") for name in COMMANDS]
    for folder in folders:
        folder.mkdir()
    cells = [
        checked(case, folders[0], capsys),
        trained(case, folders[1], "MODEL.MASK_ON", "False"),
        trained(case, folders[2], "MODEL.MASK_ON", "True"),
        trained(case, folders[3], registered=True) if case.format == "COCO" else "-",
        evaluated(case, folders[4], capsys),
        drawn(case, folders[5]),
    ]
    _found[f"{case.format}: {case.kind}"] = cells


def test_the_table_of_the_document():
    """Runs after all cases."""
    if len(_found) < len(CASES):
        pytest.skip("not all cases were run in this process")
    rows = [["annotations", *COMMANDS], *([name, *cells] for name, cells in _found.items())]
    check_table("docs/reference/input_files.md", "annotations", rows)
