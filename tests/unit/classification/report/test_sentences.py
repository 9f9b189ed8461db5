"""Sentences about verdicts: they state what the verdicts support, with estimates and advice."""

import pytest

from classification.report.sentences import Names, sentence
from classification.report.trial_variance import VariancePart
from classification.report.verdicts import Estimate, Missing, Over, judge

BOTH = Over.TRIALS | Over.IMAGES
NAMES = Names("the robust resnet50 (eps 3)")
DETECTORS = Names("", unit="points of box AP", scope="on cells", several="robust backbones")


def verdict(mean, error=0.5, **more):
    return judge(Estimate(mean, BOTH, (3, 3), VariancePart(error**2, 10.0)), **more)


BETTER, WORSE, SAME = verdict(1.8), verdict(-3.0), verdict(0.1, 0.2)
OPEN, SINGLE = verdict(0.8), judge(Estimate(9.0, missing=Missing.TRIALS))
BEST = "The robust resnet50 (eps 3) transfers"


@pytest.mark.parametrize(
    "verdicts, text",
    [
        (
            {"pets": BETTER},
            "On pets, the robust resnet50 (eps 3) transfers better than the standard one: "
            "+1.8 points [0.6, 3.0].",
        ),
        (
            {"pets": WORSE},
            "On pets, the robust resnet50 (eps 3) transfers worse than the standard one: "
            "-3.0 points [-4.2, -1.8].",
        ),
        (
            {"pets": SAME},
            "On pets, the robust resnet50 (eps 3) transfers as well as the standard one: "
            "+0.1 points [-0.4, 0.6], within 1 point.",
        ),
        (
            {"pets": OPEN},
            "On pets, the results cannot distinguish the robust resnet50 (eps 3) from the standard "
            "one: +0.8 points [-0.4, 2.0]. 5 to 25 trials of each network would.",
        ),
        (
            {"pets": SINGLE},
            "On pets, the results cannot distinguish the robust resnet50 (eps 3) from the standard "
            "one. This needs 3 to 10 trials of each network.",
        ),
        (
            {"pets": OPEN, "dtd": verdict(1.1, 0.6)},
            "On pets and dtd, the results cannot distinguish the robust resnet50 (eps 3) from the "
            "standard one (pets: +0.8 points [-0.4, 2.0]; dtd: +1.1 [-0.3, 2.5]). 5 to 25 trials "
            "of each network on pets and 5 to 35 trials of each network on dtd would.",
        ),
        (
            dict.fromkeys("abcd", OPEN),
            "On all 4 tasks, the results cannot distinguish the robust resnet50 (eps 3) from the "
            "standard one (+0.8 points). 5 to 25 trials of each network would.",
        ),
        (
            {"pets": BETTER, "dtd": OPEN, "cars": OPEN},
            f"{BEST} better than the standard one on 1 of 3 tasks (pets: +1.8 points [0.6, 3.0]); "
            "dtd and cars are inconclusive. 5 to 25 trials of each network would decide.",
        ),
        (
            {"pets": SAME, "dtd": SAME, "cars": OPEN},
            f"{BEST} as well as the standard one (within 1 point) on 2 of 3 tasks (pets: +0.1 "
            "points [-0.4, 0.6]; dtd: +0.1 [-0.4, 0.6]); cars is inconclusive. 5 to 25 trials of "
            "each network would decide.",
        ),
        (
            {"pets": BETTER, "dtd": verdict(4.2), "cars": WORSE, "food": SAME},
            f"{BEST} better than the standard one on 2 of 4 tasks (pets: +1.8 points [0.6, 3.0]; "
            "dtd: +4.2 [3.0, 5.4]), worse on 1 (cars: -3.0 points [-4.2, -1.8]), and equally well "
            "(within 1 point) on 1 (food: +0.1 points [-0.4, 0.6]).",
        ),
        (
            {"a": WORSE, "b": WORSE, "c": WORSE, "d": verdict(-5.0)},
            f"{BEST} worse than the standard one on all 4 tasks (-5.0 to -3.0 points).",
        ),
        (
            {"a": BETTER} | dict.fromkeys("bcde", OPEN),
            f"{BEST} better than the standard one on 1 of 5 tasks (a: +1.8 points [0.6, 3.0]); "
            "4 tasks are inconclusive. 5 to 25 trials of each network would decide.",
        ),
    ],
)
def test_a_sentence_states_what_verdicts_support(verdicts, text):
    assert sentence(NAMES, verdicts) == text


@pytest.mark.parametrize(
    "verdicts, text",
    [
        (
            {"eps 1": BETTER, "eps 3": BETTER},
            "On cells, both robust backbones transfer better than the standard one (eps 1: +1.8 "
            "points of box AP [0.6, 3.0]; eps 3: +1.8 [0.6, 3.0]).",
        ),
        (
            {"eps 1": BETTER, "eps 3": WORSE, "eps 5": OPEN},
            "On cells, 1 of 3 robust backbones transfers better than the standard one (eps 1: +1.8 "
            "points of box AP [0.6, 3.0]) and 1 worse (eps 3: -3.0 points of box AP [-4.2, -1.8]); "
            "eps 5 is inconclusive. 5 to 25 trials of each network would decide.",
        ),
        (
            {"eps 1": OPEN, "eps 3": verdict(1.1, 0.6)},
            "On cells, the results cannot distinguish the 2 robust backbones from the standard one "
            "(eps 1: +0.8 points of box AP [-0.4, 2.0]; eps 3: +1.1 [-0.3, 2.5]). 5 to 25 trials "
            "of each network for eps 1 and 5 to 35 trials of each network for eps 3 would.",
        ),
    ],
)
def test_verdicts_may_be_about_several_networks(verdicts, text):
    assert sentence(DETECTORS, verdicts) == text


def test_the_margin_and_the_scope_are_stated():
    names = Names("the robust vit", "the best of 2 standard ones", scope="under attack")
    same = {"pets": verdict(0.1, 0.2, margin=2.5)}
    assert sentence(names, same) == (
        "On pets under attack, the robust vit transfers as well as the best of 2 standard ones: "
        "+0.1 points [-0.4, 0.6], within 2.5 points."
    )
    assert sentence(names, same | {"dtd": SAME}).startswith("Under attack, the robust vit ")
