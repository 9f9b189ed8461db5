"""PGD on detectors: perturb images to increase the training losses of the detector.

The attack is PGD (Madry et al. 2018, arXiv 1706.06083) on the network's input: the resized image,
before mean subtraction and padding. `eps` and `step_size` refer to pixels in [0, 1], as in the rest
of the project, although Detectron2's pixels are in [0, 255].
"""

import contextlib
from collections.abc import Callable, Iterator
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

from robust_backbones.attacks import CONSTRAINTS, check_parameters, require_gradients
from robust_backbones.core.eps import default_step
from robust_backbones.core.errors import UserError

# Name of a group of losses -> substrings that the names of Detectron2's losses must contain.
LOSSES = {
    "all": ("",),
    "classification": ("cls",),  # loss_rpn_cls, loss_cls
    "localization": ("loc", "box_reg"),  # loss_rpn_loc, loss_box_reg
    "mask": ("mask",),  # loss_mask
}
# The loss is multiplied by this factor, so that small gradients do not underflow under float16
# autocast. In float32, this power of two does not change the attack: no step depends on the norm of
# the gradient. Of the digit scenes' gradients, a factor of 1 rounds 0.5 % of the entries to 0, and
# factors of 2**10 to 2**20 at most 0.01 %, without overflow.
LOSS_SCALE = 1024.0


def pgd(
    model: nn.Module,
    batch: list[dict],
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float | None = None,
    generator: torch.Generator,
    loss: str = "all",
    random_start: bool = True,
    sampled: bool = False,
) -> list[Tensor]:
    """Perturb images by projected gradient ascent on the training losses.

    The model computes its losses in training mode, with normalization layers and dropout in eval
    mode. Afterwards, the mode and the attributes of every submodule are restored. The attack does
    not change `.grad`, parameters, BatchNorm statistics or the global random state.

    Detectron2 averages its losses over the regions of a batch, so the attack on an image depends on
    the other images of its batch. To avoid this dependence, use batches of one image.

    Args:
        model: Detectron2 detector that returns its losses as a dictionary (`GeneralizedRCNN`,
            `RetinaNet`), or its DistributedDataParallel wrapper.
        batch: output of `DatasetMapper(is_train=True)`: `"image"` `(C, H, W)` in [0, 255], uint8
            or float, in the model's channel order, and `"instances"`, the ground truth.
        constraint: key of `CONSTRAINTS`.
        eps: perturbation radius for pixels in [0, 1]: the L2 norm over a whole image, or the
            L-infinity norm. 0 returns the images unchanged.
        steps: number of gradient steps, at least 1.
        step_size: length of one step, in the unit of `eps`; None: 2.5 * eps / steps.
        generator: generator for the random starts and the model's sampling. It is fastest on the
            model's device.
        loss: key of `LOSSES`.
        random_start: whether to start from a random point of the ball instead of the image.
        sampled: whether to compute the losses on a random sample of anchors and regions, as in
            training. Each step draws a new sample. False uses all anchors and regions, which makes
            the attack stronger.

    Returns:
        The images after the last step, `(C, H, W)`, float32 in [0, 255], within the ball, on the
        model's device. A step does not change an image whose gradient is zero or not finite.

    Raises:
        UserError: a parameter is out of its range, the ground truth is missing, the model does not
            have the loss, or torch.inference_mode is on.
    """
    _check(batch, loss)
    require_gradients(*(item["image"] for item in batch))
    detector: Any = model.module if isinstance(model, DistributedDataParallel) else model
    with _training_losses(detector, sampled) as inputs:

        def gradients(images: list[Tensor], seed: int) -> list[Tensor]:
            attacked = [{**item, "image": x} for item, x in zip(batch, images, strict=True)]
            total = _chosen(detector, attacked, loss, seed)
            return _gradients(total, inputs.pop(), detector.pixel_std, images)

        return ascend(
            gradients,
            [item["image"].to(detector.device, torch.float32) for item in batch],
            constraint=constraint,
            eps=eps,
            steps=steps,
            step_size=step_size,
            generator=generator,
            random_start=random_start,
        )


