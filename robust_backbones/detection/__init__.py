"""Detection with robust backbones in Detectron2.

Importing this package patches Detectron2 where necessary. The import also registers backbones,
weights such as `robust://` paths, and datasets with Detectron2.

The public names are in `__init__.pyi`. They are imported at their first use.
"""

import lazy_loader

from robust_backbones.detection.compat import bridge

bridge()

import robust_backbones.detection.backbone  # noqa: E402
import robust_backbones.detection.data.registry  # noqa: E402
import robust_backbones.detection.path_handler  # noqa: E402
import robust_backbones.detection.timm_backbone  # noqa: E402, F401

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
