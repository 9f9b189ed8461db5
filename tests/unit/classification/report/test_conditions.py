"""Conditions of transfer results: attacks, corruptions and shift, next to the clean test images."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from classification.report import comparisons, estimates, predictions, records
from classification.report.answers import find_answers
from classification.report.contents.build import collect
from classification.report.verdicts import Missing, Over
from tests.support.condition_results import ATTACK, CORRUPTIONS, IMAGES, SHIFT, write
from tests.support.result_grids import named, row

LEVELS = {ATTACK: 0.3, CORRUPTIONS: 0.5, SHIFT: 0.6}


def read(folder):
    found, problems = records.read([folder])
    assert not problems, problems
    return found


def study(folder, tasks=("pets",), archs=("resnet18",), gain=0.2):
    """A standard and a robust network, which is better by `gain` under each condition only."""
    for task in tasks:
        for arch in archs:
            for eps in (0.0, 3.0):
                levels = {name: level + gain * bool(eps) for name, level in LEVELS.items()}
                write(folder, task, arch=arch, eps=eps, levels=levels)
    return read(folder)


def column(path, k):
    with path.open(newline="") as file:
        return np.array([float(line[f"right{k}"]) for line in csv.DictReader(file)])


def test_a_condition_has_its_own_accuracies_and_images(tmp_path):
    run = write(tmp_path, levels=LEVELS)
    (record,) = read(tmp_path)
    assert [c.name for c in record.conditions] == [ATTACK, CORRUPTIONS, SHIFT]
    assert record.under("unknown") is None and record.condition.name == ""
    for condition in record.conditions:
        own = record.under(condition.name)
        (merged,) = records.merged([own])
        (right,), labels = predictions.correctness([merged])
        assert right.shape == (3, IMAGES) and labels.tolist() == [i % 5 for i in range(IMAGES)]
        for k in range(3):
            truth = column(run / condition.file, k) / condition.versions
            np.testing.assert_allclose(right[k], truth, rtol=1e-6)
            assert own.accuracies[k] == pytest.approx(100 * truth.mean())
    assert ((right > 0) & (right < 1)).sum() == 0  # shift: one version
    assert record.accuracies != own.accuracies and own.seeds == record.seeds


def test_clean_accuracies_do_not_depend_on_the_conditions(tmp_path):
    """Trials with and without conditions are one configuration; each condition has its trials."""
    write(tmp_path / "a", seeds=(0, 1))
    write(tmp_path / "b", seeds=(2, 3), levels=LEVELS)
    write(tmp_path / "c", seeds=(4,), levels={ATTACK: 0.3})
    found = read(tmp_path)
    (run,) = records.merged(found)
    assert run.seeds == (0, 1, 2, 3, 4)
    assert records.under(found, ATTACK, run).seeds == (2, 3, 4)
    assert records.under(found, SHIFT, run).seeds == (2, 3)
    assert records.under(found, SHIFT, run).indices == (1,)
    assert records.under(found, "unknown", run) is None


def test_equal_names_with_other_settings_are_not_merged(tmp_path):
    write(tmp_path / "a", seeds=(0,), levels=LEVELS)
    run = write(tmp_path / "b", seeds=(1,), levels=LEVELS)
    edit(run, lambda metrics: metrics["conditions"][0].update(attack={"steps": 7}))
    found = read(tmp_path)
    (merged,) = records.merged(found)
    assert records.under(found, ATTACK, merged).seeds == (0,)
    assert records.under(found, SHIFT, merged).seeds == (0, 1)


def edit(run, change):
    contents = json.loads((run / "result.json").read_text())
    change(contents["metrics"])
    (run / "result.json").write_text(json.dumps(contents))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "noise"},
        {"name": ""},
        {"versions": 0},
        {"trials": [1.0]},
        {"file": "../other.csv"},
        {"calibration": {"nll": {"trials": [1.0], "interval": [0, 1]}}},
    ],
)
def test_invalid_conditions_are_reported(tmp_path, change):
    edit(write(tmp_path, levels=LEVELS), lambda m: m["conditions"][2].update(change))
    found, problems = records.read([tmp_path])
    assert not found and len(problems) == 1 and "is not a valid result" in problems[0]


@pytest.mark.parametrize(
    "text", ["", "index,label,right0\n0,1,76\n", "index,label,right0\n0,1,x\n"]
)
def test_invalid_tables_are_missing_predictions(tmp_path, text):
    run = write(tmp_path, levels=LEVELS, seeds=(0,))
    (run / "conditions/corruptions.csv").write_text(text)
    (merged,) = records.merged([read(tmp_path)[0].under(CORRUPTIONS)])
    assert predictions.correctness([merged]) is None


def test_other_images_of_the_same_classes_are_not_compared(tmp_path):
    """AutoAttack may use a part of the images, whose indices are in the table."""
    runs = []
    for eps in (0.0, 3.0):
        run = write(tmp_path / str(eps), eps=eps, levels={ATTACK: 0.5})
        path = run / "conditions/attack.csv"
        head, *lines = path.read_text().splitlines()
        shift = 5 if eps else 0
        moved = [f"{int(line.split(',')[0]) + shift},{line.split(',', 1)[1]}" for line in lines]
        path.write_text("\n".join([head, *moved]) + "\n")
        runs += records.merged([read(tmp_path / str(eps))[0].under(ATTACK)])
    assert predictions.correctness(runs) is None
    assert predictions.correctness(runs[:1]) is not None
    assert comparisons.contest([runs[1]], [runs[0]]).estimate.over is Over.TRIALS


def test_fractions_have_the_interval_of_paired_differences():
    """One network and one trial per side: the normal interval of the mean of paired differences."""
    rng = np.random.default_rng(0)
    robust, standard = rng.integers(0, 76, (2, 1, 1, 4000)) / 75
    found = estimates.from_predictions(robust, standard, fixed=(True, True))
    delta = 100 * (robust - standard)[0, 0]
    half = norm.ppf(0.975) * delta.std(ddof=1) / np.sqrt(delta.size)
    low, high = found.interval(0.05)
    assert found.discordant is None and found.over is Over.IMAGES
    assert (low, high) == pytest.approx((delta.mean() - half, delta.mean() + half), rel=0.01)
    assert estimates.from_predictions(robust, standard).missing is Missing.TRIALS


def test_whole_numbers_keep_the_exact_test():
    rng = np.random.default_rng(1)
    robust, standard = rng.integers(0, 2, (2, 1, 1, 300))
    exact = estimates.from_predictions(robust == 1, standard == 1, fixed=(True, True))
    found = estimates.from_predictions(*(1.0 * robust, 1.0 * standard), fixed=(True, True))
    assert found.discordant is not None
    assert (found.p, found.interval(0.05)) == (exact.p, exact.interval(0.05))


def test_each_condition_has_a_row_with_a_verdict(tmp_path):
    found = study(tmp_path, ("pets", "dtd"))
    section = named(found)["conditions"]
    assert (len(section.rows), section.found, section.wanted) == (6, 6, 6)
    for cells in section.rows:
        name = cells["condition"]
        standard, robust = (
            np.mean(
                next(r for r in found if (r.dataset, r.eps) == (cells["task"], eps))
                .under(name)
                .accuracies
            )
            for eps in (0.0, 3.0)
        )
        assert (cells["standard"].mean, cells["robust"].mean) == pytest.approx((standard, robust))
        assert cells["cross_fitted"].mean == pytest.approx(robust - standard, abs=1e-4)
        assert cells["verdict"] == "better" and cells["best_eps"] == "3"
    assert not section.warnings
    (figure,) = section.figures
    (standard, robust) = figure.panels["pets"]
    assert standard.x == robust.x == ["clean", ATTACK, CORRUPTIONS, SHIFT]
    assert robust.y[1] == row(section, task="pets", condition=ATTACK)["robust"].mean


def test_p_values_are_corrected_over_tasks_and_conditions(tmp_path):
    found = collect(study(tmp_path, ("pets", "dtd"), gain=0.03))
    contests = found.by_condition[""]
    alone = sorted(c.estimate.p for c in contests.values())
    holm = np.maximum.accumulate([min(1, (6 - k) * p) for k, p in enumerate(alone)])
    assert sorted(c.verdict.p for c in contests.values()) == pytest.approx(holm.tolist())


def test_all_other_sections_have_the_clean_images_only(tmp_path):
    with_conditions = named(study(tmp_path))
    clean = named([replace(record, conditions=()) for record in read(tmp_path)])
    assert with_conditions.keys() - clean.keys() == {"conditions"}
    for name in clean.keys() - {"calibration", "coverage"}:
        assert clean[name] == with_conditions[name], name


def test_a_difference_in_the_settings_of_a_condition_is_a_warning(tmp_path):
    study(tmp_path)
    run = next(path.parent for path in tmp_path.rglob("result.json") if "-3-" in str(path))
    edit(run, lambda metrics: metrics["conditions"][0].update(attack={"steps": 7}))
    (warning,) = named(read(tmp_path))["conditions"].warnings
    assert f"{ATTACK} on pets" in warning and "differ" in warning


def test_calibration_has_values_with_intervals_and_no_verdict(tmp_path):
    section = named(study(tmp_path))["calibration"]
    assert (len(section.rows), section.found, section.wanted) == (4, 2, 2)
    cells = row(section, network="eps 3", images=SHIFT)
    assert cells["nll"].mean == pytest.approx(0.6) and cells["nll_scaled"].mean == pytest.approx(
        0.3
    )
    assert cells["ece"].ends == pytest.approx((4.5, 5.5)) and cells["ece"].trials == 3
    assert cells["accuracy_at_80"].mean == pytest.approx(90)
    assert "verdict" not in cells and "p" not in cells
    assert "95 % interval over test images" in cells["brier"].words


def test_calibration_of_trials_from_several_runs(tmp_path):
    """Means over trials; the ends of the intervals are means over trials, too."""
    for eps in (0.0, 3.0):
        for seed in range(3):
            run = write(tmp_path, eps=eps, seeds=(seed,))
            entry = {"trials": [1.0 + seed], "interval": [seed, 3.0 + seed]}
            edit(run, lambda m, entry=entry: m["calibration"].update(nll=entry, scaled=None))
    cells = row(named(read(tmp_path))["calibration"], network="standard")
    assert cells["nll"].mean == pytest.approx(2) and cells["nll"].ends == (1, 4)
    assert cells["nll_scaled"] is None and cells["brier"].trials == 3


def test_runs_without_logits_have_no_calibration(tmp_path):
    for eps in (0.0, 3.0):
        write(tmp_path, eps=eps, calibration=False)
    assert "calibration" not in named(read(tmp_path))


def test_answers_about_conditions_follow_the_clean_ones(tmp_path):
    answers = find_answers(collect(study(tmp_path)))
    assert ["under" in answer.question for answer in answers] == [False, True, True, True]
    assert answers[1].text.startswith(
        f"On pets under attack ({ATTACK}), the robust resnet18 (eps 3) performs better than the "
        "standard one: +"
    )
    assert answers[2].text.startswith("On pets under corruptions, the robust")
    assert answers[3].text.startswith("On pets under distribution shift (sketch), the robust")


def test_several_architectures_share_an_answer(tmp_path):
    found = study(tmp_path, ("pets", "dtd"), ("resnet18", "resnet50"))
    answers = [a for a in find_answers(collect(found)) if "attack" in a.question]
    assert len(answers) == 1 and len(answers[0].verdicts) == 4
    assert answers[0].text.startswith(
        f"Under attack ({ATTACK}), the best robust network of each architecture performs better "
        "than the standard one on all 4 pairs of task and architecture ("
    )
