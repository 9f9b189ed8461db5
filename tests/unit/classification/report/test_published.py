"""The paper's numbers are complete, and agree with the reference folder where it exists."""

import copy

import pytest
import yaml

from classification.datasets.specs import SUITE
from classification.report import published
from classification.report.statistics import fit
from tests.support import SHARED

FACTS = SHARED / "reference"


def facts(name):
    path = FACTS / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_lookups():
    assert published.table1("fixed-feature", "cifar10", "robust") == 95.53
    assert published.table1("full-network", "sun397", "standard") == 63.72
    assert published.table1("full-network", "digits", "standard") is None
    assert published.best_run("fixed-feature", "cifar10", "resnet18")["eps"] == 3
    assert published.best_run("fixed-feature", "digits", "resnet18") is None
    assert published.table2("vgg16_bn", 3.0, "imagenet") == 56.78
    assert published.table2("vgg16_bn", 1.0, "imagenet") is None
    assert published.figure4("coco_instance", "segm", "robust") == (37.08, 0.10)
    assert published.figure4("voc_detection", "bbox", "standard") == (52.80, None)
    assert published.figure4("voc_detection", "segm", "standard") is None
    assert published.best_eps("cifar100") == 1 and published.best_eps("food") is None


@pytest.mark.parametrize("eps", [0, 3])
def test_the_fit_follows_from_the_published_pairs(eps):
    table = published.numbers()["table2"]
    row = table[f"eps{eps}"]
    slope, _, r2 = fit(row["imagenet"], row["cifar10"])
    assert round(r2, 2) == row["r2"] and round(slope, 4) == table["slope"][f"eps{eps}"]


@pytest.mark.parametrize("mode", published.MODES)
@pytest.mark.parametrize("task", SUITE)
def test_tables_agree_with_each_other(mode, task):
    """A mean over trials is slightly below the best single run of any architecture."""
    best = max(published.best_run(mode, task, arch)["accuracy"] for arch in published.ARCHS)
    means = [published.table1(mode, task, kind) for kind in ("robust", "standard")]
    assert 0 <= best - max(means) < 0.6


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda n: n["tasks"].pop(), "the tasks differ"),
        (lambda n: n["table1"]["full-network"]["robust"].pop(), "12 percentages"),
        (lambda n: n["table2"]["eps3"]["cifar10"].append(101.0), "6 percentages"),
        (lambda n: n["best_runs"]["rows"]["full-network"]["food"].pop("resnet18"), "food"),
    ],
)
def test_typing_errors_are_found(change, message):
    found = copy.deepcopy(published.numbers())
    change(found)
    with pytest.raises(ValueError, match=message):
        published.check(found)


def test_tables_agree_with_the_reference():
    known, ours = facts("paper_results.yaml"), published.numbers()
    for mode in published.MODES:
        theirs = known["table1"][mode.replace("-", "_")]
        assert ours["table1"][mode] == theirs
    for eps, key in ((0, "std_eps0"), (3, "adv_eps3")):
        assert ours["table2"][f"eps{eps}"] == known["table2"][key]
    names = known["table2"]["architecture_key"]
    assert ours["table2"]["archs"] == [names[letter] for letter in known["table2"]["columns"]]
    for experiment, task, key in (
        ("voc_detection", "bbox", "voc_detection_box_ap"),
        ("coco_detection", "bbox", "coco_detection_box_ap"),
        ("coco_instance", "bbox", "coco_instance_box_ap"),
        ("coco_instance", "segm", "coco_instance_mask_ap"),
    ):
        assert ours["figure4"][experiment][task] == known["figure4"][key]
    assert ours["section_4_3"]["best_eps"].items() <= known["section_4_3"]["optimal_eps"].items()


def test_best_runs_agree_with_the_reference():
    known = facts("hyperparameters.yaml")["best_params"]
    for mode, key in (("fixed-feature", "fixed"), ("full-network", "full")):
        for task in SUITE:
            for arch, theirs in known[task][key].items():
                ours = published.best_run(mode, task, arch)
                assert ours["eps"] == theirs["eps_l2"] and ours["lr"] == theirs["lr"]
                assert ours["accuracy"] == pytest.approx(theirs["acc"], abs=0.0051)
