"""Result files of each kind: reading, reporting invalid files, merging trials."""

import json

import pytest

from classification.report import records
from classification.report.contents.build import build_sections, collect
from robust_backbones.core.errors import UserError
from robust_backbones.zoo import MODELS

SOURCE = {"arch": "resnet18", "dataset": "textures", "method": "pgd", "constraint": "l2", "eps": 1}
TRANSFER = {
    "dataset": "digits",
    "arch": "resnet18",
    "mode": "fixed-feature",
    "protocol": "clean",
    "downscale": None,
    "trials": 2,
    "seed": 0,
    "weights": "here/robust/checkpoint.pt",
    "source": SOURCE,
}


def transfer(accuracies=(90.0, 92.0), seed=0, digest="ab", weights=None, **settings):
    trials = [{"seed": seed + k, "accuracy": value} for k, value in enumerate(accuracies)]
    settings = TRANSFER | {"trials": len(trials), "seed": seed} | settings
    if weights:
        settings |= {"weights": weights, "source": {"arch": "resnet50"}}
    return result("transfer", {"metric": "top1", "trials": trials}, settings, seed, digest)


def result(kind, metrics, settings, seed=0, digest=None):
    return {
        "schema": 1,
        "kind": kind,
        "metrics": metrics,
        "settings": settings,
        "weights_sha256": digest,
        "data": {},
        "seed": seed,
        "seconds": 1.5,
        "code_version": "0.1.0",
        "finished": "2020-01-01T00:00:00+0000",
    }


def write(folder, contents, labels=None):
    folder.mkdir(parents=True)
    text = contents if isinstance(contents, str) else json.dumps(contents)
    (folder / records.RESULT).write_text(text)
    if labels:
        (folder / records.STUDY).write_text(json.dumps({"labels": labels}))


def only(tmp_path, contents, **more):
    write(tmp_path / "run", contents, **more)
    found, problems = records.read([tmp_path])
    assert not problems
    return found[0]


def test_a_transfer_run(tmp_path):
    record = only(tmp_path, transfer(), labels={"task": "digits"})
    assert (record.dataset, record.mode, record.protocol) == ("digits", "fixed-feature", "clean")
    assert (record.arch, record.constraint, record.eps) == ("resnet18", "l2", 1.0)
    assert record.pretrained_on == "textures" and not record.assumed_standard
    assert record.accuracies == (90.0, 92.0) and record.seeds == (0, 1)
    assert record.labels == {"task": "digits"} and not record.simulated


def test_a_result_without_images_has_no_dataset(tmp_path):
    assert only(tmp_path, transfer(dataset=None)).dataset == ""


def test_study_labels_complete_a_result(tmp_path):
    contents = transfer()
    contents["settings"]["source"] = {"arch": "resnet50"}
    record = only(tmp_path, contents, labels={"pretrained_on": "stylized_imagenet"})
    assert record.pretrained_on == "stylized_imagenet" and record.assumed_standard


@pytest.mark.parametrize("name", ["resnet50_l2_eps3", "resnet50_linf_eps4", "resnet18_l2_eps0"])
def test_published_networks_are_recognized_by_name(tmp_path, name):
    record, model = only(tmp_path, transfer(weights=f"robust://{name}")), MODELS[name]
    assert (record.arch, record.eps) == (model.arch, model.eps)
    assert record.constraint == model.constraint and record.pretrained_on == "imagenet"


@pytest.mark.parametrize(
    "source, eps, assumed",
    [
        ({"method": "standard", "eps": 0.0}, 0.0, False),
        ({"method": "standard", "eps": None}, 0.0, False),
        ({"method": None, "eps": None}, 0.0, True),
        (None, 0.0, True),
        ({"method": "pgd", "eps": None}, None, False),
    ],
)
def test_standard_networks(tmp_path, source, eps, assumed):
    record = only(tmp_path, transfer(source=source))
    assert record.eps == eps and record.assumed_standard == assumed


def test_detection_and_pretraining(tmp_path):
    config = {
        "MODEL": {"WEIGHTS": "robust://resnet50_l2_eps3", "MASK_ON": False},
        "DATASETS": {"TEST": ["voc_2007_test"]},
    }
    metrics = {"voc_2007_test": {"bbox": {"AP": 53.5}}, "best": {"bbox/AP": 99.0}}
    write(tmp_path / "a", result("detection", metrics, config, seed=2))
    settings = {"arch": "resnet18", "dataset": "textures", "constraint": "l2", "eps": 0.5}
    write(tmp_path / "b", result("pretrain", {"clean_top1": 88.0}, settings))
    write(tmp_path / "c", result("errors", {}, {}))
    config = config | {"MODEL": {"WEIGHTS": "here/backbone.pth", "ROBUST": {"ARCH": "resnet18"}}}
    write(tmp_path / "d", result("detection", metrics, config), labels={"eps": "0.5"})
    write(tmp_path / "e", result("detection", metrics, config), labels={"eps": "large"})
    (detector, network, errors, from_labels, unknown), problems = records.read([tmp_path])
    assert not problems and (errors.kind, errors.accuracies) == ("errors", ())
    assert (detector.dataset, detector.eps, detector.seeds) == ("voc_2007_test", 3.0, (2,))
    assert detector.accuracies == (53.5,)
    assert (from_labels.arch, from_labels.eps, unknown.eps) == ("resnet18", 0.5, None)
    assert (network.eps, network.pretrained_on, network.accuracies) == (0.5, "textures", (88.0,))
    assert network.weights == str(tmp_path / "b" / "checkpoint.pt")


