"""Two processes with gloo on the CPU: adversarial training and evaluation."""

import json

from torch.multiprocessing import spawn

from robust_backbones.commands import attack
from tests.support.distributed_detectors import check
from tests.support.small_detectors import DIGITS, overrides, tiny_config, tiny_file


def test_two_processes_train_and_attack_as_one(tmp_path, resnet18_backbone):
    weights = tiny_file(tmp_path / "detector.pth", tiny_config())
    pairs = overrides(**{"MODEL.WEIGHTS": str(weights), "INPUT.MIN_SIZE_TEST": "64"})
    options = ["--images", "3", "--steps", "1", "--eps", "8/255", "--loss", "all", *pairs]
    one, two = (
        ["--config", str(DIGITS), "--output", str(tmp_path / name), *options]
        for name in ("one", "two")
    )
    attack.main(one)
    spawn(check, nprocs=2, args=(tmp_path, resnet18_backbone, two))
    rows = []
    for name in ("one", "two"):
        result = json.loads((tmp_path / name / "result.json").read_text())
        rows.append(result["metrics"]["attacks"])
        for row in rows[-1].values():
            del row["seconds"]
    assert rows[0] == rows[1]
