"""Checks that run in each of two processes. test_distributed.py starts them."""

import shutil
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.engine import defaults
from detectron2.utils import comm

from robust_backbones.commands import attack
from robust_backbones.core.eps import parse_number
from robust_backbones.detection.training.trainer import Trainer
from tests.support.detector_runs import small

EPS = "4/255"
FREE = {
    "SOLVER.ADVERSARIAL.METHOD": "free",
    "SOLVER.ADVERSARIAL.REPLAYS": "3",
    "SOLVER.ADVERSARIAL.EPS": EPS,
    "SOLVER.MAX_ITER": "5",
    "SOLVER.CHECKPOINT_PERIOD": "2",  # rounded up to 3
    "DATASETS.TEST": "()",
}


def check(rank: int, folder: Path, backbone: Path, attack_arguments: list[str]) -> None:
    """Join a group of two processes, resume adversarial training, and attack a detector."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    # Detectron2 supports groups on GPUs only.
    comm._LOCAL_PROCESS_GROUP = dist.group.WORLD
    defaults.create_ddp_model = partial(defaults.create_ddp_model, device_ids=None)
    resume_training(folder, backbone)
    attack.main(attack_arguments)
    dist.barrier()  # a process that leaves early takes the connections of the other along
    dist.destroy_process_group()


def resume_training(folder: Path, backbone: Path) -> None:
    """Resume a run. Its weights must equal the weights of a run without interruption."""
    whole = trained(folder / "whole", backbone)
    rest = folder / "rest"
    if comm.is_main_process():
        rest.mkdir()
        shutil.copy(folder / "whole/model_0000002.pth", rest)
        (rest / "last_checkpoint").write_text("model_0000002.pth")
    comm.synchronize()
    again = trained(rest, backbone, resume=True)
    assert again.start_iter == 3
    found, wanted = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    step = again._trainer
    for image, item in zip(step.adversary.images[0], step._batches[0], strict=True):
        distance = (image - item["image"].float()).abs().max() / 255
        assert 0 < distance <= parse_number(EPS) * (1 + 1e-5)  # the process attacks its own images


def trained(folder: Path, backbone: Path, resume: bool = False) -> Trainer:
    """Train to the end."""
    torch.manual_seed(0)  # the same new heads each time
    trainer = Trainer(small(folder, backbone, **FREE))
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer
