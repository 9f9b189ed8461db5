"""Start processes that use one empty cache for the same files at the same time.

python shared_cache.py URL FOLDER PROCESSES

Prints the results of each process, and how often each function ran.
"""

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

import robust_backbones.detection  # noqa: F401  (before Detectron2)

# isort: split
from classification import models
from classification.datasets.open import open_split
from classification.transfer import features
from robust_backbones import weights
from robust_backbones.detection import path_handler
from robust_backbones.detection.data import digit_scenes
from tests.support.networks import random_network

NAME = "robust://resnet18_linf_eps8"  # has no published digest, so a test file can replace it


def noted(module, name: str, log: Path) -> None:
    """Make a function log a line for every call."""
    function = getattr(module, name)

    def watched(*args, **kwargs):
        with open(log, "a") as file:
            file.write(f"{name}\n")
        return function(*args, **kwargs)

    setattr(module, name, watched)


def ask(url: str, inputs: tuple) -> dict:
    """Results of one process."""
    found = features.extract(*inputs)
    return {
        "weights": weights.digest(weights.fetch_weights(url)),
        "backbone": weights.digest(path_handler.converted(NAME)),
        "features": hashlib.sha256(found.part(0, len(found)).numpy().tobytes()).hexdigest(),
        "scenes": str(digit_scenes.ensure()),
    }


def main(url: str, folder: Path, processes: int) -> None:
    for module, name in (
        (features, "_compute"),
        (path_handler, "_convert"),
        (digit_scenes, "_write"),
    ):
        noted(module, name, folder / "made.txt")
    digit_scenes.SPLITS = {"train": 2, "val": 2}
    model = models.Classifier.build("shufflenet_v2_x1_0", 10)
    model.net.load_state_dict(random_network("shufflenet_v2_x1_0").state_dict())
    inputs = model, open_split("digits", "test", limit=30)
    gate, opened = os.pipe()
    children = []
    for number in range(processes):
        if not (pid := os.fork()):
            os.close(opened)
            os.read(gate, 1)  # returns when the parent closes its end
            try:
                (folder / f"{number}.json").write_text(json.dumps(ask(url, inputs)))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    os.close(opened)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    print(
        json.dumps(
            {
                "codes": codes,
                "found": found,
                "made": sorted((folder / "made.txt").read_text().split()),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
