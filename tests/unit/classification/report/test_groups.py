"""Groups of results that share a table, and the warnings about mixtures."""

import itertools

import pytest

from classification.datasets.specs import SUITE
from classification.report import published, records
from classification.report.groups import groups_of
from classification.report.records import Record
from tests.support.result_grids import grid, named, row
from tests.support.result_records import transfer


def test_protocols_have_separate_tables_with_clean_first():
    found = grid(protocol="paper", gain=-5.0) + grid()
    sections = named(found)
    assert [name for name in sections if name.startswith("table1")] == ["table1", "table1-paper"]
    assert "protocol paper" in sections["table1-paper"].title
    clean, paper = (
        row(sections[name], mode="fixed-feature", task="pets")["robust"].mean
        for name in ("table1", "table1-paper")
    )
    assert clean > 72 and paper < 70


def test_warning_about_the_papers_numbers_with_another_protocol():
    sections = named(grid(protocol="paper") + grid() + grid(origin="digits"))
    warned = [
        name
        for name, section in sections.items()
        if name.startswith(("table1", "curves"))
        if any("Protocols are mixed" in text for text in section.warnings)
    ]
    assert warned == ["table1"]


@pytest.mark.parametrize(
    "other, words",
    [
        ({"origin": "digits"}, "digits"),
        ({"simulated": True}, "simulated"),
        ({"shots": 5}, "5"),
        ({"norm": "linf", "levels": (4 / 255,)}, "linf"),
        ({"eps": 0.5, "levels": (1.0,)}, None),
    ],
)
def test_different_properties_make_different_groups(other, words):
    adversarial = other.pop("eps", None)
    levels = other.pop("levels", (0.0, 1.0))
    found = grid(levels=(0.0, 1.0))
    for arch, level, seed in itertools.product(("resnet18", "resnet50"), levels, range(3)):
        more = dict(other)
        record = transfer("pets", arch, level, 10.0, seed=seed, **more)
        if adversarial:
            record = Record(
                **vars(record) | {"settings": record.settings | {"adversarial": adversarial}}
            )
        found.append(record)
    sections = named(found)
    apart = [name for name in sections if name.startswith("table1-")]
    assert len(apart) == 1 and (words or "0.5") in apart[0]
    assert row(sections["table1"], mode="fixed-feature", task="pets")["robust"].mean > 70


def test_norms_share_the_standard_networks():
    found = grid(archs=("resnet18",), levels=(0.0, 1.0))
    found += [transfer("pets", "resnet18", 4 / 255, 75.0, norm="linf", seed=s) for s in range(3)]
    section = named(found)["table1-linf"]
    only = row(section, mode="fixed-feature", task="pets")
    assert only["robust_network"] == "resnet18, eps 4/255" and only["standard"].mean < 75


def test_standard_networks_alone_are_no_group_next_to_robust_ones_of_another_norm():
    found = grid(archs=("resnet18",), levels=(0.0,))
    found += [transfer("pets", "resnet18", 4 / 255, 75.0, norm="linf", seed=s) for s in range(3)]
    sections = named(found)
    assert [name for name in sections if name.startswith("table1")] == ["table1"]
    only = row(sections["table1"], mode="fixed-feature", task="pets")
    assert only["robust_network"] == "resnet18, eps 4/255" and only["standard"].mean < 75


def test_runs_on_different_images_are_different_tasks():
    found = grid(tasks=("pets",), trials=1, images=("u", "v")) + grid(tasks=("pets",), gain=9.0)
    found += grid(tasks=("pets",), archs=("resnet18",), images=("u", "w"))
    section = named(found)["curves-fixed-feature"]
    labels = dict.fromkeys(r["task"] for r in section.rows)
    assert {"pets", "pets (100 images, 2)", "pets (100 images, 3)"} == {*labels} - {*SUITE} | {
        "pets"
    }
    assert row(section, task="pets", architecture="resnet18")["eps_1"].mean > 78


@pytest.mark.parametrize(
    "change, warning",
    [
        ({"version": "0.2.0"}, "several versions of the code: 0.1.0, 0.2.0"),
        ({"image_size": 32}, "have different settings: image_size"),
        ({"batch_size": 7}, "several configurations"),
        ({"batch_size": 7}, "different settings: batch_size"),
        ({"selection": "test"}, "chosen on the test images"),
    ],
)
def test_warnings_about_mixtures(change, warning):
    found = grid(tasks=("pets",), archs=("resnet18",), levels=(0.0,))
    found += grid(tasks=("pets",), archs=("resnet18",), levels=(1.0,), **change)
    if "batch_size" in change:
        found += grid(tasks=("pets",), archs=("resnet18",), levels=(1.0,), batch_size=9)
    assert any(warning in text for text in named(found)["table1"].warnings)


def test_warnings_about_metrics_and_assumptions():
    found = grid(tasks=("pets",), archs=("resnet18",), trials=1)
    found[0] = Record(**vars(found[0]) | {"metric": "top1", "assumed_standard": True})
    found.append(Record(**vars(found[1]) | {"accuracies": (1.0,)}))
    texts = " ".join(named(found)["table1"].warnings)
    assert (
        "mean_per_class and top1: not comparable" in texts
        and "do not record how they were trained" in texts
    )
    assert "several results with different accuracies" in texts


def test_reference_groups_have_the_papers_axes():
    group = groups_of(records.merged(grid()))[0]
    assert group.eps == published.EPS and group.archs == published.ARCHS and group.tasks == SUITE
