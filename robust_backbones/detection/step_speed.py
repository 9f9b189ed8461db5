"""Time a training step and the inference of a detector: plain Detectron2 against ours.

Both use the same config, weights, images and boxes, and take turns in one process.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from robust_backbones.core import timing
from robust_backbones.core.resources import configs
from robust_backbones.detection import config
from robust_backbones.detection.training.step import Step

# isort: split
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


def batches(size: tuple[int, int], count: int) -> Any:
    """An endless loader of one batch: noise, with eight boxes and masks per image.

    Args:
        size: height and width of the images, pixels.
        count: images per batch.
    """
    torch.manual_seed(0)
    batch = []
    for _ in range(count):
        extent = torch.tensor([size[1], size[0]])  # width and height
        corners = torch.rand(8, 2) * extent * 0.6
        truth = Instances(size)
        truth.gt_boxes = Boxes(torch.cat([corners, corners + 0.3 * extent], 1))
        truth.gt_classes = torch.randint(0, 80, (8,))
        truth.gt_masks = BitMasks(torch.rand(8, *size) > 0.5)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        batch.append({"image": image, "instances": truth, "height": size[0], "width": size[1]})

    class Loader:
        def __iter__(self) -> Iterator[list[dict]]:
            while True:
                yield batch

    return Loader()


def build_trainers(cfg: Any, loader: Any) -> dict[str, Any]:
    """Build both trainers, by name, with the same weights."""
    made: dict[str, Any] = {}
    state: dict | None = None
    plain = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    for name, builder in (
        ("Detectron2", "build_resnet_fpn_backbone"),
        ("ours", "build_robust_resnet_fpn_backbone"),
    ):
        cfg.MODEL.BACKBONE.NAME = builder
        torch.manual_seed(0)
        model = build_model(cfg)
        state = state or {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        if name == "ours":
            made[name] = our_step(cfg, model, loader)
        else:
            made[name] = plain(model, loader, build_optimizer(cfg, model))
            made[name].iter = 0
    return made


def our_step(cfg: Any, model: Any, loader: Any) -> Step:
    """Build our training step, before its first iteration."""
    step = Step(cfg, model, loader, build_optimizer(cfg, model))
    step.iter = 0
    return step


def configured(
    arch: str, freeze: int, precision: str, device: torch.device, more: Sequence[str] = ()
) -> Any:
    """The config of COCO's Mask R-CNN with random weights, and `KEY VALUE` pairs in `more`."""
    return config.load_config(
        configs() / "coco_mask_rcnn_robust_eps3.yaml",
        [
            "MODEL.ROBUST.ARCH",
            arch,
            "MODEL.WEIGHTS",
            "",
            "MODEL.DEVICE",
            str(device),
            "MODEL.BACKBONE.FREEZE_AT",
            str(freeze),
            "SOLVER.BASE_LR",
            "1e-3",
            "SOLVER.AMP.ENABLED",
            str(precision != "float32"),
            *more,
        ],
    )


def measure(
    cfg: Any, size: tuple[int, int], batch: int, repeats: int, device: torch.device
) -> dict:
    """Time both implementations.

    Returns:
        "step" and "inference": `{implementation: median seconds}`. "difference": largest difference
        of a weight after one step, relative to the largest change of a weight in the step.
    """
    loader = batches(size, batch)
    trainers = build_trainers(cfg, loader)
    with EventStorage():
        before = {k: v.clone() for k, v in trainers["ours"].model.state_dict().items()}
        for trainer in trainers.values():
            torch.manual_seed(0)
            next_step(trainer)
        after = [trainer.model.state_dict() for trainer in trainers.values()]
        change = max((after[0][k] - before[k]).abs().max() for k in before)
        apart = max((after[0][k] - after[1][k]).abs().max() for k in before) / change
        works = {n: partial(next_step, t) for n, t in trainers.items()}
        steps = _medians(works, repeats, device)
    for trainer in trainers.values():
        trainer.model.eval()
    images = next(iter(loader))
    with torch.no_grad(), torch.autocast(device.type, enabled=cfg.SOLVER.AMP.ENABLED):
        inference = _medians(
            {n: (lambda model=t.model: model(images)) for n, t in trainers.items()}, repeats, device
        )
    return {"step": steps, "inference": inference, "difference": float(apart)}


def next_step(trainer: Any) -> None:
    """Make a training step."""
    trainer.run_step()
    trainer.iter += 1  # ours reads the losses of a GPU only in some iterations


def _medians(works: dict, repeats: int, device: torch.device) -> dict:
    def seeded(work: Callable[[], object]) -> None:
        torch.manual_seed(0)  # both sample the same anchors and regions
        work()

    works = {name: (lambda work=work: seeded(work)) for name, work in works.items()}
    return timing.medians(works, repeats, device)
