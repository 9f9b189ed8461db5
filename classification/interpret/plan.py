"""What is to be seen of each network, from which images it starts, and the pictures of it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from classification.datasets import loader
from classification.datasets.split import ImageSplit
from classification.interpret import optimize
from classification.interpret import options as interpret_options
from classification.models import Classifier
from robust_backbones.core.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Columns of the figure. Images are `(n, 3, H, W)` in [0, 1], on the CPU.

    Attributes:
        shown: what is visualised, `("class", 3)` or `("unit", 12)`.
        shown_starts: an image for each of them.
        indices: places in the test split of the images to invert.
        targets, starts: these images, and an image to start from for each.
        class_names: of the test split; empty if no data were needed.
        labels: `(n,)`, the classes of `targets`.
    """

    shown: list[tuple[str, int]]
    shown_starts: Tensor
    indices: list[int]
    targets: Tensor
    starts: Tensor
    class_names: tuple[str, ...] = ()
    labels: list[int] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return len(self.shown) + len(self.indices)


@dataclass(frozen=True)
class Pictures:
    """Of one network: a picture for each of the plan's columns, `(n, 3, H, W)` on the CPU."""

    shown: Tensor
    inverted: Tensor


def make(args: argparse.Namespace, source: ImageSplit | None, classes: int) -> Plan:
    """The same for all networks.

    Args:
        args: see `interpret_options.parser`.
        source: the test split; None where no image of it is needed.
        classes: of the network that has the fewest.

    Raises:
        UserError: not enough images; an unreadable one.
    """
    shown, count = interpret_options.columns(args, classes), interpret_options.inverted(args)
    size = interpret_options.image_size(args)
    # Both modes begin with the same images, so that neither depends on how much the other shows.
    starts = max(len(shown), count)
    from_images = starts if args.start == "image" else 0
    chosen, begin = _choose(source, count, from_images, args.seed) if source else ([], [])
    if from_images:
        begin = _read(source, begin, size)
    else:
        begin = optimize.noise(starts, size, torch.Generator().manual_seed(args.seed))
    return Plan(
        shown,
        begin[: len(shown)],
        chosen,
        _read(source, chosen, size),
        begin[:count],
        source.class_names if source else (),
        source.labels[chosen].tolist() if source else [],
    )


def _choose(source: ImageSplit, count: int, starts: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the images to invert, and of those to start from; no image is both."""
    if count + starts > len(source):
        words = f"{count} images to invert" if count else "no image to invert"
        words += f" and {starts} to start from" if starts else ""
        raise UserError(
            f"{words} are asked for, but {source.name} has {len(source)} test images; "
            "give fewer --images, or --start noise."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(source), generator=generator).tolist()
    return order[:count], order[::-1][:starts]


def _read(source: ImageSplit | None, indices: list[int], size: int) -> Tensor:
    if source is None or not indices:
        return torch.empty(0, 3, size, size)
    return next(loader.test_batches(source.subset(indices), len(indices)))[0]


def pictures(
    model: Classifier, plan: Plan, how: dict, batch_size: int, progress: Callable[[int, str], None]
) -> Pictures:
    """Make them all.

    Args:
        model: on the device to work on.
        how: `eps`, `steps`, `step_size`, `use_best`, see `representation.visualise`.
        progress: called after each step with the number of images and what goes on.
    """

    def each(
        function: Callable[..., Tensor], x: Tensor, targets: Tensor, doing: str, **more: Any
    ) -> list[Tensor]:
        device = model.normalize.mean.device
        return [
            function(
                model,
                a.to(device),
                b.to(device),
                **how,
                **more,
                progress=lambda images: progress(images, doing),
            ).cpu()
            for a, b in zip(x.split(batch_size), targets.split(batch_size), strict=True)
        ]

    done, first = [plan.shown_starts[:0]], 0
    for kind in dict.fromkeys(kind for kind, _ in plan.shown):  # each stands in one piece
        numbers = torch.tensor([number for name, number in plan.shown if name == kind])
        part = plan.shown_starts[first : first + len(numbers)]
        first += len(numbers)
        done += each(optimize.visualise, part, numbers, "visualising", kind=kind)
    inverted = [plan.starts[:0]]
    if len(plan.targets):
        wanted = apply(model, optimize.features, plan.targets, batch_size)
        inverted += each(optimize.invert, plan.starts, wanted, "inverting")
    return Pictures(torch.cat(done), torch.cat(inverted))


def apply(model: Classifier, function: Callable, x: Tensor, batch_size: int) -> Tensor:
    """`function(model, x)` of all images, batch by batch on the model's device; on the CPU.

    Args:
        function: `(model, images)` -> a tensor with a row for each image.
    """
    device = model.normalize.mean.device
    return torch.cat([function(model, part.to(device)).cpu() for part in x.split(batch_size)])
