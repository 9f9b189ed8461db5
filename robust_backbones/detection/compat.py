"""Make Detectron2 0.6 run with current NumPy and Pillow, and without its C++ extension.

Call `bridge()` before the first import of Detectron2. It applies `core.detectron2_patches` to the
modules of Detectron2 while they are imported. The copy of `robust-backbones install-detectron2`
contains the patches, and newer releases do not need them: both are imported as they are.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence

from robust_backbones.core.detectron2_patches import MISSING_EXTENSION, MODULES, patched
from robust_backbones.core.errors import UserError
from robust_backbones.core.extras import missing

# Packages of the extra `detection` that this package and Detectron2 import.
_REQUIRED = ("pycocotools", "hotcoco", "fvcore", "iopath", "yacs", "omegaconf", "cloudpickle")


def bridge() -> None:
    """Patch Detectron2 where necessary, so that it can be imported.

    Raises:
        UserError: Detectron2 or a package of the extra `detection` is not installed, or a module
            that needs a patch was imported before.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.submodule_search_locations is None:
        raise UserError(missing("Detectron2", "detection"))
    if absent := [name for name in _REQUIRED if importlib.util.find_spec(name) is None]:
        raise UserError(missing(absent[0], "detection"))
    _refuse_late_patches()
    if not any(isinstance(finder, _PatchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PatchFinder())
    with warnings.catch_warnings():
        # Detectron2's imports warn about deprecated parts of PyTorch and setuptools. Users cannot
        # fix these warnings.
        warnings.simplefilter("ignore")
        importlib.import_module("detectron2.model_zoo")


def silence_detectron2() -> None:
    """Hide PyTorch's warnings about Detectron2's code. Users cannot fix them."""
    for message in ("torch.meshgrid", "The given NumPy array is not writable"):
        warnings.filterwarnings("ignore", message=message)


class _PatchFinder(importlib.abc.MetaPathFinder):
    """Find the modules of Detectron2 that need a patch, and the extension if it is not built."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, module = name.partition(".")
        if package != "detectron2" or not path:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None and module == "_C":
            return importlib.util.spec_from_file_location(name, MISSING_EXTENSION)
        if found is None or not isinstance(found.loader, importlib.machinery.SourceFileLoader):
            return None
        loader = _PatchedLoader(name, found.loader.path)
        if loader.patched_source() is None:
            return None
        found.loader = loader
        return found


class _PatchedLoader(importlib.machinery.SourceFileLoader):
    """Load a module of Detectron2 with its patches. Bytecode is not cached."""

    def patched_source(self) -> str | None:
        """Return the patched source code, or None if it needs no patch."""
        module = self.name.partition(".")[2]
        module += ".__init__" if self.is_package(self.name) else ""
        if module not in MODULES:
            return None
        source = self.get_source(self.name)
        assert source is not None
        changed = patched(module, source)
        return None if changed == source else changed

    def get_code(self, fullname: str) -> types.CodeType:
        source = self.patched_source()
        assert source is not None
        return self.source_to_code(source.encode(), self.path)


def _refuse_late_patches() -> None:
    """Reject modules that were imported before, without the patches that they need."""
    for name, module in list(sys.modules.items()):
        loader = getattr(module, "__loader__", None)
        if not name.startswith("detectron2.") or isinstance(loader, _PatchedLoader):
            continue
        if isinstance(loader, importlib.machinery.SourceFileLoader):
            if _PatchedLoader(name, loader.path).patched_source() is not None:
                raise UserError(
                    f"{name} was imported without the patches that it needs. Import "
                    "robust_backbones.detection first, or install the patched Detectron2: "
                    "robust-backbones install-detectron2 --replace"
                )
