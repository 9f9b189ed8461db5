"""Adversarial training of detectors.

The method `free` uses each batch for several updates (Shafahi et al. 2019, arXiv 1904.12843). One
backward pass computes the gradients of the weights and of the images, and the images are perturbed
between updates. An update costs as much as in standard training. Unlike in that paper, the next
batch does not reuse the perturbations, because its images have different sizes. Perturbations start
from a random point of the ball (Wong et al. 2020, arXiv 2001.03994).

The method `pgd` attacks each batch before its update. This attack needs STEPS more backward passes.
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.detection import attack

METHODS = ("", "free", "pgd")


def updates_per_batch(cfg: CfgNode) -> int:
    """Return the number of updates for which a batch is used."""
    options = cfg.SOLVER.ADVERSARIAL
    return options.REPLAYS if options.METHOD == "free" else 1


def whole_replays(cfg: CfgNode, iterations: int) -> int:
    """Round a number of iterations up to a multiple of `updates_per_batch`.

    A run resumes exactly only between batches, because checkpoints do not contain the images.
    """
    replays = updates_per_batch(cfg)
    return -(-iterations // replays) * replays


class Adversary:
    """The attack that `SOLVER.ADVERSARIAL` configures.

    Attributes:
        images: perturbed images being replayed, one list for each part of the batch, `(C, H, W)`,
            on the scale [0, 255] and on the device of the batch; None if no batch is being
            replayed. Checkpoints do not contain them.
    """

    def __init__(self, cfg: CfgNode):
        options = cfg.SOLVER.ADVERSARIAL
        self.method, self.constraint = options.METHOD, options.CONSTRAINT
        self.eps, self.steps = options.EPS, options.STEPS
        self.images: list[list[Tensor]] | None = None

    def attacked(
        self, model: nn.Module, batches: list, part: int, generator: torch.Generator
    ) -> list[dict]:
        """Return one part of a batch with perturbed images.

        Args:
            model: detector.
            batches: parts of the batch, with images and ground truth as for `attack.pgd`.
            part: index of the part to return.
            generator: generator for the random numbers of the attack, on the images' device.
        """
        batch = batches[part]
        if self.method == "pgd":
            images = attack.pgd(
                model,
                batch,
                constraint=self.constraint,
                eps=self.eps,
                steps=self.steps,
                generator=generator,
                sampled=True,
            )
        else:
            if self.images is None:
                ball = CONSTRAINTS[self.constraint]
                self.images = [
                    [
                        ball.random_start(item["image"].float(), 255 * self.eps, generator)
                        for item in part_batch
                    ]
                    for part_batch in batches
                ]
            images = [image.clamp(0, 255) for image in self.images[part]]
        return [{**item, "image": image} for item, image in zip(batch, images, strict=True)]

    def perturb(self, model: Any, batch: list[dict], part: int, padded: Tensor) -> None:
        """Perturb the replayed images of one part of a batch, with a step of length eps.

        Args:
            model: detector.
            batch: clean images of the part, with ground truth.
            part: index of the part.
            padded: input of the network `(N, C, H, W)`. Its `.grad` contains the gradient.
        """
        ball = CONSTRAINTS[self.constraint]
        assert self.images is not None and padded.grad is not None
        for index, item in enumerate(batch):
            center, image = item["image"].float(), self.images[part][index]
            _, height, width = center.shape
            gradient = padded.grad[index, :, :height, :width].float() / model.pixel_std
            self.images[part][index] = ball.move(
                image, gradient, center, eps=255 * self.eps, step_size=255 * self.eps, largest=255
            )
