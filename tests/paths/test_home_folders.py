"""`~` and environment variables in every option, file and variable that takes a path."""

import re
from pathlib import Path

import pytest

from classification.datasets import __main__ as datasets
from classification.datasets import make_shards
from classification.datasets.open import open_split
from classification.datasets.specs import DATA_VARIABLE, locate
from classification.interpret.options import parser as interpret
from classification.pretrain.options import parser as pretrain
from classification.report.__main__ import _parser as report
from classification.robustness_eval.options import parser as robustness_eval
from classification.study.file import read_study
from classification.study.options import parser as study
from classification.transfer.options import parser as transfer
from robust_backbones import weights
from robust_backbones.commands import (
    attack,
    check_data,
    convert,
    corrupt,
    demo,
    evaluate,
    train,
    visualize,
)
from robust_backbones.commands.check import command as check_command
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import cache_dir
from robust_backbones.core.paths import expand
from robust_backbones.core.resources import require_config
from tests.support import ROOT
from tests.support.small_data import write_tree


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home folder, which `$PLACE` also names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    return tmp_path


def test_expand(home):
    cases = {
        "~/x": f"{home}/x",
        "$PLACE/x": f"{home}/x",
        "${PLACE}/x-{000..003}.tar": f"{home}/x-{{000..003}}.tar",
        "~/a-{0..1}.tar;~/b.tar": f"{home}/a-{{0..1}}.tar;{home}/b.tar",
        "pipe:cat ~/x $PLACE": "pipe:cat ~/x $PLACE",
        "s3://bucket/~x": "s3://bucket/~x",
        "robust://resnet50_l2_eps3": "robust://resnet50_l2_eps3",
        "a~b/$UNKNOWN": "a~b/$UNKNOWN",
        "": "",
    }
    assert {text: expand(text) for text in cases} == cases
    assert expand(Path("~/x")) == f"{home}/x"


def of(parser):
    return lambda argv: parser("").parse_args(argv)


COMMANDS = {  # parse function -> command line with H for the folder
    "datasets check": (datasets.parse, "check folder --data H/d --output H/r"),
    "datasets fetch": (datasets.parse, "fetch dtd --data H/d"),
    "make-shards": (make_shards.parse, "H/in H/out"),
    "interpret": (of(interpret), "--weights H/a H/b --eval-weights H/c --data H/d --output H/o"),
    "pretrain": (of(pretrain), "--data H/d --output H/o"),
    "transfer": (of(transfer), "--weights H/w --dataset dtd --data H/d --output H/o"),
    "robustness-eval": (of(robustness_eval), "--weights H/w --dataset dtd --data H/d --output H/o"),
    "study": (of(study), "plan H/s.yaml"),
    "report": (lambda argv: report().parse_args(argv), "H/a H/b --output H/o --study H/s.yaml"),
    "train": (train.parse, "--config H/c.yaml"),
    "attack": (attack.parse, "--config H/c.yaml --output H/o --eps 4/255"),
    "corrupt": (corrupt.parse, "--config H/c.yaml --output H/o"),
    "check": (check_command.parse, "--online --weights H/w --imagenet H/i --output H/o"),
    "check-data": (check_data.parse, "voc_2007_val --csv H/r.csv"),
    "convert": (convert.parse, "H/a.pt H/b.pth"),
    "demo": (demo.parse, "--output H/o"),
    "evaluate annotations": (evaluate.parse, "H/p --annotations H/a --csv H/c --output H/o"),
    "visualize": (
        visualize.parse,
        "--output H/o --config H/c --compare H/d.yaml=H/w --dataset voc_2007_val",
    ),
    "visualize predictions": (visualize.parse, "--output H/o --predictions H/p --dataset x"),
    "visualize curves": (visualize.parse, "--output H/o --curves H/a H/b"),
}


def flat(value):
    return [x for v in value for x in flat(v)] if isinstance(value, list | tuple) else [str(value)]


@pytest.mark.parametrize("start", ["~", "$PLACE"])
@pytest.mark.parametrize("parse, line", COMMANDS.values(), ids=COMMANDS)
def test_options(home, parse, line, start):
    found = vars(parse(line.replace("H", start).split()))
    texts = [text for value in found.values() for text in flat(value)]
    expected = re.findall(r"H(/[\w.]+)", line)
    assert sorted(t for t in texts if t.startswith(f"{home}/")) == sorted(
        f"{home}{end}" for end in expected
    )
    assert not any(start in text for text in texts)


def test_every_option_with_a_path_replaces_it():
    """Options have the types `path` and `location`, never `Path`."""
    folders = (ROOT / "classification", ROOT / "robust_backbones")
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert not [str(p) for p in sources if "type=Path" in p.read_text(encoding="utf-8")]


def test_data(home, monkeypatch):
    write_tree(home / "data")
    assert len(open_split("folder", "test", "~/data")) == 12
    monkeypatch.setenv(DATA_VARIABLE, "~/data")
    assert locate("folder") == f"{home}/data"
    assert locate("folder", Path("~/data")) == home / "data"


def test_variables(home, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", "$PLACE/cache")
    assert cache_dir() == home / "cache"


def test_weights_and_configs(home):
    (home / "w.pth").write_bytes(b"weights")
    (home / "c.yaml").write_text("")
    assert weights.fetch_weights("~/w.pth") == home / "w.pth"
    assert require_config("$PLACE/c.yaml") == home / "c.yaml"
    with pytest.raises(UserError, match=f"file '{home}/x.yaml' does not exist|'~/x.yaml' does not"):
        require_config("~/x.yaml")


def test_studies(home):
    text = "output: ~/out\ncommon: {weights: ~/w.pth, dataset: digits}\n"
    (home / "s.yaml").write_text(text)
    (home / "w.pth").write_bytes(b"one")
    (run,) = read_study("~/s.yaml")
    assert run.folder.is_relative_to(home / "out")
    (home / "w.pth").write_bytes(b"other")  # the content of the file is a part of the run
    assert read_study("$PLACE/s.yaml")[0].id != run.id


def test_detector_configs(home):
    pytest.importorskip("detectron2")
    from robust_backbones.detection.config import dataset_config, load_config
    from robust_backbones.detection.data.custom import parse_dataset

    (home / "c.yaml").write_text(
        "_BASE_: ~/base.yaml\nMODEL: {WEIGHTS: ~/w.pth}\nOUTPUT_DIR: $PLACE/out\n"
        "DATASETS: {TRAIN: ['x=voc:~/voc:train']}\n"
    )
    (home / "base.yaml").write_text("SEED: 7\n")
    cfg = load_config("~/c.yaml")
    assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == (f"{home}/w.pth", f"{home}/out")
    assert cfg.SEED == 7 and cfg.DATASETS.TRAIN == ("x",)
    cfg = load_config("~/c.yaml", ["MODEL.WEIGHTS", "~/v.pth", "OUTPUT_DIR", "~/o"])
    assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == (f"{home}/v.pth", f"{home}/o")
    assert dataset_config("", ["MODEL.WEIGHTS", "~/v.pth"]).MODEL.WEIGHTS == f"{home}/v.pth"
    source = parse_dataset("x=coco:~/images:$PLACE/a.json")
    assert (source.folder, source.listing) == (f"{home}/images", f"{home}/a.json")