def ascend(
    gradients: Callable[[list[Tensor], int], list[Tensor]],
    centers: list[Tensor],
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float | None,
    generator: torch.Generator,
    random_start: bool,
) -> list[Tensor]:
    """Perturb images by projected gradient ascent.

    Args:
        gradients: function from images and a random seed to the gradient of the loss with respect
            to each image. The seed differs in each step.
        centers: images `(C, H, W)`, float32 in [0, 255].
        constraint, eps, steps, step_size, generator, random_start: see `pgd`.

    Returns:
        The images after the last step, as for `pgd`.

    Raises:
        UserError: a parameter is out of its range.
    """
    check_parameters(constraint, eps, steps, step_size)
    if eps == 0:
        return centers
    ball, radius = CONSTRAINTS[constraint], 255 * eps
    length = 255 * (default_step(eps, steps) if step_size is None else step_size)
    images = centers
    if random_start:
        images = [ball.random_start(x, radius, generator).clamp(0, 255) for x in centers]
    for seed in draw_seeds(generator, steps):
        images = [
            ball.move(x, gradient, center, eps=radius, step_size=length, largest=255)
            for x, gradient, center in zip(images, gradients(images, seed), centers, strict=True)
        ]
    return images


def detection_loss(model: nn.Module, batch: list[dict], *, loss: str, seed: int) -> float:
    """Compute the loss that `pgd` increases, on all anchors and regions of a batch.

    Args:
        model: detector.
        batch: images and ground truth, as for `pgd`.
        loss: key of `LOSSES`.
        seed: seed for the model's random numbers.
    """
    with _training_losses(model, sampled=False), torch.no_grad():
        return _chosen(model, batch, loss, seed).item()


def draw_seeds(generator: torch.Generator, count: int = 1) -> list[int]:
    """Draw random seeds in [0, 2**62) for other generators. A GPU is synchronized only once."""
    shape = (count,)
    return torch.randint(2**62, shape, generator=generator, device=generator.device).tolist()


def _check(batch: list[dict], loss: str) -> None:
    if loss not in LOSSES:
        raise UserError(f"loss '{loss}' is unknown. Choose from {', '.join(LOSSES)}.")
    if any("instances" not in item for item in batch):
        raise UserError(
            "the batch has no 'instances', from which the losses are computed. Map the dataset "
            "with DatasetMapper(is_train=True)."
        )


def _use_all_regions(model: nn.Module) -> None:
    """Make a detector compute its losses on all anchors and regions, not on a random sample."""
    for module in model.modules():
        if isinstance(module, RPN):
            module.label_and_sample_anchors = partial(_label_all, module)
        if isinstance(module, ROIHeads):
            module.batch_size_per_image = 2**31 - 1  # larger than any number of regions


def _label_all(rpn: Any, anchors: list, truth: list) -> Any:
    """Label all anchors.

    The RPN divides its loss by the sample size, so set the sample size to the number of anchors.
    """
    rpn.batch_size_per_image = sum(len(level) for level in anchors)
    return type(rpn).label_and_sample_anchors(rpn, anchors, truth)


@contextlib.contextmanager
def _training_losses(model: Any, sampled: bool) -> Iterator[list[Tensor]]:
    """Put a detector into training mode, and undo all changes afterwards.

    Detectron2 computes losses only in training mode. Some changes are in attributes that are not
    buffers: RetinaNet, for example, updates a running mean.

    Yields:
        The inputs of the detector, recorded by `watched_inputs`.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, (_NormBase, _DropoutNd)):
                module.eval()
            if hasattr(module, "vis_period"):
                module.vis_period = 0  # 0 keeps attacked images out of the training log
        if not sampled:
            _use_all_regions(model)
        # The losses log scalars. This separate storage discards them.
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
    """Record the inputs of a detector as leaf tensors, so that they get gradients.

    Detectron2 pads images by copying them in place. Gradients do not flow through this copy.

    Yields:
        A list. Each call of the detector appends its input `(N, C, H, W)`, normalized and padded.
    """
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
        del model.preprocess_image  # the attribute of the instance hides the method


def _gradients(total: Tensor, padded: Tensor, std: Tensor, images: list[Tensor]) -> list[Tensor]:
    """Compute the gradient of the loss with respect to each image, but not to the parameters.

    Args:
        total: loss of the batch, a scalar.
        padded: input of the network `(N, C, H, W)`, normalized with `std`.
        std: the detector's `pixel_std`, `(C, 1, 1)`, for pixels in [0, 255].
        images: images `(C, H, W)` before padding.

    Returns:
        A float32 gradient `(C, H, W)` for each image; zero if the loss does not depend on it.
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
    """Sum the detector's losses that belong to a group of `LOSSES`."""
    with _seeded(model.device, seed):
        losses = model(batch)
    parts = [value for name, value in losses.items() if any(part in name for part in LOSSES[loss])]
    if not parts:
        raise UserError(
            f"the detector has no {loss} loss, only {', '.join(losses)}. Choose another --loss."
        )
    return sum(parts)


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that Detectron2 uses for sampling, and restore them afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
