"""Adversarially robust ImageNet backbones for Detectron2.

The public names are in `__init__.pyi`. They are imported at their first use.
"""

import contextlib

__version__ = "0.2.0"

with contextlib.suppress(ModuleNotFoundError):  # install-detectron2 needs no other packages
    import lazy_loader

    __getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
