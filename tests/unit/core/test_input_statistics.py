"""Input statistics: presets, the choice between sources, and the options."""

import pytest
import timm.data.constants as timm_numbers
from torchvision.models import ResNet18_Weights

from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import (
    IMAGENET,
    PRESETS,
    InputStatistics,
    add_options,
    announce,
    choose,
    given,
)

OWN = InputStatistics((0.1, 0.2, 0.3), (0.4, 0.5, 1 / 255))
CIFAR = PRESETS["cifar10"]


def test_presets_are_those_of_timm_torchvision_and_the_robustness_library(library):
    transforms = ResNet18_Weights.IMAGENET1K_V1.transforms()
    truth = {
        "imagenet": (transforms.mean, transforms.std),
        "half": (timm_numbers.IMAGENET_INCEPTION_MEAN, timm_numbers.IMAGENET_INCEPTION_STD),
        "clip": (timm_numbers.OPENAI_CLIP_MEAN, timm_numbers.OPENAI_CLIP_STD),
    }
    for name, dataset in {
        "cifar10": library.datasets.CIFAR("/nowhere"),
        "restricted_imagenet": library.datasets.RestrictedImageNet("/nowhere"),
    }.items():
        truth[name] = (dataset.mean.tolist(), dataset.std.tolist())
    for name, (mean, std) in truth.items():
        assert PRESETS[name].mean == pytest.approx(tuple(mean)), name
        assert PRESETS[name].std == pytest.approx(tuple(std)), name


# In the file, given -> used; None for an error.
CHOICES = [
    (None, None, IMAGENET.of("assumed")),
    (None, OWN, OWN),
    (None, CIFAR.of("zoo"), CIFAR.of("zoo")),
    (OWN.of("file"), None, OWN.of("file")),
    (OWN.of("file"), OWN, OWN.of("file")),
    (CIFAR.of("file"), InputStatistics((0.49139968, 0.4822, 0.4465), CIFAR.std), CIFAR.of("file")),
    (CIFAR.of("file"), IMAGENET, None),
    (CIFAR.of("file"), InputStatistics(CIFAR.mean, (0.247, 0.2435, 0.2616)), None),
    (CIFAR.of("file"), IMAGENET.of("zoo"), None),
    # What a conversion assumed is no statement of the file.
    (IMAGENET.of("assumed"), None, IMAGENET.of("assumed")),
    (IMAGENET.of("assumed"), CIFAR, CIFAR),
]


@pytest.mark.parametrize(("stated", "options", "used"), CHOICES)
def test_the_choice_between_the_file_and_the_user(stated, options, used):
    if used:
        assert choose(stated, options, "w.pth") == used
        return
    words = "w.pth: the file states mean 0.4914 .*, but the (options state|published model has) m"
    with pytest.raises(UserError, match=words):
        choose(stated, options, "w.pth")


def parse(*words):
    parser = Parser(prog="x")
    add_options(parser.add_argument)
    return given(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", None),
        ("--statistics none", InputStatistics((0, 0, 0), (1, 1, 1))),
        ("--mean 0.1 0.2 0.3 --std 0.4 0.5 1/255", OWN),
        ("--mean 0.1 0.2 0.3", "--mean requires --std. Give both, or --statistics PRESET"),
        ("--std 0.1 0.2 0.3", "--std requires --mean"),
        ("--mean 0 0 0 --std 1 1 1 --statistics none", "--statistics none: not allowed"),
    ],
)
def test_options(words, found):
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            parse(*words.split())
    else:
        assert parse(*words.split()) == found


@pytest.mark.parametrize(
    "words", ["--mean 0 0", "--mean 0 0 124", "--std 0 1 1", "--std 1 1 nan", "--statistics cifar"]
)
def test_invalid_options(words):
    with pytest.raises(SystemExit, match="2"):
        parse(*words.split())


@pytest.mark.parametrize("statistics", [*PRESETS.values(), OWN])
def test_options_reproduce_the_statistics(statistics):
    assert parse(*statistics.options.split()).equal(statistics)


def test_one_line_says_what_is_not_in_the_file(capsys):
    for source in ("file", "given", "zoo", "assumed"):
        announce(IMAGENET.of(source), "w.pth")
    out, err = capsys.readouterr()
    line = "mean and std are not stated in w.pth"
    fix = "Give --mean and --std, or --statistics PRESET."
    assert err == f"warning: {line}: ImageNet's are assumed. {fix}\n"
    numbers = "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    sources = ("given by the user", "from the table of published models")
    assert out.splitlines() == [f"{line}: {numbers} ({source})." for source in sources]


def test_numbers_for_detectron2():
    assert IMAGENET.pixels == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
