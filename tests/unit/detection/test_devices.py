"""Detectors on a device that is not the CPU: nothing mixes devices, and results are the CPU's."""

import tempfile
from functools import partial

import pytest
import torch

from robust_backbones.detection import attack
from tests.support.detector_runs import ready_trainer
from tests.support.device_table import PASSED, gives_the_results_of_the_cpu
from tests.support.small_detectors import batch, tiny_config, tiny_detector

# isort: split
from detectron2.utils.events import EventStorage


def trained_steps(device, **keys):
    """Two iterations."""
    with EventStorage(), tempfile.TemporaryDirectory() as folder:
        trainer = ready_trainer(folder, "", MODEL__DEVICE=str(device), **keys)
        for trainer.iter in range(2):
            trainer.run_step()
            trainer._hooks[0].after_step()  # the average, if there is one
    return list(
        (trainer.average.module if trainer.average else trainer.model).state_dict().values()
    )


def configured(device):
    cfg = tiny_config(**{"MODEL.DEVICE": str(device)})
    return cfg, tiny_detector(cfg).eval()


def attacked(device, constraint, eps):
    cfg, model = configured(device)
    how = dict(constraint=constraint, eps=eps, steps=2, step_size=eps / 2)
    generator = torch.Generator(device).manual_seed(0)
    return attack.pgd(model, batch(cfg, sizes=(96, 80)), generator=generator, **how)


def detected(device):
    cfg, model = configured(device)
    with torch.no_grad():
        found = [output["instances"] for output in model(batch(cfg))]
    return [t for f in found for t in (f.pred_boxes.tensor, f.scores, f.pred_masks.float())]


WORK = {
    "train, averaged in parts": partial(trained_steps, SOLVER__EMA="0.75", SOLVER__ACCUMULATE="2"),
    "train, free": partial(
        trained_steps, SOLVER__ADVERSARIAL__METHOD="free", SOLVER__ADVERSARIAL__REPLAYS="2"
    ),
    "train, pgd": partial(trained_steps, SOLVER__ADVERSARIAL__METHOD="pgd"),
    "attack, l2": partial(attacked, constraint="l2", eps=2.0),
    "attack, linf": partial(attacked, constraint="linf", eps=8 / 255),
    "detect": detected,
}


CHECKS = {name: partial(gives_the_results_of_the_cpu, work=work) for name, work in WORK.items()}


@pytest.mark.parametrize("name", CHECKS)
def test_another_device(device_outcomes, name):
    assert device_outcomes[name] == PASSED
