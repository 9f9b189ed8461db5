"""Make Detectron2 0.6 run with current NumPy and Pillow, and without its C++ extension.

Call `bridge()` before the first import of Detectron2. Each patch is applied only if it is needed,
so newer or compiled versions of Detectron2 are not changed. NumPy is not changed: only Detectron2's
modules get the names that NumPy removed. Pillow is changed only while one module is imported.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from PIL import Image

from robust_backbones.core.errors import UserError

# Aliases of built-in types. NumPy 1.24 removed them, and NumPy 2.0 added np.bool again.
_ALIASES = {"int": int, "float": float, "str": str, "object": object, "bool": bool}

# Packages of the extra `detection` that this package and Detectron2 import.
_REQUIRED = ("pycocotools", "hotcoco", "fvcore", "iopath", "yacs", "omegaconf", "cloudpickle")


def bridge() -> None:
    """Patch Detectron2 where necessary, so that it can be imported.

    Raises:
        UserError: Detectron2 or a package of the extra `detection` is not installed.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.submodule_search_locations is None:
        raise UserError(
            "Detectron2 is not installed. Run: pip install 'robust-backbones[detection]' && "
            "robust-backbones install-detectron2"
        )
    if missing := [name for name in _REQUIRED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"package {missing[0]} is not installed. Run: pip install 'robust-backbones[detection]'"
        )
    root = Path(spec.submodule_search_locations[0])
    with warnings.catch_warnings():
        # Detectron2's imports warn about deprecated parts of PyTorch and setuptools. Users cannot
        # fix these warnings.
        warnings.simplefilter("ignore")
        _bridge_extension()
        _bridge_pillow(root)
        _bridge_numpy(root)
        _bridge_export(root)
        importlib.import_module("detectron2.model_zoo")


def silence_detectron2() -> None:
    """Hide PyTorch's warnings about Detectron2's code. Users cannot fix them."""
    for message in ("torch.meshgrid", "The given NumPy array is not writable"):
        warnings.filterwarnings("ignore", message=message)


def _refuse(name: str, *_args: object, **_kwargs: object) -> NoReturn:
    raise RuntimeError(
        f"{name} requires Detectron2's C++ extension (rotated boxes, deformable convolution), "
        "which is not installed. Build it with: robust-backbones install-detectron2 --official"
    )


class _MissingExtension(types.ModuleType):
    """Placeholder for `detectron2._C`. Its functions raise an error that explains the fix."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system requests these names, not a user
            raise AttributeError(name)
        _refuse(f"detectron2._C.{name}")


# Operators that Detectron2's C++ extension registers with PyTorch.
_OPERATORS = (
    "nms_rotated",
    "box_iou_rotated",
    "roi_align_rotated_forward",
    "roi_align_rotated_backward",
)


def _bridge_extension() -> None:
    name = "detectron2._C"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    # These imports are here because `bridge` must first check that both packages are installed.
    import detectron2
    from pycocotools.cocoeval import COCOeval

    stub = _MissingExtension(name)
    stub.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    stub.__file__ = None
    # Detectron2's environment report calls these two functions.
    stub.get_compiler_version = stub.get_cuda_version = lambda: "not built"
    sys.modules[name] = detectron2._C = stub
    for operator in _OPERATORS:
        setattr(torch.ops.detectron2, operator, functools.partial(_refuse, operator))
    # Without the C++ extension, COCO evaluation uses pycocotools, as in newer Detectron2 releases.
    evaluation = types.ModuleType("detectron2.evaluation.fast_eval_api")
    evaluation.COCOeval_opt = COCOeval
    sys.modules[evaluation.__name__] = evaluation


def _bridge_pillow(root: Path) -> None:
    """Add `Image.LINEAR`, which Pillow 10 removed, while the module that uses it is imported."""
    if hasattr(Image, "LINEAR") or not _mentions(
        root, "data.transforms.transform", r"Image\.LINEAR"
    ):
        return
    Image.LINEAR = Image.BILINEAR
    try:
        importlib.import_module("detectron2.data.transforms.transform")
    finally:
        del Image.LINEAR


# Modules of Detectron2 0.6 that use the aliases that NumPy removed.
_NUMPY_USERS = (
    "structures.masks",
    "data.build",
    "data.datasets.pascal_voc",
    "evaluation.pascal_voc_evaluation",
    "evaluation.sem_seg_evaluation",
    "utils.visualizer",
    "utils.video_visualizer",
)


def _bridge_numpy(root: Path) -> None:
    missing = {name: alias for name, alias in _ALIASES.items() if name not in dir(numpy)}
    pattern = rf"\bnp\.({'|'.join(missing)})\b"
    users = [module for module in _NUMPY_USERS if missing and _mentions(root, module, pattern)]
    if not users:
        return
    view = types.ModuleType("numpy")  # forwards to NumPy, and has the removed aliases
    view.__getattr__ = lambda name: getattr(numpy, name)
    vars(view).update(missing)
    for user in users:
        importlib.import_module(f"detectron2.{user}").np = view


def _bridge_export(root: Path) -> None:
    """Import `detectron2.export` without Caffe2, which PyTorch no longer contains.

    TorchScript export does not need Caffe2. Newer releases of Detectron2 also skip the modules that
    need Caffe2 if it is missing.
    """
    name = "detectron2.export"
    if (
        name in sys.modules
        or importlib.util.find_spec("caffe2") is not None
        or not _mentions(root, "export.__init__", r"(?m)^from \.api import")
    ):
        return
    import detectron2  # imported here for the reason in `_bridge_extension`

    package = types.ModuleType(name)
    package.__path__ = [str(root / "export")]
    package.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
    sys.modules[name] = detectron2.export = package
    package.TracingAdapter = importlib.import_module(f"{name}.flatten").TracingAdapter
    script = importlib.import_module(f"{name}.torchscript")
    package.scripting_with_instances = script.scripting_with_instances
    package.dump_torchscript_IR = script.dump_torchscript_IR


def _mentions(root: Path, module: str, pattern: str) -> bool:
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    return path.is_file() and re.search(pattern, path.read_text(encoding="utf-8")) is not None
