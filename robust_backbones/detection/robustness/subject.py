"""What an evaluation is of: a trained detector and images of a data set, checked before work."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from robust_backbones import __version__
from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.detection import config
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.data import registry, subset
from robust_backbones.detection.data.subset import Item
from robust_backbones.detection.training.trainer import Trainer, flatten

# Parts of the configuration that no figure of an evaluation depends on.
_FREE = ("OUTPUT_DIR", "SOLVER.", "DATALOADER.", "DATASETS.TRAIN", "MODEL.WEIGHTS")


@dataclass(frozen=True)
class Subject:
    """A detector's config, the digest of its weights, and the images it is measured on."""

    cfg: CfgNode
    weights_sha256: str
    dataset: str
    items: list[Item]

    def settings(self, **more: Any) -> dict:
        """All that decides the figures, in plain JSON types; `more` is the evaluation's part."""
        flat = flatten(yaml.safe_load(self.cfg.dump()), ".")
        return {
            "weights_sha256": self.weights_sha256,
            "dataset": self.dataset,
            "fingerprint": registry.fingerprint(self.dataset)["fingerprint"],
            "images": len(self.items),
            "code_version": __version__,
            **more,
            "config": {key: v for key, v in flat.items() if not key.startswith(_FREE)},
        }


def find(path: str | Path, overrides: list[str], images: int | None, seed: int) -> Subject:
    """Check everything that can be before work starts.

    Args:
        path: config file of the detector.
        overrides: `KEY VALUE` pairs; `MODEL.WEIGHTS` names a whole detector.
        images: how many, chosen at random; None for all.
        seed: of that choice.

    Raises:
        UserError: the config, the weights, the data set or the number of images is not usable.
    """
    cfg = config.load_config(path, overrides)
    notice = config.set_device(cfg, 1)
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"DATASETS.TEST is {cfg.DATASETS.TEST}; give one data set: DATASETS.TEST \"['NAME']\"."
        )
    if not cfg.MODEL.WEIGHTS:
        raise UserError('MODEL.WEIGHTS is ""; give the checkpoint of a trained detector.')
    config.check_inputs(cfg, train=False)
    if notice:
        print(notice, file=sys.stderr)
    cfg.freeze()
    (name,) = cfg.DATASETS.TEST
    items = subset.choose(name, images, seed)
    return Subject(cfg, sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS)), name, items)


def load_model(cfg: CfgNode) -> nn.Module:
    """The detector of `MODEL.WEIGHTS`, in eval mode, its parameters without gradients.

    Raises:
        UserError: any of its tensors did not come from the file.
    """
    model = Trainer.build_model(cfg)
    StrictCheckpointer(model, save_to_disk=False).load(cfg.MODEL.WEIGHTS)
    return model.eval().requires_grad_(False)


def write_result(
    found: Subject,
    folder: Path,
    *,
    kind: str,
    metrics: dict,
    settings: dict,
    seed: int,
    seconds: float,
    warnings: list[dict] | None,
) -> None:
    """Write `result.json`, as docs/formats.md has it, and tell the warnings."""
    results.write(
        Path(folder) / "result.json",
        kind=kind,
        metrics=metrics,
        warnings=warnings,
        seed=seed,
        settings=settings | {"weights": found.cfg.MODEL.WEIGHTS},
        seconds=seconds,
        weights_sha256=found.weights_sha256,
        data={found.dataset: {"images": len(found.items), "fingerprint": settings["fingerprint"]}},
    )
    for warning in warnings or ():
        print(f"warning: {warning['message']}", file=sys.stderr)
