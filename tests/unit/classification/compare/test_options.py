"""Options of compare: kinds of data, names of folders, and errors before anything is read."""

import pytest

from classification.compare.options import WEIGHTS, make_request, name_of, parser
from classification.compare.settings import CLASSIFICATION, DETECTION
from classification.datasets.specs import DATA_VARIABLE
from robust_backbones.core.errors import UserError


def request(*arguments):
    return make_request(parser("").parse_args(arguments), arguments)


def test_defaults(tmp_path):
    found = request(str(tmp_path), "--plan")
    assert found.settings.kind == CLASSIFICATION and found.settings.weights == WEIGHTS
    assert (found.settings.trials, found.settings.mode) == (3, "fixed-feature")
    assert found.output.as_posix() == f"output/compare/{tmp_path.name}"
    assert found.plan and "--plan" not in found.command


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [
        (["digits"], CLASSIFICATION, "digits"),
        (["digits", "textures"], CLASSIFICATION, "digits+textures"),
        (["coco:images:train.json"], DETECTION, "images"),
        (["cells=voc:/data/BCCD:train"], DETECTION, "cells"),
        (["yolo:/d/birds/data.yaml"], DETECTION, "birds"),
        (["voc_2012_train", "--test", "voc_2012_val"], DETECTION, "voc_2012_train"),
    ],
)
def test_kinds_and_names(data, kind, name):
    assert request(*data).settings.kind == kind
    assert name_of(tuple(data[:1] if "--test" in data else data)) == name


def test_a_trailing_slash_or_a_file_ending_does_not_change_the_name(tmp_path):
    assert name_of((f"{tmp_path}/",)) == tmp_path.name
    assert name_of((f"{tmp_path}/labels.csv",)) == "labels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digts"], "Did you mean digits"),
        (["missing/folder"], "no file or folder has this path"),
        (["flowers"], "--data"),
        (["digits", "coco:a:b.json"], "separate commands"),
        ([".", "--test", "voc:a:val"], "--test voc:a:val: DATA . is an image folder"),
        (["digits", "--plan", "--more"], "exclude each other"),
    ],
)
def test_user_errors(arguments, message, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(UserError, match=message):
        request(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coco:a:b.json", "--limit", "9"], "--limit has no effect without an image folder"),
        (["digits", "--iterations", "9"], "--iterations has no effect without DATA as coco"),
        (["digits", "--set", "epochs"], "is not OPTION=VALUE"),
        (["digits", "--trials", "0"], "--trials"),
    ],
)
def test_parser_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        request(*arguments)
    assert message in capsys.readouterr().err


def test_options_of_all_runs_are_spelled_as_in_help():
    found = request("digits", "--set", "batch_size=8", "epochs=2").settings
    assert found.changes == (("batch-size", "8"), ("epochs", "2"))
