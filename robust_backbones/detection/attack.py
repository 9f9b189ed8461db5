"""PGD on detectors: images that raise the losses a detector is trained with.

The attack is that of Madry et al. 2018 (arXiv 1706.06083). What is attacked is the network's input:
the resized image, before its mean is subtracted and it is padded. `eps` and `step_size` are for
pixels in [0, 1], as everywhere in the project, although Detectron2's images span [0, 255].
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from robust_backbones.core.errors import UserError

# Which of Detectron2's training losses the attack raises: parts of their names; "" is in every one.
LOSSES = {
    "all": ("",),
    "classification": ("cls",),  # loss_rpn_cls, loss_cls
    "localization": ("loc", "box_reg"),  # loss_rpn_loc, loss_box_reg
    "mask": ("mask",),  # loss_mask
}
STEP_FACTOR = 2.5  # times eps / steps: the length of a step, as Madry et al. 2018 have it
# The loss is multiplied by it, so that small gradients do not underflow under float16 autocast; in
# float32 a power of two changes nothing, since no step depends on a gradient's length.
LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class Constraint:
    """A norm ball, as what an attack needs of it. Images are `(C, H, W)`, all in one unit.

    Attributes:
        random_start: `(x, eps, generator)` -> a random point of the ball around x.
        step: `(x, gradient, step_size)` -> x after the steepest ascent step of that length; x
            where the gradient is zero or not finite.
        project: `(x, centre, eps)` -> the nearest point of the ball around `centre`.
        norm: `(difference)` -> its norm.
    """

    random_start: Callable[[Tensor, float, torch.Generator], Tensor]
    step: Callable[[Tensor, Tensor, float], Tensor]
    project: Callable[[Tensor, Tensor, float], Tensor]
    norm: Callable[[Tensor], Tensor]


def _l2_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    # Drawn on the generator's device, so that a CPU seed means the same points on a GPU.
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * noise / noise.norm()  # on the sphere


def _l2_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    # Divided by its largest entry first, since the squares of a tiny gradient underflow to 0. The
    # quotient is NaN where there is no direction: 0/0, or with NaN or infinity in the gradient.
    direction = (gradient / gradient.abs().max()).nan_to_num(nan=0.0)
    return x + step_size * direction / direction.norm().clamp(min=1)  # below 1 only if all are 0


def _l2_project(x: Tensor, centre: Tensor, eps: float) -> Tensor:
    difference = x - centre
    return centre + difference * (eps / difference.norm()).clamp(max=1)  # eps / 0 is infinity


def _linf_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x)
    return x + eps * (2 * noise - 1)


def _linf_step(x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    return x + step_size * torch.where(gradient.isfinite().all(), gradient.sign(), 0)


def _linf_project(x: Tensor, centre: Tensor, eps: float) -> Tensor:
    return centre + (x - centre).clamp(-eps, eps)


CONSTRAINTS = {
    "l2": Constraint(_l2_start, _l2_step, _l2_project, lambda d: d.norm()),
    "linf": Constraint(_linf_start, _linf_step, _linf_project, lambda d: d.abs().max()),
}


def pgd(
    model: nn.Module,
    batch: list[dict],
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator,
    loss: str = "all",
    random_start: bool = True,
    sampled: bool = False,
) -> list[Tensor]:
    """Projected gradient ascent on the training losses; the last iterate.

    The model computes its losses in training mode, but normalisation layers and dropout are in
    eval mode. Afterwards every submodule's mode and attributes are what they were, and `.grad`,
    parameters, BatchNorm statistics and the global random state are untouched. Detectron2 averages
    its losses over a batch's regions, so the attack on an image depends on its batch. Batches of
    one image avoid that.

    Args:
        model: a Detectron2 detector that gives its losses as a dictionary (`GeneralizedRCNN`,
            `RetinaNet`), or its DistributedDataParallel wrapper.
        batch: as `DatasetMapper(is_train=True)` gives it: `"image"` `(C, H, W)` in [0, 255], uint8
            or float, in the model's channel order, and `"instances"`, the truth.
        constraint: key of `CONSTRAINTS`.
        eps: radius of the ball for pixels in [0, 1]: L2 over a whole image, or L-infinity. 0: the
            images themselves.
        steps: gradient steps, at least 1.
        step_size: length of one step, in the unit of `eps`.
        generator: generator for the random starts and the model's sampling.
        loss: key of `LOSSES`.
        random_start: whether to begin at a random point of the ball instead of at the image.
        sampled: whether to compute the losses on a random sample of anchors and regions, drawn
            again for each step, as in training. False uses all of them, a stronger attack.

    Returns:
        An image `(C, H, W)` float32 for each of the batch, in [0, 255], within the ball, on the
        model's device. One whose gradient is zero or not finite does not move.

    Raises:
        UserError: a parameter is not as said above, the truth is missing, or the model has no such
            loss.
    """
    _check(batch, constraint, eps, steps, step_size, loss)
    rule, radius, length = CONSTRAINTS[constraint], 255 * eps, 255 * step_size
    detector: Any = model.module if isinstance(model, DistributedDataParallel) else model
    centres = [item["image"].to(detector.device, torch.float32) for item in batch]
    if eps == 0:
        return centres
    images = centres
    if random_start:
        images = [rule.random_start(x, radius, generator).clamp(0, 255) for x in centres]
    with _training_losses(detector, sampled) as inputs:
        for _ in range(steps):
            attacked = [{**item, "image": x} for item, x in zip(batch, images, strict=True)]
            total = _chosen(detector, attacked, loss, draw_seed(generator))
            gradients = _gradients(total, inputs.pop(), detector.pixel_std, images)
            images = [
                rule.project(rule.step(x, gradient, length), centre, radius).clamp(0, 255)
                for x, gradient, centre in zip(images, gradients, centres, strict=True)
            ]
    return images


def detection_loss(model: nn.Module, batch: list[dict], *, loss: str, seed: int) -> float:
    """Loss of a batch on all anchors and regions, as `pgd` increases it; arguments as in `pgd`.

    Args:
        seed: seed for the model's random numbers.
    """
    with _training_losses(model, sampled=False), torch.no_grad():
        return _chosen(model, batch, loss, seed).item()


def draw_seed(generator: torch.Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def _check(
    batch: list[dict], constraint: str, eps: float, steps: int, step_size: float, loss: str
) -> None:
    for name, value, table in (("constraint", constraint, CONSTRAINTS), ("loss", loss, LOSSES)):
        if value not in table:
            raise UserError(f"{name} '{value}' is unknown; one of: {', '.join(table)}.")
    for name, length in {"eps": eps, "step_size": step_size}.items():
        if not 0 <= length < math.inf:
            raise UserError(f"{name} is {length}; it must be a finite number of at least 0.")
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be at least 1.")
    if any("instances" not in item for item in batch):
        raise UserError(
            "the batch has no 'instances', which the losses are computed from; map the data set "
            "with DatasetMapper(is_train=True)."
        )


def _use_all_regions(model: nn.Module) -> None:
    """Make the losses of a detector use all anchors and regions instead of a random sample."""
    for module in model.modules():
        if isinstance(module, RPN):
            module.label_and_sample_anchors = partial(_label_all, module)
        if isinstance(module, ROIHeads):
            module.batch_size_per_image = 2**31 - 1  # the loss is a mean over all regions


def _label_all(rpn: Any, anchors: list, truth: list) -> Any:
    """Label all anchors. The RPN divides its loss by the sample size, set here to their number."""
    rpn.batch_size_per_image = sum(len(level) for level in anchors)
    return type(rpn).label_and_sample_anchors(rpn, anchors, truth)


@contextlib.contextmanager
def _training_losses(model: Any, sampled: bool) -> Iterator[list[Tensor]]:
    """Training mode, since Detectron2 computes losses in no other, with all that would leave a
    trace switched off or undone: besides modes, RetinaNet keeps a running mean as an attribute.

    Yields what `watched_inputs` does.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, (_NormBase, _DropoutNd)):
                module.eval()
            if hasattr(module, "vis_period"):
                module.vis_period = 0  # no pictures of attacked images in the training log
        if not sampled:
            _use_all_regions(model)
        # Scalars that the losses log go nowhere.
        with EventStorage(), torch.enable_grad(), watched_inputs(model) as inputs:
            yield inputs
    finally:
        for module, attributes in before:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update(attributes)


