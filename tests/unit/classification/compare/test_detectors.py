"""Comparisons of detectors: the schedule, the study file, and data that are refused."""

from pathlib import Path

import pytest

from classification.compare import detectors, study_file
from classification.compare.kinds import Task
from classification.compare.networks import Network
from classification.compare.settings import DETECTION, CompareSettings, TrialGroup
from classification.study.file import read_study
from robust_backbones.core.errors import UserError
from robust_backbones.detection.config import load_config
from tests.support import ROOT


def settings(*data, **more):
    weights = ("a.pt", "robust://resnet50_l2_eps3")
    return CompareSettings(DETECTION, data or ("voc:cells",), weights, 2, **more)


def network(weights, label, eps, arch="resnet50"):
    path, source = Path(weights), {}
    facts = (arch, "l2", eps, "imagenet", 224, source, False)
    return Network(weights, label, path, label, *facts, None)


NETWORKS = [network("a.pt", "standard", 0.0), network("robust://resnet50_l2_eps3", "eps 3", 3.0)]


def task(name="cells", **options):
    sets = {"dataset-train": f"{name}_train=voc:R:train", "dataset-test": f"{name}_test=voc:R:val"}
    return Task(name, sets | options, 100, 40, 3, ("a", "b"))


def study(tmp_path, parts):
    path = tmp_path / "study.yaml"
    path.write_text(study_file.text(parts, tmp_path / "runs", path, tmp_path / "report"))
    return read_study(path)


def test_the_study_chooses_a_learning_rate_for_each_network(tmp_path):
    groups = [TrialGroup(0, 2)]
    runs = study(tmp_path, detectors._parts(settings(), NETWORKS, [task()], groups))
    backbones, candidates, final = (
        [run for run in runs if run.part == part]
        for part in (detectors.BACKBONE, detectors.CANDIDATES, detectors.DETECTION)
    )
    assert [run.options["source"] for run in backbones] == ["a.pt"]  # the other one is published
    assert len(candidates) == 2 * 3 and len(final) == 2 * 2
    assert [run.options["SOLVER.BASE_LR"] for run in candidates[:3]] == [0.005, 0.02, 0.08]
    assert {run.options["DATASETS.HELD_OUT"] for run in candidates} == {0.2}
    for run in final:
        own = [c.folder for c in candidates if c.labels["weights"] == run.labels["weights"]]
        assert run.options["choose-lr"] == [folder.as_posix() for folder in own]
        assert "DATASETS.HELD_OUT" not in run.options
    assert final[0].options["MODEL.WEIGHTS"] == f"{backbones[0].folder.as_posix()}/backbone.pth"
    assert final[2].options["MODEL.WEIGHTS"] == "robust://resnet50_l2_eps3"
    assert [run.options["SEED"] for run in final] == ["0", "1"] * 2


def test_more_trials_are_only_on_their_tasks(tmp_path):
    tasks = [task("cells"), task("cars")]
    groups = [TrialGroup(0, 2), TrialGroup(2, 1, ("cars",))]
    parts = detectors._parts(settings("voc:cells", "voc:cars"), NETWORKS, tasks, groups)
    final = [run for run in study(tmp_path, parts) if run.part == detectors.DETECTION]
    assert {(r.labels["task"], r.labels["SEED"]) for r in final} == {
        *((name, seed) for name in ("cells", "cars") for seed in ("0", "1")),
        ("cars", "2"),
    }


def test_one_learning_rate_needs_no_candidates(tmp_path):
    one = settings(learning_rates=(0.1,))
    parts = detectors._parts(one, NETWORKS, [task()], [TrialGroup(0, 1)])
    runs = study(tmp_path, parts)
    assert [run.part for run in runs] == ["backbone", "detection", "detection"]
    assert runs[-1].options["SOLVER.BASE_LR"] == 0.1


