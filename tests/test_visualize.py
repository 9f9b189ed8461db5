"""Pictures: truth and prediction side by side, of a whole detector only."""

import numpy as np
import pytest
from test_trainer import small

from robust_backbones.detection import digit_scenes, trainer, visualize
from robust_backbones.errors import UserError


def test_pictures_of_a_detector(tmp_path, resnet18_backbone):
    made = trainer.Trainer(small(tmp_path, resnet18_backbone))
    made.checkpointer.save("detector")
    cfg = small(tmp_path, tmp_path / "detector.pth")
    pictures = list(visualize.truth_and_prediction(cfg, "digit_scenes_val", 2, scale=2.0))
    size = 2 * digit_scenes.SIZE
    assert [p.shape for p in pictures] == [(size, 2 * size, 3)] * 2
    assert all(p.dtype == np.uint8 and (p[:, :size] != p[:, size:]).any() for p in pictures)


def test_a_backbone_alone_cannot_predict(tmp_path, resnet18_backbone):
    cfg = small(tmp_path, resnet18_backbone)
    with pytest.raises(UserError, match="tensors of the model did not come .* a whole detector"):
        next(visualize.truth_and_prediction(cfg, "digit_scenes_val", 1))
