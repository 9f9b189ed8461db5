"""Running out of GPU memory is one line that names the options which help."""

import pytest
import torch

from classification.training import launch
from robust_backbones.core.errors import UserError
from robust_backbones.detection.training.trainer import Trainer
from tests.support.small_detectors import tiny_config
from tests.support.small_models import learning

MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB."


def fail(*args, **kwargs):
    raise torch.OutOfMemoryError(MESSAGE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            learning(batch_size=512, accumulate=2),
            ["--batch-size 512 --accumulate 2", "20.00 GiB", "larger --accumulate"],
        ),
        (None, ["20.00 GiB", "--device cpu"]),
    ],
)
def test_a_classifier_names_the_batch_size(settings, words, tmp_path):
    with pytest.raises(UserError) as error:
        launch.once(tmp_path / "run", {}, settings, torch.device("cpu"), fail, "")
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_detector_names_the_keys(tmp_path, monkeypatch):
    trainer = Trainer(tiny_config(OUTPUT_DIR=str(tmp_path)))
    monkeypatch.setattr(trainer._trainer, "run_step", fail)
    trainer.iter = 0
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH 4.*SOLVER.ACCUMULATE"):
        trainer.run_step()
