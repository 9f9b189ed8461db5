"""Choose the units, classes, images and start images to interpret, and optimize them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from classification.datasets import loader
from classification.datasets.split import ImageSplit
from classification.interpret.optimize import invert, noise, representations, visualize
from classification.interpret.options import InterpretSettings
from classification.models import Classifier
from robust_backbones.core.errors import UserError, counted


@dataclass(frozen=True)
class Plan:
    """Columns of the figure, the same for all networks.

    All images are `(n, 3, H, W)` in [0, 1] on the CPU.

    Attributes:
        targets: classes and units to visualize: `("class", 3)` or `("unit", 12)`.
        target_starts: start image of each target.
        indices: index in the test split of each image to invert.
        images, starts: images to invert, and the start image of each.
        class_names: names of the classes of the test split; empty without data.
        labels: class label of each of `images`.
    """

    targets: list[tuple[str, int]]
    target_starts: Tensor
    indices: list[int]
    images: Tensor
    starts: Tensor
    class_names: tuple[str, ...] = ()
    labels: list[int] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return len(self.targets) + len(self.indices)


@dataclass(frozen=True)
class OptimizedImages:
    """Optimized images of one network, one per column of the plan: `(n, 3, H, W)` on the CPU."""

    visualized: Tensor
    inverted: Tensor


def make_plan(settings: InterpretSettings, split: ImageSplit | None, classes: int) -> Plan:
    """Choose the columns and the start images.

    Args:
        settings: settings of the run.
        split: test split, or None if no test image is needed.
        classes: smallest number of classes of the networks.

    Raises:
        UserError: there are too few test images, or a test image cannot be read.
    """
    targets, count, size = settings.targets(classes), settings.images, settings.image_size
    # Both modes use the same start images, so the results of a mode do not depend on whether the
    # other mode is used.
    needed = max(len(targets), count)
    from_images = needed if settings.start == "image" else 0
    chosen, start_indices = _choose(split, count, from_images, settings.seed) if split else ([], [])
    if from_images:
        starts = _read(split, start_indices, size)
    else:
        starts = noise(needed, size, torch.Generator().manual_seed(settings.seed))
    return Plan(
        targets,
        starts[: len(targets)],
        chosen,
        _read(split, chosen, size),
        starts[:count],
        split.class_names if split else (),
        split.labels[chosen].tolist() if split else [],
    )


def _choose(split: ImageSplit, count: int, starts: int, seed: int) -> tuple[list[int], list[int]]:
    """Return disjoint indices of the images to invert and of the start images."""
    if count + starts > len(split):
        words = f"{counted(count, 'image', 'images') if count else 'no images'} to invert"
        words += f" and {counted(starts, 'start image', 'start images')}" if starts else ""
        raise UserError(
            f"{words} were requested, but {split.name} has only {len(split)} test images. Reduce "
            "--images, or use --start noise."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator).tolist()
    return order[:count], order[::-1][:starts]


def _read(split: ImageSplit | None, indices: list[int], size: int) -> Tensor:
    if split is None or not indices:
        return torch.empty(0, 3, size, size)
    return next(loader.load_batches(split.subset(indices), len(indices)))[0]


def optimize_images(
    model: Classifier, plan: Plan, settings: InterpretSettings, progress: Callable[[int, str], None]
) -> OptimizedImages:
    """Optimize the images of one network.

    Args:
        model: network on its device.
        plan: columns of the figure.
        settings: settings of the run.
        progress: function that is called after each step with the number of images and the current
            activity, such as `inverting`.
    """

    def in_batches(
        function: Callable[..., Tensor], x: Tensor, targets: Tensor, doing: str, **more: Any
    ) -> list[Tensor]:
        device = model.normalize.mean.device
        step = partial(
            function,
            model,
            eps=settings.eps,
            steps=settings.steps,
            step_size=settings.step_size,
            use_best=settings.use_best,
            progress=lambda images: progress(images, doing),
            **more,
        )
        pairs = zip(x.split(settings.batch_size), targets.split(settings.batch_size), strict=True)
        return [step(a.to(device), b.to(device)).cpu() for a, b in pairs]

    visualized, first = [plan.target_starts[:0]], 0
    for kind in dict.fromkeys(kind for kind, _ in plan.targets):  # targets are sorted by kind
        numbers = torch.tensor([number for name, number in plan.targets if name == kind])
        starts = plan.target_starts[first : first + len(numbers)]
        first += len(numbers)
        visualized += in_batches(visualize, starts, numbers, "visualizing", kind=kind)
    inverted = [plan.starts[:0]]
    if len(plan.images):
        wanted = apply(model, representations, plan.images, settings.batch_size)
        inverted += in_batches(invert, plan.starts, wanted, "inverting")
    return OptimizedImages(torch.cat(visualized), torch.cat(inverted))


def apply(model: Classifier, function: Callable, x: Tensor, batch_size: int) -> Tensor:
    """Apply a function to all images, batch by batch on the model's device.

    Args:
        model: network on its device.
        function: function from `(model, images)` to a tensor with one row per image.
        x: images `(N, 3, H, W)`.
        batch_size: images per batch.

    Returns:
        Tensor with N rows on the CPU.
    """
    device = model.normalize.mean.device
    return torch.cat([function(model, part.to(device)).cpu() for part in x.split(batch_size)])
