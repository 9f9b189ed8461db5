"""Patches that let Detectron2 0.6 run with current PyTorch, NumPy, Pillow and Python.

`install-detectron2` writes them into the copy that it installs. `detection.compat` applies them to
other copies while they are imported, and does not change files. Newer releases need no patch, and
only the last pattern matches them. Patches keep the line numbers, because TorchScript reads
functions from the files.
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Placeholder for the compiled module `detectron2._C`, a file to copy.
MISSING_EXTENSION = Path(__file__).with_name("missing_extension.py")


@dataclass(frozen=True)
class Patch:
    """Replacement of a regular expression in some modules.

    Attributes:
        modules: names of the modules below `detectron2`.
        pattern: regular expression. It does not match patched code.
        replacement: text for each match, with the same number of lines, or with more lines at the
            end of the file.
    """

    modules: tuple[str, ...]
    pattern: str
    replacement: str


PATCHES = (
    # Pillow 10 removed the alias.
    Patch(("data.transforms.transform",), r"\bImage\.LINEAR\b", "Image.BILINEAR"),
    # NumPy 1.24 removed the aliases of built-in types.
    Patch(
        (
            "structures.masks",
            "data.build",
            "data.datasets.pascal_voc",
            "evaluation.pascal_voc_evaluation",
            "evaluation.sem_seg_evaluation",
            "utils.visualizer",
            "utils.video_visualizer",
        ),
        r"\bnp\.(int|float|str|object|bool)\b",
        r"\1",
    ),
    # PyTorch no longer contains Caffe2. TorchScript export does not need it.
    Patch(
        ("export.__init__",),
        r"(?m)^from \.api import \*",
        'if __import__("importlib.util").util.find_spec("caffe2"): from .api import *',
    ),
    # In PyTorch 2.0, `_LRScheduler` is no longer the base class of all schedulers. Without the
    # patch, their state is neither saved nor resumed.
    Patch(
        ("engine.hooks",),
        r"\btorch\.optim\.lr_scheduler\._LRScheduler\b",
        "torch.optim.lr_scheduler.LRScheduler",
    ),
    # Since Python 3.11, random.sample rejects sets. Data mappers that return None need this.
    Patch(
        ("data.common",),
        r"\.sample\(self\._fallback_candidates,",
        ".sample(tuple(self._fallback_candidates),",
    ),
    # pycocotools evaluates if the extension is missing, as in newer releases. The added lines do
    # nothing if it is built.
    Patch(
        ("evaluation.fast_eval_api",),
        r"(?s)\A((?!.*MISSING).*class COCOeval_opt.*)\Z",
        r'\1\n\nif hasattr(_C, "MISSING"):\n    COCOeval_opt = COCOeval\n',
    ),
)
MODULES = frozenset(name for patch in PATCHES for name in patch.modules)


def patched(module: str, source: str) -> str:
    """Return the source code of a module with all its patches applied.

    Args:
        module: name of the module below `detectron2`, such as `data.build`. The name of a package
            ends with `.__init__`.
        source: its source code, patched or not.
    """
    for patch in PATCHES:
        if module in patch.modules:
            source = re.sub(patch.pattern, patch.replacement, source)
    return source
