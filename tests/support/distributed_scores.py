"""Run as one of several processes: each evaluates its share of the digit scenes, both layouts.

python tests/support/distributed_scores.py RANK WORLD_SIZE FILE

Prints the results on rank 0 and {} on the others.
"""

import json
import sys

import torch.distributed as dist

from tests.support.small_detections import evaluate, outputs  # isort: skip  (before Detectron2)
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from robust_backbones.detection.evaluation import build_evaluator


def main(rank: int, world_size: int, file: str) -> None:
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=world_size)
    found = {}
    for name in ("digit_scenes_val", "digit_scenes_voc_val"):
        inputs, predicted = outputs(DatasetCatalog.get(name), 10)
        share = slice(rank * 70, (rank + 1) * 70 if rank + 1 < world_size else None)
        evaluator = build_evaluator(get_cfg(), name, f"{file}_{name}")
        found[name] = evaluate(evaluator, inputs[share], predicted[share])
    print(json.dumps(found))
    dist.barrier()  # who leaves early takes the others' connections along
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