METRICS = {  # metrics of a test set -> metric and value of the record
    "both": ({"bbox": {"AP": 5.0}, "segm": {"AP": 4.0}}, "bbox AP", (5.0,)),
    "masks": ({"segm": {"AP": 4.0}}, "segm AP", (4.0,)),
    "no boxes": ({"bbox": {"AP": None}, "segm": {"AP": 4.0}}, "segm AP", (4.0,)),
    "semantic": ({"sem_seg": {"mIoU": 41.0, "pACC": 90.0}}, "sem_seg mIoU", (41.0,)),
    "diverged": ({"sem_seg": {"mIoU": None}}, "sem_seg mIoU", ()),
}


@pytest.mark.parametrize("case", METRICS)
def test_metrics_of_detectors_and_segmenters(tmp_path, case):
    metrics, metric, value = METRICS[case]
    config = {"MODEL": {"WEIGHTS": "a.pth"}, "DATASETS": {"TEST": ["beach"]}}
    record = only(tmp_path, result("detection", {"beach": metrics}, config))
    assert (record.metric, record.accuracies) == (metric, value)


def test_unreadable_files_are_reported(tmp_path):
    write(tmp_path / "a", "{")
    write(tmp_path / "b", "[1]")
    write(tmp_path / "c", {"schema": 2, "kind": "transfer"})
    write(tmp_path / "d", transfer(accuracies=(None,)))
    write(tmp_path / "e", transfer())
    found, problems = records.read([tmp_path, tmp_path / "e"])
    assert len(found) == 1 and len(problems) == 4
    assert "schema 2" in problems[2] and "None is not a number" in problems[3]
    with pytest.raises(UserError, match="does not exist"):
        records.read([tmp_path / "missing"])


KINDS = {
    "transfer": transfer(),
    "detection": result(
        "detection",
        {"a": {"bbox": {"AP": 5.0}, "segm": {"AP": 4.0}}},
        {
            "MODEL": {"WEIGHTS": "w", "MASK_ON": True, "ROBUST": {"ARCH": "r"}},
            "DATASETS": {"TEST": ["a"]},
            "SOLVER": {"MAX_ITER": 3},
        },
    ),
    "pretrain": result(
        "pretrain",
        {"clean_top1": 5.0},
        {"arch": "a", "dataset": "b", "constraint": "l2", "eps": 0.0},
    ),
    "robustness": result(
        "robustness", {"clean_top1": 5.0}, {"dataset": "stylized_imagenet", "weights": "w"}
    ),
    "interpret": result(
        "interpret", {"networks": {"a": {"inversion": {"b": 1.0}}}}, {"weights": {"a": "w"}}
    ),
}


def damaged(node):
    """Copies with one entry removed or replaced by another type."""
    for key in node:
        yield {k: v for k, v in node.items() if k != key}
        for wrong in (None, [], {}, "x", -1):
            yield node | {key: wrong}
        if isinstance(node[key], dict):
            yield from (node | {key: inner} for inner in damaged(node[key]))
        if isinstance(node[key], list) and node[key] and isinstance(node[key][0], dict):
            yield from (node | {key: [inner]} for inner in damaged(node[key][0]))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_reported_or_harmless(tmp_path, kind):
    for number, contents in enumerate([KINDS[kind], *damaged(KINDS[kind])]):
        write(tmp_path / f"{number:04}", contents)
    found, problems = records.read([tmp_path])
    assert found and problems
    for record in found:  # each alone, so that each is in a table
        build_sections(collect([record]))
    build_sections(collect(found))


def test_trials_of_a_configuration_are_merged(tmp_path):
    write(tmp_path / "a", transfer(accuracies=(90.0, 92.0)))
    write(tmp_path / "b", transfer(accuracies=(94.0,), seed=2))
    write(tmp_path / "copy", transfer(accuracies=(92.5,), seed=1, weights_place="x"))
    write(tmp_path / "other", transfer(accuracies=(10.0,), digest="cd"))
    found, _ = records.read([tmp_path])
    runs = records.merged(found)
    assert len(runs) == 3  # weights_place is a setting like any other
    assert runs[0].accuracies == (90.0, 92.0, 94.0) and runs[0].indices == (0, 1)
    assert runs[0].mean == 92.0


def test_a_repeated_seed_counts_once(tmp_path):
    for name, value in (("a", 90.0), ("b", 90.0), ("c", 91.0)):
        write(tmp_path / name, transfer(accuracies=(value,)))
    (run,) = records.merged(records.read([tmp_path])[0])
    assert run.accuracies == (90.0,) and run.contradictions == (0,)
