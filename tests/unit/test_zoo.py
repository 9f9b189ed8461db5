"""Test the table of published models, their names and the zoo command."""

import re
import subprocess
import sys
import time

import pytest

from robust_backbones import weights, zoo
from robust_backbones.commands.zoo import main
from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError
from tests.support import ROOT


def test_the_paper_has_67_models_and_an_unlisted_one():
    paper = [m for m in zoo.MODELS.values() if m.source.key == zoo.PAPER]
    assert [m.name for m in paper if m.note] == ["resnet50_linf_eps0"]
    listed = [m for m in paper if not m.note]
    assert len(listed) == 67
    assert sum(m.constraint == "l2" for m in listed) == 52
    assert all(40 < m.accuracy < 79 for m in listed)
    assert sum(m.sha256 is not None for m in paper) == 30


def test_every_row_is_consistent():
    for model in zoo.MODELS.values():
        assert model.name == zoo._canonical(model.name)
        assert model.source.key in (zoo.PAPER, model.name.rsplit("_", 1)[-1])
        assert bool(model.arch) != bool(model.refused)
        assert bool(model.twin or model.note or model.refused) == (
            model.eps != 0 or bool(model.note)
        )
        assert model.size in (224, 256, 288) and model.interpolation in ("bilinear", "bicubic")
        assert model.refused or model.place
        if model.twin and model.twin.startswith(zoo.SCHEME):
            assert zoo.find_model(model.twin).name != model.name
    for values in ("place", "sha256", "robustbench"):
        found = [v for m in zoo.MODELS.values() if (v := getattr(m, values))]
        assert len(set(found)) == len(found)
    assert zoo.find_model("resnet50_l2_eps3").sha256.startswith("380b14e6f9750bff")


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
    (
        "robust://convnext_base_linf_eps4.0_liu2023",
        "convnext_base_linf_eps4_liu2023.pt",
        4 / 255,
        76.02,
    ),
    ("Tian2022Deeper_DeiT-S", "tian2022deeper-deit-s.pth", None, 79.76),
]


@pytest.mark.parametrize(("name", "file", "eps", "accuracy"), NAMES)
def test_names(name, file, eps, accuracy):
    model = zoo.find_model(name)
    assert (model.file, model.eps, model.accuracy) == (file, eps, accuracy)
    assert zoo.find_model(model.name) is zoo.find_model(zoo.SCHEME + model.name) is model


def test_every_name_of_a_model_finds_it():
    for model in zoo.MODELS.values():
        plain = re.sub(r"\.(ckpt|pt|bin|safetensors)$", "", model.file)
        names = (plain, model.robustbench)
        for name in names[model.place.startswith("https://github.com") :]:
            assert not name or zoo.find_model(name) is model
        assert not model.place or zoo.known(model.place) is model
    paper = zoo.find_model("resnet50_l2_eps3")
    place = paper.place.split("@")[0]
    assert zoo.known(f"{place}/{paper.file}") is paper
    assert zoo.known(f"{place}@other/{paper.file}") is None
    clip = zoo.known("hf://chs20/fare4-clip")
    assert clip is zoo.known("hf://chs20/fare4-clip/open_clip_pytorch_model.bin")
    assert clip.file == "clip_vit_l14_fare_linf_eps4_schlarmann2024.bin"


def test_models_that_cannot_be_used_are_refused_with_the_reason():
    reason = "robust://ra_wrn_101_2_linf_eps4_peng2023 is not supported: RaWideResNet-101-2 is a"
    for refused in (weights.fetch_weights, weights.digest, zoo.find_backbone):
        with pytest.raises(UserError, match=reason):
            refused("robust://ra_wrn_101_2_linf_eps4_peng2023")


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
        zoo.find_model(name)


def test_eps_is_printed_with_its_unit():
    found = [zoo.find_model(f"resnet50_{name}") for name in ("l2_eps3", "linf_eps4")]
    shown = [show_eps(model.constraint, model.eps) for model in found]
    assert shown == ["3", "4/255"]


def listed(capsys, *options) -> list[list[str]]:
    main(["list", *options])
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def test_list(capsys):
    rows = listed(capsys, "--arch", "resnet50", "--constraint", "linf")
    assert len(rows) == 6 + 2
    row = ["resnet50_linf_eps4", "resnet50", "linf", "4/255", "63.86", "34.96", "205"]
    assert rows[3] == row
    assert len(listed(capsys)) == len(zoo.MODELS) == 113
    assert len(listed(capsys, "--arch", "timm:convnext_base")) == 1 + 2
    assert len(listed(capsys, "--arch", "clip")) == 10
    assert {row[0][:12] for row in listed(capsys, "--arch", "densenet")} == {"densenet161_"}


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("robust", "convnext_large_linf_eps4_amini2024"),
        ("clean", "convnext_large_linf_eps4_liu2023"),
        ("name", "convnext_base_cvst_linf_eps4_singh2023"),
        ("size", "convnext_tiny_cvst_linf_eps4_singh2023"),
    ],
)
def test_a_sorted_family(capsys, sort, first):
    rows = listed(capsys, "--arch", "convnext", "--sort", sort)
    assert (len(rows), rows[0][0]) == (7, first)


def test_networks_with_a_backbone(capsys):
    rows = listed(capsys, "--backbone")
    assert {"resnet18", "wide_resnet50_4", "resnext50_32x4d"} <= {row[1] for row in rows}
    assert not {row[1] for row in rows} & {"vgg16_bn", "not"}


def test_show(capsys):
    main(["show", "densenet_l2_eps3"])
    out = capsys.readouterr().out
    assert "robust://densenet161_l2_eps3" in out
    assert "66.98 %" in out
    assert "no backbone for this network" in out
    assert "recorded at first use" in out
    main(["show", "Xu2024MIMIR_Swin-B"])
    assert "no: its Swin differs from timm's" in capsys.readouterr().out


MISTAKES = [
    (["list", "--arch", "resnet9"], "architecture 'resnet9' is unknown. Did you mean resnet18"),
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
    text = (ROOT / "docs/results/model_zoo.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out, (
        "run: robust-backbones zoo table > docs/results/model_zoo.md"
    )
