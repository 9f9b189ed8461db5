"""Adversarial pretraining and transfer of image classifiers. It never imports detectron2.

The public names are in `__init__.pyi`. They are imported at their first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
