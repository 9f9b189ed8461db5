"""Answers of a report: every comparison is a question, and missing results are named."""

import pytest

from classification.report.answers import Answer, find_answers
from classification.report.contents.build import collect
from classification.report.verdicts import Outcome
from tests.support import result_records


def study(tasks=("pets",), levels=(0.0, 3.0), trials=(0, 1, 2), gain=5.0, **more):
    return [
        result_records.transfer(
            task, eps=eps, seed=seed, accuracy=80 + gain * bool(eps) + seed, **more
        )
        for task in tasks
        for eps in levels
        for seed in trials
    ]


def answer(records) -> list[Answer]:
    return find_answers(collect(records))


def test_each_mode_and_architecture_is_a_question():
    records = study(("pets", "dtd")) + study(mode="full-network")
    found = answer(records + study(arch="resnet50"))
    assert [a.question.split("; ")[0] for a in found] == [
        "Fixed-feature transfer (2 architectures",
        "Fixed-feature transfer (resnet18",
        "Fixed-feature transfer (resnet50",
        "Full-network transfer (resnet18",
    ]
    assert [len(a.verdicts) for a in found] == [2, 2, 1, 1]
    assert found[3].text.startswith("On pets, the robust resnet18 (eps 3) transfers better than")


def test_the_verdicts_are_those_of_the_tables():
    results = collect(study(("pets", "dtd"), (0.0, 1.0, 3.0)))
    (found,) = find_answers(results)
    contests = results.contests[""]
    assert {t: v.p for t, v in found.verdicts.items()} == {
        t: c.verdict.p for (_, t), c in contests.items()
    }
    assert found.text.startswith("The best of 2 robust resnet18 networks (eps 1 to 3) transfers ")


def test_several_tasks_have_no_common_estimate():
    (one,), (two,) = answer(study()), answer(study(("pets", "dtd")))
    assert one.only is one.verdicts["pets"] and two.only is None
    assert two.json()["estimate"] is None and len(two.json()["tasks"]) == 2
    assert one.json()["estimate"] == pytest.approx(5)
    assert one.json()["counts"] == {o.value: int(o is Outcome.BETTER) for o in Outcome}
    low, high = one.json()["interval"]
    assert low < 5 < high


@pytest.mark.parametrize(
    "records, text",
    [
        (
            study(levels=(3.0,), trials=(0,)),
            "only one network, which is robust. Add runs of standard twins (resnet18).",
        ),
        (
            study(levels=(0.0,)),
            "only one network, which is standard. Add runs of robust twins (resnet18).",
        ),
        (study(levels=(1.0, 3.0)), "only robust networks. Add runs of standard twins (resnet18)."),
        (
            study(("pets",), (0.0,)) + study(("dtd",), (3.0,)),
            "no task has both robust and standard networks.",
        ),
        (
            [result_records.pretraining()],
            "there are no results of classification.transfer or of detectors.",
        ),
        (
            [result_records.detection(eps=3.0)],
            "runs with a standard backbone are missing. Change only MODEL.WEIGHTS.",
        ),
        ([result_records.detection()], "runs with robust backbones are missing."),
    ],
)
def test_missing_results_are_named(records, text):
    (found,) = answer(records)
    assert text in found.text and found.text.startswith("No answer yet: ")
    assert not found.verdicts and sum(found.counts.values()) == 0


def test_a_question_without_an_answer_comes_last():
    found = answer(study(levels=(3.0,)) + study(mode="full-network"))
    assert [bool(a.verdicts) for a in found] == [True, False]


def test_detectors_are_compared_by_each_metric():
    levels = {0.0: 40.0, 1.0: 45.0, 3.0: 30.0}
    records = [
        result_records.detection(eps=eps, ap=ap + seed / 10, seed=seed, masks=ap + seed / 10)
        for eps, ap in levels.items()
        for seed in range(3)
    ]
    boxes, masks = answer(records)
    assert boxes.text == (
        "On voc_2007_test, 1 of 2 robust resnet50 backbones transfers better than the standard one "
        "(eps 1: +5.00 points of box AP [4.76, 5.24]) and 1 worse "
        "(eps 3: -10.00 points of box AP [-10.24, -9.76])."
    )
    assert masks.unit == "points of mask AP" and [*masks.verdicts] == ["eps 1", "eps 3"]
    (box,) = [a for a in answer([r for r in records if r.eps != 1.0]) if "box" in a.question]
    assert box.text.startswith("On voc_2007_test, ")
    assert "the robust resnet50 backbone (eps 3) transfers worse than the standard" in box.text


def test_downscaled_images_are_a_question():
    (found,) = answer(study(downscale=12))
    assert [*found.verdicts] == ["pets at 12 pixels"] and "images of 12 pixels" in found.question


@pytest.mark.parametrize(
    "more, caution",
    [
        ({"simulated": True}, "Simulated"),
        ({"tasks": ("digits",)}, "digits: small bundled data"),
        ({"selection": "test"}, "chosen on the test images"),
    ],
)
def test_reasons_not_to_quote_an_answer(more, caution):
    (found,) = answer(study(**more))
    assert any(caution in text for text in found.cautions)
    assert not answer(study())[0].cautions