@contextlib.contextmanager
def watched_inputs(model: Any) -> Iterator[list[Tensor]]:
    """Yields a list to which each call of a detector adds its input `(N, C, H, W)`, normalised and
    padded, as a leaf that gradients can be taken of. Detectron2 pads by copying in place, which no
    gradient passes."""
    preprocess, inputs = model.preprocess_image, []

    def watched(batch: list[dict]) -> Any:
        with torch.no_grad():
            images = preprocess(batch)
        images.tensor = images.tensor.detach().requires_grad_()
        inputs.append(images.tensor)
        return images

    model.preprocess_image = watched
    try:
        yield inputs
    finally:
        del model.preprocess_image  # the instance's; the class has its own


def _gradients(total: Tensor, padded: Tensor, std: Tensor, images: list[Tensor]) -> list[Tensor]:
    """Of a batch's loss, for each of its images, which `padded` has normalised by `std`.

    Those of the parameters are neither written nor computed.
    """
    found = None
    if total.requires_grad:
        (found,) = torch.autograd.grad(LOSS_SCALE * total, [padded], allow_unused=True)
    if found is None:
        return [torch.zeros_like(x) for x in images]
    return [
        found[i, :, : x.shape[1], : x.shape[2]].float() / std.to(found.device)
        for i, x in enumerate(images)
    ]


def _chosen(model: Any, batch: list[dict], loss: str, seed: int) -> Tensor:
    """Sum of the losses that a key of `LOSSES` means."""
    with _seeded(model.device, seed):
        losses = model(batch)
    parts = [value for name, value in losses.items() if any(part in name for part in LOSSES[loss])]
    if not parts:
        raise UserError(
            f"the detector has no {loss} loss among {', '.join(losses)}; choose another --loss."
        )
    return sum(parts)


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that Detectron2's sampling draws from; afterwards they go on from
    where they were."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
