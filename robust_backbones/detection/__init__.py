"""Import once: makes Detectron2 run, registers backbones, `robust://` paths and embedded data."""

from robust_backbones.detection.compat import bridge

bridge()

from robust_backbones.detection import backbone, data, paths  # noqa: E402, F401  (registration)
from robust_backbones.detection.config import add_robust_config  # noqa: E402
from robust_backbones.detection.predictor import load  # noqa: E402

__all__ = ["add_robust_config", "load"]
