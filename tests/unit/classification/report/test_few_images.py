"""Few training images: one section for all sizes of the training set, with verdicts and labels."""

import numpy as np
import pytest

from classification.report import records
from classification.report.answers import find_answers
from classification.report.contents.build import build_sections, collect
from classification.report.contents.few_images import needed_images
from classification.report.contents.unshown import unshown
from tests.support.condition_results import ATTACK, write
from tests.support.result_grids import named, row

FRACTIONS = {0.01: 0.3, 0.1: 0.5, None: 0.7}  # fraction -> accuracy of the standard network
CLASS = 500  # training images of each class


def study(folder, tasks=("pets",), gain=0.1, fractions=FRACTIONS, levels=None):
    for task in tasks:
        for fraction, level in fractions.items():
            for eps in (0.0, 1.0, 3.0):
                metrics = {"images_per_class": CLASS * (fraction or 1)}
                accuracy = level + gain * eps / 3
                more = {} if fraction else {"levels": levels}
                write(
                    folder,
                    task,
                    eps=eps,
                    level=accuracy,
                    fraction=fraction,
                    metrics=metrics,
                    **more,
                )
    found, problems = records.read([folder])
    assert not problems
    return found


def test_training_sets_share_a_section(tmp_path):
    """Only the largest training set has tables of its own, and no result is left out."""
    found = study(tmp_path)
    sections = named(found)
    assert [name for name in sections if name.startswith("table1")] == ["table1"]
    assert row(sections["table1"], mode="fixed-feature", task="pets")["standard"].mean > 65
    section = sections["few-images"]
    assert [cells["images_per_class"] for cells in section.rows] == [5, 50, 500]
    assert (section.found, section.wanted) == (3, 3) and not section.warnings
    for cells, level in zip(section.rows, FRACTIONS.values(), strict=True):
        assert cells["standard"].mean == pytest.approx(100 * level, abs=6)
        assert cells["robust"].mean > cells["standard"].mean and cells["best_eps"] == "3"
    results = collect(found)
    assert not unshown(results, build_sections(results))


def test_curves_have_all_training_sets(tmp_path):
    (figure,) = named(study(tmp_path, ("pets", "dtd")))["few-images"].figures
    standard, robust = figure.panels["pets"]
    assert figure.log_x and [*figure.panels] == ["dtd", "pets"]
    assert standard.x == robust.x == [5, 50, 500] and len(standard.low) == 3
    assert standard.y == sorted(standard.y)


def test_p_values_are_corrected_over_tasks_and_training_sets(tmp_path):
    found = study(tmp_path, ("pets", "dtd"), gain=0.06)
    contests = collect(found).by_architecture
    alone = sorted(c.estimate.p for own in contests.values() for c in own.values())
    holm = np.maximum.accumulate([min(1, (6 - k) * p) for k, p in enumerate(alone)])
    shown = sorted(cells["p"] for cells in named(found)["few-images"].rows)
    assert shown == pytest.approx(holm.tolist())


def test_one_training_set_keeps_its_tables(tmp_path):
    sections = named(study(tmp_path, fractions={0.1: 0.5}))
    assert "few-images" not in sections
    assert "10 % of the training images of each class" in sections["table1"].text[-1]


def test_shots_are_training_sets_too(tmp_path):
    study(tmp_path, fractions={None: 0.7})
    for eps in (0.0, 3.0):
        write(tmp_path, "pets", eps=eps, level=0.4, shots=5)
    found, _ = records.read([tmp_path])
    assert [r["images_per_class"] for r in named(found)["few-images"].rows] == [5, 500]


def test_the_figure_of_conditions_has_the_smallest_training_set(tmp_path):
    (figure,) = named(study(tmp_path, levels={ATTACK: 0.3}))["conditions"].figures
    standard, _ = figure.panels["pets"]
    assert standard.x == ["clean", ATTACK, "few-shot (5)"]


@pytest.mark.parametrize(
    "accuracy, images",
    [
        (10, None),  # the curve begins above
        (20, 1),
        (40, 10),
        (30, 10**0.5),  # halfway between 1 and 10 on a logarithmic axis
        (45, 10**1.5),
        (50, 100),
        (50.1, None),
    ],
)
def test_labels_that_the_standard_network_needs(accuracy, images):
    curve = {1.0: 20.0, 10.0: 40.0, 100.0: 50.0}
    assert needed_images(curve, accuracy) == pytest.approx(images)


def test_the_first_crossing_of_a_curve_counts():
    curve = {1.0: 20.0, 10.0: 40.0, 100.0: 30.0, 1000.0: 50.0}
    assert needed_images(curve, 35.0) == pytest.approx(10**0.75)
    assert needed_images({5.0: 1.0}, 1.0) is None


def test_needed_labels_are_interpolated_in_the_table(tmp_path):
    section = named(study(tmp_path))["few-images"]
    first, second, last = (cells["standard_needs"] for cells in section.rows)
    means = [cells["standard"].mean for cells in section.rows]
    goal = section.rows[0]["robust"].mean
    truth = np.exp(np.interp(goal, means[:2], np.log([5, 50])))
    assert first == pytest.approx(truth, rel=0.05) and 50 < second < 500 and last is None


def test_labels_that_robustness_saves_need_a_verdict(tmp_path):
    _, few = find_answers(collect(study(tmp_path, gain=0.25)))
    rows = named(study(tmp_path, gain=0.25))["few-images"].rows
    first = next(cells for cells in rows if cells["verdict"] == "better")
    assert few.text.endswith(
        f"With {first['images_per_class']:g} images per class, the robust network is as accurate "
        f"as the standard one with {first['standard_needs']:g}."
    )


def test_one_answer_for_all_training_sets(tmp_path):
    clean, few = find_answers(collect(study(tmp_path)))
    assert "few training images" in few.question and len(few.verdicts) == 3
    assert "few" not in clean.question and [*clean.verdicts] == ["pets"]
    assert "pets with 5 images per class" in few.verdicts
    assert "training sets" in few.text
    assert "as accurate as" not in few.text  # no verdict is `better`
    _, several = find_answers(collect(study(tmp_path, ("pets", "dtd"))))
    assert len(several.verdicts) == 6 and "as accurate as" not in several.text
