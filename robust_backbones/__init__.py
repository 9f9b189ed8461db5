"""Adversarially robust ImageNet backbones for Detectron2."""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["get_config_file"]

_PUBLIC = {"get_config_file": "robust_backbones.core.resources"}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    The import is late, because the imported module may itself import `__version__` from here.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
