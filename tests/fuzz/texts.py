"""Configs, study files, results and curves."""

import contextlib
import json
from pathlib import Path

from classification.report import page_runs, records
from classification.report.contents.build import build_sections, collect
from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from tests.fuzz.cases import Seed, json_seed
from tests.fuzz.mutations import as_json, change, nested
from tests.support import ROOT, report_parts

YAML_WORDS = (
    b"&a ",
    b"*a",
    b"!!python/object/apply:os.system [touch x]",
    b"!!python/name:os.system",
    b"!!python/object/new:os.system [x]",
    b"!!binary ",
    b"!!set ",
    b"!!timestamp ",
    b"<<: ",
    b"_BASE_: x.yaml\n",
    b"_BASE_: /etc/passwd\n",
    b"? ",
    b"- ",
    b": ",
    b"{",
    b"[",
    b"[" * 3000,
    b"- " * 3000,
    b"|\n",
    b"2024-13-45",
    b"0o7",
    b"1:2:3",
    b"\t",
    b"---\n",
    b"!!int ",
    b"!!float ",
    b"!!str ",
    b"!x ",
    b"%TAG ! x\n",
    b"null",
    b"~",
    b"{axis}",
    b"{net}",
    b"(1, 2)",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
    b'"((((("',
)
LAUGHS = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)
)
LOOP = b"a: &a\n  b: *a\n"


def _yaml_build(text: bytes):
    import yaml

    tree = yaml.safe_load(text)

    def build(rng):
        kind = rng.randrange(12)
        if kind == 0:
            return text + rng.choice((LAUGHS, LOOP))
        if kind == 1:
            return as_json(nested(rng.choice((50, 500, 5000, 20_000)), rng.randrange(2)))
        try:
            return yaml.dump(change(tree, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, RecursionError):
            return text + LOOP

    return build


_CONFIG = b"""_BASE_: base.yaml
MODEL:
  ROBUST: {ARCH: resnet18, NORM: sync}
  WEIGHTS: ""
  MASK_ON: False
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
DATASETS: {TRAIN: ("a",), CUSTOM: ["a=coco:x:y.json"]}
SOLVER: {BASE_LR: 0.02, STEPS: (60000, 80000), ADVERSARIAL: {METHOD: pgd, EPS: 4/255}}
INPUT: {MIN_SIZE_TRAIN: (640, 672)}
OUTPUT_DIR: out
SEED: 1
VERSION: 2
"""


def config_seeds(folder: Path) -> list[Seed]:
    base = ROOT / "configs" / "base" / "robust_resnet_fpn.yaml"
    (folder / "base.yaml").write_bytes(base.read_bytes())
    return [
        Seed("x.yaml", _CONFIG, _yaml_build(_CONFIG)),
        Seed("x.yaml", b"_BASE_: base.yaml\nSOLVER: {MAX_ITER: 5}\n"),
    ]


_STUDY = b"""output: out
parts:
- name: net
  command: pretrain
  common: {dataset: digits, arch: resnet18, eps: "{eps}"}
  axes: {eps: [0, 1], seed: {a: {seed: 0}, b: {seed: 1}}}
- name: fit
  command: transfer
  common: {dataset: textures, weights: "{net}/checkpoint.pt", trials: 2}
  axes: {eps: [0, 1], seed: {a: {}, b: {}}}
  skip: [{eps: 1, seed: a}]
  resources: {gpus: 0.5, cpus: 1}
"""
_SINGLE = b"""output: out
command: transfer
common: {dataset: digits, weights: "{weights}"}
axes: {weights: [a, b]}
runs: [{weights: c, mode: full-network}]
only: [{weights: [a, b]}]
"""


def study_seeds(folder: Path) -> list[Seed]:
    return [Seed("x.yaml", text, _yaml_build(text)) for text in (_STUDY, _SINGLE)]


def result_seeds(folder: Path) -> list[Seed]:
    report_parts.result(folder)
    made = json.loads((folder / "result.json").read_bytes())
    report_parts.interpreted(folder)
    figure = json.loads((folder / "result.json").read_bytes())
    detector = {
        "MODEL": {"WEIGHTS": "robust://resnet50_l2_eps3", "ROBUST": {"ARCH": "resnet50"}},
        "DATASETS": {"TEST": ["voc_2007_test"]},
        "SEED": 0,
    }
    pretrain = {"dataset": "digits", "arch": "resnet18", "constraint": "l2", "eps": 1}
    trees = [
        made,
        made,
        figure,
        made
        | {
            "kind": "detection",
            "settings": detector,
            "metrics": {"voc_2007_test": {"bbox": {"AP": 50.0}, "segm": {"AP": None}}},
        },
        made | {"kind": "pretrain", "metrics": {"clean_top1": 90.0}, "settings": pretrain},
        made
        | {
            "kind": "robustness",
            "metrics": {"clean_top1": 90.0},
            "settings": {"dataset": "digits", "weights": "robust://resnet18_l2_eps3"},
        },
    ]
    rows = {"labels": {"eps": "1"}}
    return [
        *(json_seed("result.json", tree) for tree in trees),
        json_seed("run.json", rows),
        Seed("per_class.csv", (folder / "per_class.csv").read_bytes()),
    ]


def read_results(folder: Path, path: Path) -> None:
    found, problems = records.read([folder])
    sections = build_sections(collect(found))
    json.dumps([page_runs.collect_runs(found).json()], allow_nan=False)
    assert all(section.columns for section in sections)
    with contextlib.suppress(UserError):
        results.finished(folder / "result.json", {"dataset": "x"})
    if problems:
        raise UserError(" ".join(problems))


def metrics_seeds(folder: Path) -> list[Seed]:
    rows = [{"iteration": i, "total_loss": 1.0, "bbox/AP": 2.0, "lr": 0.1} for i in (19, 39, 59)]
    return [
        Seed(
            "metrics.json",
            b"\n".join(map(as_json, rows)),
            lambda rng: b"\n".join(map(as_json, change(rows, rng))),
        )
    ]
