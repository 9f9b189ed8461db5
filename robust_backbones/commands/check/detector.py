"""Steps that convert a classifier, load it into a small detector, attack it and detect with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.commands.check.steps import CheckSettings, Outcome
from robust_backbones.core.errors import UserError
from robust_backbones.detection.inspect import trial
from robust_backbones.detection.verify import verify_backbone

EPS = 1.0  # L2 norm of the attack's only step, pixels in [0, 1]


@dataclass(frozen=True)
class Backbone:
    """A converted file, and the architecture of its network."""

    path: Path
    arch: str


def convert(settings: CheckSettings, source: Checkpoint) -> Outcome:
    """Convert a classifier, and prove that the features of all stages are equal."""
    contents = export.detectron2_contents(source)
    differences = verify_backbone(source, contents["model"])
    path = settings.folder / f"{source.sha256[:16]}.pth"
    export.save(source, contents, "detectron2", path)
    largest, stages = max(differences.values()), len(differences)
    text = f"largest relative difference of features {largest:.1e} in {stages} stages"
    return Outcome(
        f"{source.arch}, {text}", Backbone(path, source.arch), {"differences": differences}
    )


def load(settings: CheckSettings, backbone: Backbone) -> Outcome:
    """Load a converted backbone strictly into a small detector."""
    model = trial.small_detector(backbone.path, backbone.arch)
    tensors = len(model.backbone.bottom_up.state_dict())
    return Outcome(f"{tensors} tensors of the backbone loaded into Faster R-CNN", model)


def attack(settings: CheckSettings, model: Any) -> Outcome:
    """Perturb an image by one PGD step, which must increase the loss within the ball."""
    before, after, norm = trial.attack_once(model, EPS)
    text = f"one PGD step of L2 norm {norm:.3g}: loss {before:.4g} -> {after:.4g}"
    if not (after > before and norm <= EPS * (1 + 1e-5)):
        raise UserError(
            f"{text}, but the loss must increase, and the norm must be at most {EPS:g}. Compare "
            "with the CPU: CUDA_VISIBLE_DEVICES= robust-backbones check."
        )
    return Outcome(text, facts={"loss": before, "attacked_loss": after, "norm": norm})


def detect(settings: CheckSettings, model: Any) -> Outcome:
    """Detect objects in an image. The heads are random, so only the numbers are checked."""
    boxes, scores = trial.detect_once(model)
    invalid = int((~boxes.isfinite()).any(1).sum() + (~scores.isfinite()).sum())
    if not len(boxes) or invalid:
        raise UserError(
            f"the detector returned {len(boxes)} boxes. {invalid} boxes or scores are not finite. "
            "Install matching versions of torch and torchvision."
        )
    return Outcome(f"{len(boxes)} boxes with random heads", facts={"boxes": len(boxes)})
