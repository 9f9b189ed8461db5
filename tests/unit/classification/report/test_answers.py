"""Answers of a report: the sentence follows the verdicts, and says which results are missing."""

import pytest

from classification.report.answers import Answer, find_answers, sentence
from classification.report.contents.build import collect
from classification.report.trial_variance import VariancePart
from classification.report.verdicts import Estimate, Missing, Outcome, Over, judge
from tests.support import result_records

BOTH = Over.TRIALS | Over.IMAGES
SUBJECT = "features of this robust resnet50"


def verdict(mean, error=0.5, **more):
    return judge(Estimate(mean, BOTH, (3, 3), VariancePart(error**2, 10.0), **more))


BETTER, WORSE, SAME = verdict(1.8), verdict(-3.0), verdict(0.1, 0.2)
OPEN, SINGLE = verdict(0.8), judge(Estimate(9.0, missing=Missing.TRIALS))


@pytest.mark.parametrize(
    "verdicts, text",
    [
        (
            {"pets": BETTER},
            "Features of this robust resnet50 gain 1.8 points [0.6, 3.0] over standard ones "
            "on pets.",
        ),
        (
            {"pets": WORSE},
            "Features of this robust resnet50 lose 3.0 points [1.8, 4.2] against standard "
            "ones on pets.",
        ),
        (
            {"pets": SAME},
            "Features of this robust resnet50 differ from standard ones by at most 1 point "
            "on pets (0.1 points [-0.4, 0.6]).",
        ),
        (
            {"pets": OPEN},
            "Cannot tell yet whether features of this robust resnet50 gain or lose against "
            "standard ones on pets (0.8 points [-0.4, 2.0]): 5 to 25 trials of each network would "
            "tell.",
        ),
        (
            {"pets": SINGLE},
            "Cannot tell yet whether features of this robust resnet50 gain or lose against "
            "standard ones on pets: this needs 3 to 10 trials of each network.",
        ),
        (
            {"pets": OPEN, "dtd": verdict(1.1, 0.6)},
            "Cannot tell yet whether features of this robust resnet50 gain or lose against "
            "standard ones on pets and dtd: 5 to 25 trials of each network on pets and 5 to 35 "
            "trials of each network on dtd would tell.",
        ),
        (
            {"pets": BETTER, "dtd": OPEN, "cars": OPEN},
            "Features of this robust resnet50 gain 1.8 points [0.6, 3.0] over standard ones "
            "on pets and lose on none; the results cannot tell yet on dtd and cars (5 to 25 "
            "trials of each network would).",
        ),
        (
            {"pets": BETTER, "dtd": verdict(4.2), "cars": WORSE, "food": SAME},
            "Features of this robust resnet50 gain 1.8 to 4.2 points over standard ones on "
            "pets and dtd, lose 3.0 points [1.8, 4.2] on cars and differ by at most 1 point on "
            "food.",
        ),
        (
            {"pets": WORSE, "dtd": WORSE, "cars": WORSE, "food": WORSE},
            "Features of this robust resnet50 lose 3.0 points against standard ones on "
            "all 4 tasks and gain on none.",
        ),
    ],
)
def test_a_sentence_says_what_verdicts_support(verdicts, text):
    assert sentence(SUBJECT, "standard ones", verdicts) == text


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
    assert "networks fine-tuned from this robust resnet18 (eps 3)" in found[3].text.lower()


def test_the_verdicts_are_those_of_the_tables():
    results = collect(study(("pets", "dtd"), (0.0, 1.0, 3.0)))
    (found,) = find_answers(results)
    contests = results.contests[""]
    assert {t: v.p for t, v in found.verdicts.items()} == {
        t: c.verdict.p for (_, t), c in contests.items()
    }
    assert "the best of these 2 robust resnet18s (eps 1 to 3)" in found.text


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
        "Detectors on 2 robust resnet50 backbones gain 5.00 points of box AP [4.76, 5.24] over "
        "standard ones on eps 1 and lose 10.00 points of box AP [9.76, 10.24] on eps 3."
    )
    assert masks.unit == "points of mask AP" and [*masks.verdicts] == ["eps 1", "eps 3"]
    (box,) = [a for a in answer([r for r in records if r.eps != 1.0]) if "box" in a.question]
    assert "this robust resnet50 backbone (eps 3)" in box.text and "on voc_2007_test" in box.text


def test_downscaled_images_are_a_question():
    (found,) = answer(study(downscale=12))
    assert [*found.verdicts] == ["pets at 12 pixels"] and "images of 12 pixels" in found.question


@pytest.mark.parametrize(
    "more, caution",
    [
        ({"simulated": True}, "Simulated"),
        ({"tasks": ("digits",)}, "digits: small embedded data"),
        ({"selection": "test"}, "chosen on the test images"),
    ],
)
def test_reasons_not_to_quote_an_answer(more, caution):
    (found,) = answer(study(**more))
    assert any(caution in text for text in found.cautions)
    assert not answer(study())[0].cautions
