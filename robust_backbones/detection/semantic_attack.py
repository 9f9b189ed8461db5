"""PGD on networks for semantic segmentation: perturb images to change the classes of pixels.

The perturbation is on the network's input, the resized image. `eps` and `step_size` refer to pixels
in [0, 1]. The network runs in eval mode. The attack on an image does not depend on the other images
of its batch, except through padding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad, softmax

from robust_backbones.attacks import eval_mode, require_gradients
from robust_backbones.core.errors import UserError
from robust_backbones.detection.attack import ascend
from robust_backbones.detection.data.semantic_masks import IGNORED


def _equal(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=logits.dtype)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=0) == labels).to(logits.dtype)


def _cosine(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cosine similarity between the predicted probabilities and the one-hot labels."""
    probabilities = softmax(logits, dim=0)
    true = probabilities.gather(0, labels.clamp(max=len(logits) - 1)[None])[0]
    return true / torch.linalg.vector_norm(probabilities, dim=0)


# Name of a loss -> function from logits `(classes, H, W)` and labels `(H, W)` to the weight of the
# cross-entropy of each pixel, `(H, W)`. The weights are constants in the gradient.
LOSSES = {
    "cross-entropy": _equal,
    # Croce et al. 2024 (arXiv 2306.12941): only pixels whose class is right.
    "masked": _right,
    # CosPGD (Agnihotri et al. 2024, arXiv 2302.02213).
    "cosine": _cosine,
}


def pgd(
    model: Any,
    batch: list[dict],
    *,
    constraint: str,
    eps: float,
    steps: int,
    step_size: float | None = None,
    generator: torch.Generator,
    loss: str = "cross-entropy",
    random_start: bool = True,
) -> list[Tensor]:
    """Perturb images by projected gradient ascent on a pixel-wise loss.

    The attack does not change `.grad`, parameters or BatchNorm statistics, and restores the mode of
    every submodule.

    Args:
        model: Detectron2's `SemanticSegmentor`.
        batch: output of `DatasetMapper(is_train=True)`: `"image"` `(C, H, W)` in [0, 255], in the
            model's channel order, and `"sem_seg"`, class indices `(H, W)`. 255 is ignored.
        constraint, eps, steps, step_size, random_start: see `attack.pgd`.
        generator: generator for the random starts.
        loss: key of `LOSSES`.

    Returns:
        The images after the last step, as for `attack.pgd`.

    Raises:
        UserError: a parameter is out of its range, the labels are missing, or torch.inference_mode
            is on.
    """
    if loss not in LOSSES:
        raise UserError(f"loss '{loss}' is unknown. Choose from {', '.join(LOSSES)}.")
    if any("sem_seg" not in item for item in batch):
        raise UserError(
            "the batch has no 'sem_seg', from which the losses are computed. Map the dataset with "
            "DatasetMapper(is_train=True)."
        )
    require_gradients(*(item["image"] for item in batch))
    labels = [item["sem_seg"].to(model.device) for item in batch]

    def gradients(images: list[Tensor], _seed: int) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in images]
        total = torch.stack(_losses(model, leaves, labels, loss)).sum()
        return list(torch.autograd.grad(total, leaves))

    with eval_mode(model), torch.enable_grad():
        return ascend(
            gradients,
            [item["image"].to(model.device, torch.float32) for item in batch],
            constraint=constraint,
            eps=eps,
            steps=steps,
            step_size=step_size,
            generator=generator,
            random_start=random_start,
        )


def mean_loss(model: Any, batch: list[dict], *, loss: str) -> float:
    """Compute the loss that `pgd` increases, the mean over the images of a batch."""
    images = [item["image"].to(model.device, torch.float32) for item in batch]
    labels = [item["sem_seg"].to(model.device) for item in batch]
    with eval_mode(model), torch.no_grad():
        return torch.stack(_losses(model, images, labels, loss)).mean().item()


def pixel_accuracies(model: Any, batch: list[dict]) -> list[float]:
    """Return the fraction of the labeled pixels of each image whose class is right; 0 if none."""
    images = [item["image"].to(model.device, torch.float32) for item in batch]
    found = []
    with eval_mode(model), torch.no_grad():
        for logits, item in zip(network_logits(model, images), batch, strict=True):
            labels = item["sem_seg"].to(logits.device)
            right = logits.argmax(dim=0) == labels
            found.append((right.sum() / (labels != IGNORED).sum().clamp(min=1)).item())
    return found


def _losses(model: Any, images: list[Tensor], labels: list[Tensor], loss: str) -> list[Tensor]:
    """Compute the loss of each image: the weighted mean cross-entropy of its labeled pixels."""
    found = []
    for logits, true in zip(network_logits(model, images), labels, strict=True):
        each = cross_entropy(logits[None], true[None], ignore_index=IGNORED, reduction="none")[0]
        weights = LOSSES[loss](logits.detach(), true)
        found.append((weights * each).sum() / (true != IGNORED).sum().clamp(min=1))
    return found


def network_logits(model: Any, images: list[Tensor]) -> list[Tensor]:
    """Compute the logits of images, `(classes, H, W)` each, with gradients.

    Detectron2's own forward pass pads the images of a batch without gradients.

    Args:
        model: Detectron2's `SemanticSegmentor` in eval mode.
        images: images `(C, H, W)`, float32 in [0, 255], on the model's device.
    """
    divisor = max(model.backbone.size_divisibility, 1)
    height, width = (-(-max(x.shape[dim] for x in images) // divisor) * divisor for dim in (1, 2))
    normalized = [(x - model.pixel_mean) / model.pixel_std for x in images]
    padded = [pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in normalized]
    found, _ = model.sem_seg_head(model.backbone(torch.stack(padded)), None)
    return [logits[:, : x.shape[1], : x.shape[2]] for logits, x in zip(found, images, strict=True)]
