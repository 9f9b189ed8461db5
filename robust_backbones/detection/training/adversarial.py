"""Adversarial fine-tuning of detectors: learn from attacked images.

`free` replays each mini-batch: one backward pass gives the weights' gradient and the image's, and
the image moves between the updates (Shafahi et al. 2019, arXiv 1904.12843). An update costs what it
costs in standard training. Unlike theirs, a perturbation does not go over to the next mini-batch,
whose images have other sizes: it begins at a random point of the ball (Wong et al. 2020).
`pgd` attacks each mini-batch before its update, STEPS backward passes more.
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.eps import STEP_FACTOR
from robust_backbones.detection import attack

METHODS = ("", "free", "pgd")


class Adversary:
    """What `SOLVER.ADVERSARIAL` says.

    Attributes:
        replays: updates that are made of each mini-batch.
        images: of the mini-batches that are being replayed, `(C, H, W)` in [0, 255]; None between.
    """

    def __init__(self, cfg: CfgNode):
        options = cfg.SOLVER.ADVERSARIAL
        self.method, self.constraint = options.METHOD, options.CONSTRAINT
        self.eps, self.steps = options.EPS, options.STEPS
        self.replays = options.REPLAYS if options.METHOD == "free" else 1
        self.images: list[list[Tensor]] | None = None

    def attacked(
        self, model: nn.Module, batches: list, part: int, generator: torch.Generator
    ) -> list[dict]:
        """Mini-batch `part` of an update, with the images to learn from in place of its own."""
        batch = batches[part]
        if self.method == "pgd":
            step = STEP_FACTOR * self.eps / self.steps
            images = attack.pgd(
                model,
                batch,
                constraint=self.constraint,
                eps=self.eps,
                steps=self.steps,
                step_size=step,
                generator=generator,
                sampled=True,
            )
        else:
            if self.images is None:
                rule = CONSTRAINTS[self.constraint]
                self.images = [
                    [
                        rule.random_start(item["image"].float(), 255 * self.eps, generator)
                        for item in some
                    ]
                    for some in batches
                ]
            images = [image.clamp(0, 255) for image in self.images[part]]
        return [{**item, "image": image} for item, image in zip(batch, images, strict=True)]

    def learn(self, model: Any, batch: list[dict], part: int, padded: Tensor) -> None:
        """Move the images of a replayed mini-batch by a step of length eps.

        Args:
            padded: the network's input `(N, C, H, W)`, with its gradient.
        """
        rule = CONSTRAINTS[self.constraint]
        assert self.images is not None and padded.grad is not None
        for index, item in enumerate(batch):
            centre, image = item["image"].float(), self.images[part][index]
            _, height, width = centre.shape
            gradient = padded.grad[index, :, :height, :width].float() / model.pixel_std
            image = image.to(gradient)
            moved = rule.move(
                image,
                gradient,
                centre.to(gradient),
                eps=255 * self.eps,
                step_size=255 * self.eps,
                largest=255,
            )
            self.images[part][index] = moved.to(centre)  # on the CPU, as the loader gives it
