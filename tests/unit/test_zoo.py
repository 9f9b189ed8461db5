"""Test the table of published models, their names and the zoo command."""

import subprocess
import sys
import time

import pytest

from robust_backbones import zoo
from robust_backbones.commands.zoo import main
from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError
from tests.support import ROOT


def test_the_table_is_complete():
    listed = [m for m in zoo.MODELS.values() if m.listed]
    assert len(listed) == 67
    assert sum(m.constraint == "l2" for m in listed) == 52
    assert sum(m.constraint == "linf" for m in listed) == 15
    assert [m.file for m in zoo.MODELS.values() if not m.listed] == ["resnet50_linf_eps0.ckpt"]
    assert all(40 < m.accuracy < 79 for m in listed)
    assert len({m.file for m in zoo.MODELS.values()}) == len(zoo.MODELS) == 68


def test_every_digest_belongs_to_a_model():
    digests = zoo._digests()
    assert len(digests) == len(set(digests.values())) == 30
    assert set(digests) <= {m.file for m in zoo.MODELS.values()}
    assert sum(m.sha256 is not None for m in zoo.MODELS.values()) == 30
    assert zoo.find("resnet50_l2_eps3").sha256.startswith("380b14e6f9750bff")


# name as written, file, eps, accuracy
NAMES = [
    ("resnet50_l2_eps3", "resnet50_l2_eps3.ckpt", 3.0, 62.83),
    ("robust://resnet50_l2_eps3.0", "resnet50_l2_eps3.ckpt", 3.0, 62.83),
    ("resnet50_linf_eps4", "resnet50_linf_eps4.0.ckpt", 4 / 255, 63.86),
    ("resnet50_linf_eps4.0", "resnet50_linf_eps4.0.ckpt", 4 / 255, 63.86),
    ("resnet50_linf_eps0.5", "resnet50_linf_eps0.5.ckpt", 0.5 / 255, 73.73),
    ("resnet50_linf_eps0", "resnet50_linf_eps0.ckpt", 0.0, None),
    ("wide_resnet50_4_l2_eps0.05", "wide_resnet50_4_l2_eps0.05.ckpt", 0.05, 77.77),
    ("densenet161_l2_eps3", "densenet_l2_eps3.ckpt", 3.0, 66.98),
    ("densenet_l2_eps0", "densenet_l2_eps0.ckpt", 0.0, 77.37),
    ("mobilenet_v2_l2_eps0", "mobilenet_l2_eps0.ckpt", 0.0, 65.26),
    ("mnasnet_l2_eps3", "mnasnet_l2_eps3.ckpt", 3.0, 41.83),
    ("shufflenet_v2_x1_0_l2_eps3", "shufflenet_l2_eps3.ckpt", 3.0, 43.32),
]


@pytest.mark.parametrize(("name", "file", "eps", "accuracy"), NAMES)
def test_names(name, file, eps, accuracy):
    model = zoo.find(name)
    assert (model.file, model.eps, model.accuracy) == (file, eps, accuracy)
    assert zoo.find(model.name) is zoo.find(zoo.SCHEME + model.name) is model


def test_every_file_name_is_a_valid_name():
    for model in zoo.MODELS.values():
        assert zoo.find(model.file.removesuffix(".ckpt")) is model


WRONG = [
    ("resnet50_l2_eps33", "Did you mean resnet50_l2_eps3"),
    ("resnet50_l2_3", "Did you mean resnet50_l2_eps3"),
    ("resnet50_linf_eps4/255", "Did you mean resnet50_linf_eps4"),
    ("robust://wide_resnet50_4_linf_eps4", "named 'wide_resnet50_4_linf_eps4'. Did you mean wide"),
    ("", "named ''. List all names with: robust-backbones zoo list"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_wrong_names_suggest_similar_names(name, message):
    with pytest.raises(UserError, match=message):
        zoo.find(name)


def test_eps_is_printed_with_its_unit():
    found = [zoo.find(f"resnet50_{name}") for name in ("l2_eps3", "linf_eps4")]
    shown = [show_eps(model.constraint, model.eps) for model in found]
    assert shown == ["3", "4/255"]


def test_list(capsys):
    main(["list", "--arch", "resnet50", "--constraint", "linf"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 6
    assert lines[4].split() == ["resnet50_linf_eps4", "resnet50", "linf", "4/255", "63.86", "205"]
    main(["list"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 68


def test_show(capsys):
    main(["show", "densenet_l2_eps3"])
    out = capsys.readouterr().out
    assert "robust://densenet161_l2_eps3" in out
    assert "66.98 %" in out
    assert "no, only ResNets can be converted" in out
    assert "recorded at first use" in out


MISTAKES = [
    (["list", "--arch", "resnet9"], "--arch resnet9: unknown architecture. Did you mean resnet18"),
    (["list", "--constraint", "l1"], "argument --constraint: invalid choice: 'l1'"),
    (["show", "resnet50_l2_eps2"], "Did you mean"),
    (
        ["fetch", "resnet50_l2_eps3", "resnet50_l2_eps2"],
        "file 'resnet50_l2_eps2' does not exist, and no",
    ),
    (
        ["verify", "resnet50_l2_eps3"],
        "is not in the cache. Fetch it with: robust-backbones zoo fetch",
    ),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_errors_are_one_line_and_exit_with_2(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_help_is_fast():
    started = time.perf_counter()
    call = [sys.executable, "-m", "robust_backbones", "zoo", "--help"]
    out = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - started < 1.5
    assert all(word in out for word in ("list", "show", "fetch", "verify"))


def test_the_page_is_up_to_date(capsys):
    main(["table"])
    text = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out, "run: robust-backbones zoo table > docs/model_zoo.md"