SCHEDULES = {  # settings, number of training images -> iterations, steps, warm-up
    "few images": ({}, 100, (2000, "(1333, 1778)", 100)),
    "the paper's VOC": ({}, 16551, (18619, "(12413, 16550)", 100)),
    "small batch": (
        {"changes": (("SOLVER.IMS_PER_BATCH", "4"),)},
        100,
        (8000, "(5333, 7111)", 100),
    ),
    "given": ({"iterations": 90}, 100, (90, "(60, 80)", 9)),
    "masks": ({"config": "own_data_mask_rcnn.yaml"}, 100, (2000, "(1333, 1778)", 100)),
    "own config": ({"config": "digits_mask_rcnn_robust.yaml"}, 100, ()),
    "own config, given": (
        {"config": "digits_mask_rcnn_robust.yaml", "iterations": 90},
        100,
        (90, "(60, 80)", 9),
    ),
    "user's key": ({"iterations": 90, "changes": (("SOLVER.STEPS", "(5,)"),)}, 100, (90, 9)),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules(case):
    more, images, wanted = SCHEDULES[case]
    found = settings(**more)
    keys = detectors._schedule(found, detectors._config(found), images)
    keys.pop("SOLVER.CHECKPOINT_PERIOD", None)
    assert tuple(keys.values()) == wanted


DEFAULTS = {  # data, architecture -> config
    ("voc:cells", "resnet50"): "own_data_faster_rcnn.yaml",
    ("mask:a:b", "resnet50"): "own_data_semantic_fpn.yaml",
    ("beach=mask:a:b", "resnet50"): "own_data_semantic_fpn.yaml",
    ("mask:a:b", "timm:convnext_base"): "own_data_semantic_fpn_timm.yaml",
}


@pytest.mark.parametrize(("data", "arch"), DEFAULTS)
def test_the_config_depends_on_data_and_network(data, arch):
    found = detectors._config_file(settings(data), [network("a.pt", "x", 0.0, arch)])
    assert found == DEFAULTS[data, arch]
    assert found in detectors.OWN_DATA and load_config(found, ["MODEL.WEIGHTS", ""])


def test_masks_and_objects_need_two_commands():
    with pytest.raises(UserError, match="mask:... needs a different model than the other data"):
        detectors._config_file(settings("voc:cells", "mask:a:b"), NETWORKS)


def test_the_config_is_read_with_its_bases():
    found = detectors._config(settings(config="coco_mask_rcnn_robust_eps3_1x.yaml"))
    assert found["MODEL.MASK_ON"] and found["SOLVER.MAX_ITER"] == 90000
    assert found["SOLVER.BASE_LR"] == 0.02  # from the base of its base
    changed = settings(changes=(("DATASETS.REPAIR", "True"),))
    assert detectors._config(changed)["DATASETS.REPAIR"] is True


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_config_is_read_as_training_reads_it(path):
    cfg, found = load_config(path), detectors._config(settings(config=str(path)))
    assert found["SOLVER.IMS_PER_BATCH"] == cfg.SOLVER.IMS_PER_BATCH
    assert found["SOLVER.BASE_LR"] == cfg.SOLVER.BASE_LR
    assert found["SOLVER.MAX_ITER"] == cfg.SOLVER.MAX_ITER
    assert found["MODEL.MASK_ON"] == cfg.MODEL.MASK_ON
    assert found["DATASETS.REPAIR"] == cfg.DATASETS.REPAIR


REFUSED = {
    "--test applies to one DATA": settings("voc:a", "voc:b", test="voc:c:d"),
    "--set trials: give a config key": settings(changes=(("trials", "3"),)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_do_not_fit_are_refused(message):
    with pytest.raises(UserError, match=message):
        detectors._tasks(REFUSED[message], NETWORKS)


CONVNEXT = network("timm://convnext_tiny.fb_in1k", "standard", 0.0, "timm:convnext_tiny")
CLIP = "robust://clip_vit_l14_fare_linf_eps4_schlarmann2024"
NOT_TOGETHER = {
    "timm:convnext_tiny and resnet50 need different detectors": [CONVNEXT, *NETWORKS],
    "a vgg16_bn cannot be the backbone of a detector. Choose": [
        network("vgg.pt", "standard", 0.0, "vgg16_bn")
    ],
    "which has no backbone for Detectron2. Choose a model with": [
        network(CLIP, "eps 4/255", 4 / 255, "timm:vit_large_patch14_clip_quickgelu_224")
    ],
}


@pytest.mark.parametrize("message", NOT_TOGETHER)
def test_networks_without_a_detector_are_refused(message):
    with pytest.raises(UserError, match=message):
        detectors._tasks(settings(config="own_data_retinanet.yaml"), NOT_TOGETHER[message])


def test_networks_of_timm_have_their_own_default_config(tmp_path):
    networks = [CONVNEXT, network("b.pt", "eps 4/255", 4 / 255, "timm:convnext_tiny")]
    parts = detectors._parts(settings(), networks, [task()], [TrialGroup(0, 1)])
    runs = study(tmp_path, parts)
    assert [run.options["source"] for run in runs if run.part == detectors.BACKBONE] == ["b.pt"]
    final = [run.options for run in runs if run.part == detectors.DETECTION]
    assert final[0]["MODEL.WEIGHTS"] == CONVNEXT.weights
    rates = {run.options.get("SOLVER.BASE_LR") for run in runs if run.part == detectors.CANDIDATES}
    for options in final:
        cfg = load_config(options["config"], ["MODEL.ROBUST.ARCH", options["MODEL.ROBUST.ARCH"]])
        assert cfg.MODEL.BACKBONE.NAME == "build_robust_timm_fpn_backbone"
        assert cfg.SOLVER.OPTIMIZER == "AdamW" and cfg.SOLVER.BASE_LR in rates


def test_classes_without_training_images_are_refused():
    train = {"classes": ["cat", "dog"], "objects": [3, 0]}
    test = {"classes": ["cat", "dog", "owl", "all"], "objects": [3, 1, 1, 0]}
    with pytest.raises(
        UserError, match="DATA voc:x: no training images contain dog, owl, .* these classes"
    ):
        detectors._check_classes("voc:x", train, test)
    detectors._check_classes("voc:x", train, {"classes": ["cat"], "objects": [1]})
