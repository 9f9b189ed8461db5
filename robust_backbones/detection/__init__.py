"""Detection with robust backbones in Detectron2.

Importing this package patches Detectron2 where necessary. The import also registers backbones,
`robust://` paths and datasets with Detectron2.
"""

from robust_backbones.detection.compat import bridge

bridge()

from robust_backbones.detection import (  # noqa: E402
    backbone,  # noqa: F401  (registration)
    path_handler,  # noqa: F401  (registration)
    timm_backbone,  # noqa: F401  (registration)
)
from robust_backbones.detection.config import add_robust_config  # noqa: E402
from robust_backbones.detection.data import registry as data  # noqa: E402, F401  (registration)
from robust_backbones.detection.inspect.predictor import load  # noqa: E402

__all__ = ["add_robust_config", "load"]
