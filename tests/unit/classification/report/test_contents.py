"""Sections from made-up results: the right numbers in the right cells, and every warning."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classification.datasets.specs import SUITE
from classification.report import published, records
from classification.report.answers import find_answers
from classification.report.contents.build import build_sections, collect
from classification.report.contents.parts import Results
from classification.report.contents.pretraining_accuracy import PretrainingAccuracy
from classification.report.contents.unshown import unshown
from classification.report.records import Record
from classification.study.file import read_study
from robust_backbones.core.files import sha256
from tests.support.result_grids import grid, named, row
from tests.support.result_records import detection, pretraining, transfer


def test_table1():
    section = named(grid())["table1"]
    found = row(section, mode="fixed-feature", task="cifar10")
    assert found["robust_network"] == "resnet50, eps 3"
    assert found["robust"].mean == pytest.approx(73.3, abs=0.1) and found["robust"].trials == 3
    assert found["robust"].spread.low < found["robust"].mean < found["robust"].spread.high
    assert found["difference"] == found["robust"].mean - found["standard"].mean
    assert (found["paper_robust"], found["paper_standard"]) == (95.53, 81.31)
    assert found["paper_difference"] == pytest.approx(14.22)
    assert found["robust_minus_paper"] == pytest.approx(found["robust"].mean - 95.53)
    assert found["verdict"] == "better"
    assert len(section.rows) == 24 and (section.found, section.wanted) == (8, 48)
    assert row(section, mode="full-network", task="food")["robust"] is None
    panel = section.figures[0].panels["full-network"]
    assert [s.published for s in panel] == [False, False, True, True]


SEGMENTER = replace(
    detection("cityscapes", 3.0),
    accuracies=(),
    seeds=(),
    metrics={"cityscapes": {"panoptic_seg": {"PQ": 70.0}}, "best": {}},
)
TWO_SETS = replace(
    detection("mine", 3.0), metrics={"mine": {"bbox": {"AP": 5.0}}, "theirs": {"bbox": {"AP": 4.0}}}
)


@pytest.mark.parametrize(
    ("records", "reasons"),
    [
        ([transfer(), transfer(eps=3.0)], []),
        ([transfer(), transfer(eps=3.0), transfer(eps=3.0, batch_size=2)], []),  # the best is shown
        ([transfer("folder"), pretraining()], []),
        (
            [transfer(), transfer(arch="resnet101")],
            ["no table includes the transfer results of resnet101: "],
        ),
        ([replace(transfer(eps=3.0), eps=None)], ["eps of the network's pretraining is unknown: "]),
        ([replace(transfer(), kind="errors", accuracies=())], ["no table for the kind 'errors': "]),
        ([detection(), detection(eps=3.0)], []),
        (
            [SEGMENTER],
            ["tables for bbox, segm, sem_seg, but not for panoptic_seg: nowhere/cityscapes-3"],
        ),
        ([TWO_SETS], ["only the first test set is shown, but not theirs: "]),
    ],
)
def test_results_without_a_table_are_named(records, reasons):
    results = collect(records)
    found = unshown(results, build_sections(results))
    assert len(found) == len(reasons)
    for sentence, reason in zip(found, reasons, strict=True):
        assert re.search(reason, sentence)


@pytest.mark.parametrize(
    "gain, verdict", [(2.0, "better"), (0.0, "no difference"), (-2.0, "worse")]
)
def test_verdicts(gain, verdict):
    # Over both tasks the same; eps 3 alone is a little better than the others.
    found = grid(levels=(0.0, 1.0), archs=("resnet18",), gain=gain - 0.1)
    assert {r["verdict"] for r in named(found)["table1"].rows if r["robust"]} == {verdict}


def test_one_trial_gives_no_verdict():
    sections = named(grid(trials=1))
    assert row(sections["table1"], mode="full-network", task="pets")["verdict"] == "cannot tell"
    found = row(sections["paired"], mode="full-network", task="pets")
    assert found["cross_fitted"] is None and found["measured"].mean
    assert found["would_tell"] == "3 to 10 trials of each network"
    assert (
        row(sections["paired"], mode="full-network", task="all tasks")["verdict"] == "cannot tell"
    )


def test_figures_2_and_3():
    sections = named(grid())
    found = row(sections["figure2"], task="cifar10", architecture="resnet18")
    assert found["eps"] == "3" and found["paper_best"] == 91.64
    assert found["robust"].mean > found["standard"].mean
    assert found["difference"] == pytest.approx(found["robust"].mean - found["standard"].mean)
    assert [*sections["figure3"].figures[0].panels] == ["cifar10", "pets"]
    assert len(sections["figure3"].rows) == 48 and sections["figure3"].found == 8


def test_curves():
    section = named(grid())["curves-fixed-feature"]
    found = row(section, task="cifar10", architecture="resnet50")
    assert found["eps_3"].mean > found["eps_0"].mean and found["eps_5"] is None
    assert section.figures[0].log_x and section.figures[0].panels["cifar10"][0].x[0] == 0


def test_selection_and_ranks():
    levels = (0.0, *published.EPS)
    sections = named(grid(tasks=SUITE[:4], archs=("resnet18",), levels=levels))
    found = row(sections["section4-3"], mode="fixed-feature", task="cifar10")
    assert found["paper_eps"] == "3" and found["paper_best_run_eps"] == "3"
    assert found["best_eps"] == "5" and "interval over trials" in found["cross_fitted"].words
    gains = [found[name].mean for name in ("measured", "cross_fitted")]
    assert found["selection_bias"] == pytest.approx(gains[0] - gains[1])
    ranked = row(sections["ranks"], mode="fixed-feature", architecture="resnet18")
    assert ranked["eps_5"] < ranked["eps_0.01"] < ranked["eps_0"] == 10
    assert ranked["tasks"] == 4 and ranked["p"] < 0.05


def test_paired_over_tasks():
    found = grid(tasks=SUITE, archs=("resnet18",), modes=("fixed-feature",))
    whole = row(named(found)["paired"], task="all tasks")
    assert whole["verdict"] == "better" and whole["interval_over"] == "12 tasks"
    assert whole["p"] < 1e-9


def test_figure5_and_table2():
    archs, found = published.numbers()["table2"]["archs"], []
    for i, arch in enumerate(archs):
        for eps in (0.0, 3.0):
            found.append(transfer("cifar10", arch, eps, 98 - i, mode="full-network"))
    sections = named(found)
    table = row(sections["table2"], architecture="vgg16_bn")
    assert (table["eps_0_source"], table["eps_3_source"]) == (73.66, 57.19)
    assert table["eps_3_ours"].mean == 96 and table["eps_3_paper"] == 97.27
    fit = row(sections["table2-fit"], networks="eps 3")
    assert fit["count"] == 6 and fit["paper_r_squared"] == 0.97 and fit["r_squared"] > 0.9
    cloud, theirs = sections["table2"].figures[0].panels["cifar10, full-network"][:2]
    assert cloud.fit and theirs.published and len(theirs.x) == 6
    every = row(sections["figure5"], task="cifar10", networks="all")
    assert every["count"] == 12 and every["slope"] is not None


def test_own_networks_are_matched_with_their_pretraining():
    found = grid(tasks=("textures",), modes=("fixed-feature",), levels=(0.0, 1.0), origin="digits")
    for arch, eps in itertools.product(("resnet18", "resnet50"), (0.0, 1.0)):
        found.append(pretraining(arch, eps, 80 + eps))
    sections = named(found)
    assert row(sections["figure5"], networks="robust")["count"] == 2
    assert row(sections["table2"], architecture="resnet50")["eps_1_source"] == 81
    assert not [c.key for c in sections["table1"].columns if c.paper]
    assert any("not evidence" in w for w in sections["table1"].warnings)
    assert sections["table1"].wanted == 2


def test_own_networks_are_matched_by_the_digest_of_their_file(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    network = pretraining(accuracy=77.0)
    network = Record(**vars(network) | {"weights": str(tmp_path / "checkpoint.pt")})
    run = transfer("textures", origin="digits")
    runs = records.merged([network])
    known = PretrainingAccuracy(Results([network], runs, [], {}, {}))
    for digest, accuracy in ((sha256(tmp_path / "checkpoint.pt"), 77.0), ("another", None)):
        (own,) = records.merged([Record(**vars(run) | {"weights_sha256": digest})])
        assert known.of(own) == accuracy


def test_figure6():
    archs = ("resnet50", "wide_resnet50_2", "wide_resnet50_4")
    section = named(grid(archs=archs))["figure6"]
    found = row(section, mode="fixed-feature", task="pets", eps="3")
    assert found["wide_resnet50_4"].mean > found["resnet50"].mean
    assert section.figures[0].panels["pets"][0].x == [1, 2, 4]


def test_figure7():
    found = grid(modes=("fixed-feature",)) + grid(
        tasks=("pets",), archs=("resnet18",), modes=("fixed-feature",), downscale=32, gain=-3.0
    )
    sections = named(found)
    assert {r["task"] for r in sections["figure7"].rows} == {"pets"}
    coarse = row(sections["figure7"], architecture="resnet18", images="32 pixels")
    fine = row(sections["figure7"], architecture="resnet18", images="original")
    assert (coarse["best_eps"], fine["best_eps"]) == ("0", "3")
    # Downscaled images are in no other table.
    assert row(sections["table1"], mode="fixed-feature", task="pets")["robust"].trials == 3


def test_figure8():
    found = grid(archs=("resnet50",), modes=("fixed-feature",))
    found += [transfer("cifar10", "resnet50", 0.0, 60.0, origin="stylized_imagenet")]
    found += [transfer("stylized_imagenet", "resnet50", eps, 30 + eps) for eps in (0.0, 3.0)]
    found.append(
        Record(
            Path("nowhere/result.json"),
            "robustness",
            "stylized_imagenet",
            arch="resnet50",
            eps=3.0,
            constraint="l2",
            metric="top1",
            accuracies=(12.5,),
            seeds=(0,),
        )
    )
    sections = named(found)
    (evaluated,) = sections["figure8-evaluated"].rows
    assert evaluated["accuracy"].mean == 12.5 and evaluated["network"] == "resnet50, eps 3"
    moved = row(sections["figure8"], task="stylized_imagenet", mode="fixed-feature")
    assert (moved["standard"].mean, moved["robust"].mean) == (30, 33)
    source = row(sections["figure8"], task="cifar10")
    assert source["stylized"].mean == 60 and source["robust"].mean > 70
    assert "stylized_imagenet" not in [r["task"] for r in sections["table1"].rows]
    assert [name for name in sections if name.startswith("table1")] == ["table1"]


def segmenter(eps: float, miou: float, seed: int) -> Record:
    """A network for semantic segmentation."""
    metrics = {"beach": {"sem_seg": {"mIoU": miou, "pACC": 90.0}}}
    found = detection("beach", eps, miou, seed)
    model = found.settings["MODEL"] | {"META_ARCHITECTURE": "SemanticSegmentor"}
    settings = found.settings | {"MODEL": model}
    return replace(found, metrics=metrics, settings=settings, metric="sem_seg mIoU")


def test_figure4_compares_miou():
    noise = (0.0, 0.3, 0.6)
    found = [
        segmenter(eps, 40 + 5 * (eps > 0) + noise[seed], seed)
        for eps in (0.0, 3.0)
        for seed in range(3)
    ]
    section = named(found)["figure4"]
    standard, robust = section.rows
    assert {r["metric"] for r in section.rows} == {"mIoU"}
    assert standard["ap"].mean == pytest.approx(40.3) and robust["ap"].mean == pytest.approx(45.3)
    assert robust["verdict"] == "better" and "SemanticSegmentor" in robust["experiment"]
    (answer,) = find_answers(collect(found))
    assert "mIoU" in answer.question and "mIoU" in answer.text
    results = collect(found)
    assert not unshown(results, build_sections(results))


def test_figure4():
    rng = np.random.default_rng(1)
    found = [
        detection(eps=eps, ap=50 + eps + rng.normal(0, 0.1), seed=seed)
        for eps in (0.0, 1.0, 3.0)
        for seed in range(4)
    ]
    found += [
        detection("coco_2017_val", eps, 40, seed, masks=37.0)
        for eps in (0.0, 3.0)
        for seed in range(2)
    ]
    found += [detection(eps=5.0, ap=90.0, iterations=9)]
    section = named(found)["figure4"]
    best = row(section, experiment="voc_2007_test, Faster R-CNN, 1000 iterations", backbone="eps 3")
    assert best["ap"].spread.size > 0 and best["runs"] == 4
    assert best["difference"].mean == pytest.approx(3, abs=0.2)
    assert best["verdict"] == "better" and best["paper_ap"].mean == 53.87
    other = row(
        section, experiment="voc_2007_test, Faster R-CNN, 1000 iterations", backbone="eps 1"
    )
    assert other["paper_ap"] is None
    masks = row(section, metric="mask AP", backbone="standard")
    assert masks["ap"].mean == 37 and masks["minus_paper"] == pytest.approx(0.08)
    assert masks["paper_ap"].spread.size == pytest.approx(0.08)
    # Another schedule is another experiment.
    assert row(section, backbone="eps 5")["difference"] is None
    assert section.wanted == section.found + 2  # COCO detection is missing


def test_detectors_on_weights_of_ones_own():
    found = [
        detection("scenes", ap=60.0, weights="nets/standard/backbone.pth"),
        detection("scenes", ap=62.0, weights="nets/robust/backbone.pth"),
    ]
    section = named(found)["figure4"]
    assert [r["backbone"] for r in section.rows] == ["standard", "robust"]
    assert row(section, backbone="robust")["verdict"] == "cannot tell"
    assert "the names of their files" in section.warnings[0]


def test_detectors_that_differ_in_one_key_are_told_apart():
    found = [detection("scenes", ap=60.0), detection("scenes", ap=50.0)]
    found[1].settings["SOLVER"] = found[1].settings["SOLVER"] | {"EMA": 0.9}
    names = [r["experiment"] for r in named(found)["figure4"].rows]
    same = "scenes, Faster R-CNN, 1000 iterations, SOLVER.EMA"
    assert sorted(names) == [f"{same} 0.9", f"{same} None"]


def tuned(eps, chosen, seed=0, rates=(0.005, 0.02, 0.08), **more):
    """A detector whose learning rate was chosen from candidates on held-out images."""
    record = detection("cells", eps, 50 + eps + seed / 10, seed, **more)
    candidates = {"CHOSEN": chosen, "RATES": [*rates], "APS": [eps, 2, 3], "HELD_OUT": 0.2}
    candidates["RUNS"] = [f"{eps}/{rate}" for rate in rates]
    solver = record.settings["SOLVER"] | {"BASE_LR": chosen, "CANDIDATES": candidates}
    return replace(record, settings=record.settings | {"SOLVER": solver})


def with_keys(record, **sections):
    merged = {name: record.settings.get(name, {}) | keys for name, keys in sections.items()}
    return replace(record, settings=record.settings | merged)


def test_detectors_with_chosen_learning_rates_are_one_experiment():
    found = [tuned(eps, rate, seed) for eps, rate in ((0, 0.02), (3, 0.08)) for seed in (0, 1)]
    candidate = with_keys(detection("cells_held_out"), DATASETS={"HELD_OUT": 0.2})
    diverged = replace(candidate, accuracies=(), seeds=(), metrics={"cells_held_out": {}})
    section = named([*found, candidate, diverged])["figure4"]
    assert [r["backbone"] for r in section.rows] == ["standard", "eps 3"]  # no candidate
    words = "cells, Faster R-CNN, 1000 iterations"
    note = "chosen per backbone from 0.005, 0.02, 0.08 on 20% of the training images, which were "
    assert any(f"{words}: learning rate {note}" in text for text in section.text)
    assert any(text.endswith("held out: standard 0.02, eps 3 0.08.") for text in section.text)
    end = "of eps 3, 0.08, is at the end of the candidates (0.005, 0.02, 0.08). A larger one may"
    assert [end in warning for warning in section.warnings] == [True]
    results = collect([*found, candidate, diverged])
    assert unshown(results, build_sections(results)) == []


def test_learning_rates_from_other_candidates_are_not_compared():
    found = [tuned(0, 0.02), tuned(3, 0.02, rates=(0.01, 0.02, 0.04))]
    section = named(found)["figure4"]
    assert len({r["experiment"] for r in section.rows}) == 2
    assert all(r["difference"] is None for r in section.rows)


def test_a_common_learning_rate_is_a_caution():
    found = [with_keys(detection(eps=eps), SOLVER={"BASE_LR": 0.02}) for eps in (0.0, 3.0)]
    words = "All backbones have the learning rate 0.02. It was not chosen for each of them"
    assert any(words in warning for warning in named(found)["figure4"].warnings)
    (answer,) = find_answers(collect(found))
    assert answer.cautions[0].startswith(words)


def test_figure1():
    means = {
        "visualization": {"own_confidence": 99.0, "images": [{"score": 1.0}]},
        "inversion": {"pixel_distance": 0.5},
    }
    found = [
        Record(
            Path("nowhere/pictures/result.json"),
            "interpret",
            metrics={"networks": {"standard": means}},
            warnings=[{"check": "x", "message": "Too few steps."}],
        )
    ]
    section = named(found)["figure1"]
    (only,) = section.rows
    assert only["of_own_confidence"].mean == 99 and only["of_pixel_distance"].records == (0,)
    assert only["network"] == "standard" and section.warnings == ["Too few steps."]


def test_coverage():
    sections = named(grid())
    found = row(sections["coverage"], section="table1")
    assert (found["found"], found["wanted"]) == (8, 48)
    assert row(sections["coverage"], title="Figure 4")["found"] == 0
    lost = row(sections["missing"], mode="fixed-feature", task="pets", architecture="resnet18")
    assert lost["eps_missing"] == "0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 5"
    assert (
        row(sections["missing"], mode="fixed-feature", task="food", architecture="resnet50")[
            "eps_missing"
        ]
        == "all"
    )


def test_runs_of_a_study(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(
        f"output: {tmp_path}/out\ncommon: {{dataset: digits, weights: '{{net}}'}}\n"
        "axes: {net: [a, b]}\n"
    )
    made = read_study(study)[0].result
    record = Record(**vars(transfer()) | {"path": made})
    (section,) = [s for s in build_sections(collect([record], study)) if s.name == "study"]
    assert [r["state"] for r in section.rows] == ["finished", "missing"]
    assert (section.found, section.wanted) == (1, 2)


def test_runs_that_a_study_skips_are_not_missing(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(
        f"output: {tmp_path}/out\ncommon: {{weights: '{{net}}-{{eps}}'}}\n"
        "axes:\n  task: {first: {dataset: pets}, second: {dataset: dtd}}\n"
        "  net: [a, b]\n  eps: ['0', '1', '3']\n"
        "skip: [{net: b, eps: '1'}]\n"
    )
    tasks, nets = {"first": "pets", "second": "dtd"}, {"a": "resnet18", "b": "resnet50"}
    made = []
    for run in read_study(study):
        task, net, eps = run.labels.values()
        record = transfer(tasks[task], nets[net], float(eps), origin="digits")
        made.append(Record(**vars(record) | {"path": run.result}))
    lost = made.pop()  # one run is missing, and two are skipped
    assert (lost.dataset, lost.arch, lost.eps) == ("dtd", "resnet50", 3.0)
    found = {s.name: s for s in build_sections(collect(made, study))}
    assert [(r["task"], r["architecture"], r["eps_missing"]) for r in found["missing"].rows] == [
        ("dtd", "resnet50", "3")
    ]
    for name in ("missing", "curves-fixed-feature", "study"):
        assert (found[name].found, found[name].wanted) == (9, 10), name
    assert len({s.name: s for s in build_sections(collect(made))}["missing"].rows) == 2


def test_no_results_give_only_the_coverage():
    assert [*named([])] == ["coverage"]
