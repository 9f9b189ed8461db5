"""A small untrained detector as the tests of prediction and drawing need it: a run folder."""

import numpy as np
import torch

from robust_backbones.detection.training import trainer
from tests.support.detector_runs import small


def write_run(folder, weights, **overrides):
    """`folder` as a run leaves it: `config.yaml`, a checkpoint of a whole detector on a backbone,
    and `last_checkpoint`; returns the checkpoint's path."""
    cfg = small(folder, weights, **overrides)
    torch.manual_seed(0)
    made = trainer.Trainer(cfg)
    made.resume_or_load(resume=False)
    # Deltas that move boxes and scores that differ: with the initial ones near zero, a mistake in
    # the order of pixels or colours would hardly show.
    with torch.no_grad():
        for name, tensor in made.model.named_parameters():
            if "box_predictor" in name or "proposal_generator" in name:
                tensor.normal_(std=0.2)
    made.checkpointer.save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


def photograph(height=80, width=120, seed=0):
    """`(height, width, 3)` uint8: smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    from PIL import Image

    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
