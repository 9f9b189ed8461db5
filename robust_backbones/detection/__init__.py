"""Import once: Detectron2 made to run, the robust backbones and the embedded data registered."""

from robust_backbones.detection.compat import bridge

bridge()

from robust_backbones.detection import backbone, data  # noqa: E402, F401  (registration)
from robust_backbones.detection.config import add_robust_config  # noqa: E402

__all__ = ["add_robust_config"]
