"""The bridges: enough for Detectron2, and nothing left behind."""

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from robust_backbones.core.detectron2_patches import MODULES, PATCHES, patched


def run(code: str) -> str:
    """Run code in a fresh Python, where nothing has been imported yet."""
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def without_extension():
    from robust_backbones.detection import compat  # noqa: F401  (bridges)

    if not hasattr(sys.modules.get("detectron2._C"), "MISSING"):
        pytest.skip("this Detectron2 has its C++ extension: the bridge must leave it alone")


def test_nothing_is_left_in_numpy_or_pillow():
    run("""
        import numpy, PIL.Image
        before = set(vars(numpy)) | {"PIL." + name for name in vars(PIL.Image)}
        import robust_backbones.detection
        import detectron2.engine, detectron2.evaluation, detectron2.data.transforms
        after = set(vars(numpy)) | {"PIL." + name for name in vars(PIL.Image)}
        new = {n for n in after - before if n.removeprefix("PIL.") in
               ("LINEAR", "int", "float", "str", "object", "bool")}
        assert not new, new
    """)


def test_a_spawned_process_can_unpickle_the_worker_of_a_training():
    """A process of a training on several GPUs does this first."""
    run("""
        import pickle
        name = "robust_backbones.detection.launch"
        worker = pickle.loads(f"c{name}\\n_worker\\n.".encode())
        assert worker.__module__ == name
    """)


def test_modules_of_the_release_see_the_types_they_use():
    run("""
        import robust_backbones.detection
        import numpy
        from detectron2.data.build import print_instances_class_histogram
        from detectron2.structures.masks import polygons_to_bitmask
        print_instances_class_histogram([{"annotations": [{"category_id": 0}]}], ["a"])  # np.int
        mask = polygons_to_bitmask([numpy.array([0.0, 0, 4, 0, 4, 4])], 5, 5)  # np.bool
        assert mask.dtype == bool
    """)


# Part of the name of a module of Detectron2 0.6 -> a line, and the line that runs today.
LINES = {
    "transforms": ("def f(interp=Image.LINEAR):", "def f(interp=Image.BILINEAR):"),
    "masks": ("np.int64(1), np.bool, np.float", "np.int64(1), bool, float"),
    "export": ("from .api import *", None),
    "hooks": (
        "isinstance(s, torch.optim.lr_scheduler._LRScheduler)",
        "isinstance(s, torch.optim.lr_scheduler.LRScheduler)",
    ),
    "common": (
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(tuple(self._fallback_candidates), k=1)",
    ),
    "fast_eval_api": ("class COCOeval_opt(COCOeval): pass\n", None),
}


@pytest.mark.parametrize("part", LINES)
def test_a_patch_changes_its_line_once(part):
    (module,) = [name for name in MODULES if part in name]
    old, new = LINES[part]
    found = patched(module, old)
    assert found != old
    assert found == new or new is None
    assert patched(module, found) == found
    assert found.startswith(old) or found.count("\n") == old.count("\n")
    assert patched("config.config", old) == old  # other modules are not touched


def test_every_patch_is_tested():
    assert len(LINES) == len(PATCHES)


def stand_in(folder: Path, files: dict) -> str:
    """Write a package `detectron2`, and return code that calls `bridge` on it."""
    for name, text in {"model_zoo/__init__.py": "", **files}.items():
        path = folder / "detectron2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in [folder / "detectron2", *(folder / "detectron2").rglob("*/")]:
        (path / "__init__.py").touch()
    # The file alone: its package imports the real Detectron2's parts
    return textwrap.dedent(f"""
        import sys, importlib.util
        sys.path.insert(0, {str(folder)!r})
        spec = importlib.util.spec_from_file_location(
            "compat", {str(Path(__file__).parents[3] / "robust_backbones/detection/compat.py")!r})
        compat = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compat)
    """)


def test_a_detectron2_that_needs_nothing_is_left_alone(tmp_path):
    """A stand-in for a newer, compiled Detectron2."""
    files = {
        "_C.py": "compiled = True",
        "data/transforms/transform.py": "import numpy as np\nx = np.int64(1)\n",
        "structures/masks.py": "",
    }
    run(
        stand_in(tmp_path, files)
        + textwrap.dedent("""
        compat.bridge()
        assert "detectron2._C" not in sys.modules
        import detectron2._C, detectron2.data.transforms.transform as transform
        assert detectron2._C.compiled
        assert type(transform.__loader__) is importlib.machinery.SourceFileLoader
    """)
    )


# The user's own copy of the release, in which no file may change.
OLD = {
    "data/transforms/transform.py": "from PIL import Image\ndef f(x=Image.LINEAR): return x\n",
    "structures/masks.py": "import numpy as np\ndef f(): return np.int\n",
    "evaluation/fast_eval_api.py": (
        "from detectron2 import _C\nCOCOeval = int\nclass COCOeval_opt(COCOeval): pass\n"
    ),
}


def test_another_copy_of_the_release_is_patched_in_memory(tmp_path):
    code = stand_in(tmp_path, OLD)
    run(
        code
        + textwrap.dedent("""
        import torch, PIL.Image
        compat.bridge()
        from detectron2.data.transforms.transform import f
        assert f() == PIL.Image.BILINEAR
        from detectron2.structures.masks import f
        assert f() is int
        from detectron2.evaluation.fast_eval_api import COCOeval_opt
        assert COCOeval_opt is int
    """)
    )
    assert {name: (tmp_path / "detectron2" / name).read_text() for name in OLD} == OLD


def test_a_patch_that_comes_too_late_is_an_error(tmp_path):
    run(
        stand_in(tmp_path, OLD)
        + textwrap.dedent("""
        import detectron2.structures.masks
        try:
            compat.bridge()
        except Exception as error:
            assert "detectron2.structures.masks was imported without" in str(error)
            assert "Import robust_backbones.detection first" in str(error)
        else:
            raise AssertionError
    """)
    )


# First lines of scripts in which Detectron2 is imported before this package.
FIRST = {
    "sorted imports": "from detectron2.engine import DefaultTrainer",
    "data": "from detectron2.data import MetadataCatalog",
    "evaluation": "from detectron2.evaluation import COCOEvaluator",
    "export": "from detectron2.export import TracingAdapter",
    "environment report": (
        "from detectron2.utils.collect_env import collect_env_info; collect_env_info()"
    ),
    # A worker that a notebook spawned unpickles this before anything else.
    "worker": (
        "import pickle; pickle.loads(b'cdetectron2.data.dataset_mapper\\nDatasetMapper\\n.')"
    ),
}


@pytest.fixture(scope="module")
def installed_release():
    file = Path(importlib.util.find_spec("detectron2").origin).with_name("_C.py")
    if not file.is_file() or "install-detectron2" not in file.read_text():
        pytest.skip("this Detectron2 was not installed by robust-backbones install-detectron2")


@pytest.mark.usefixtures("installed_release")
def test_detectron2_may_be_imported_first():
    run(
        "import importlib, sys, warnings; warnings.simplefilter('ignore')\n"
        + "\n".join(FIRST.values())
        + textwrap.dedent("""
        assert "robust_backbones.detection" not in sys.modules
        import robust_backbones.detection
        changed = [name for name, module in sys.modules.items()
                   if "Patched" in type(getattr(module, "__loader__", None)).__name__]
        assert not changed, changed
    """)
    )


@pytest.mark.usefixtures("installed_release")
def test_the_model_zoo_has_its_configs():
    importlib.import_module("robust_backbones.detection")
    from detectron2 import model_zoo

    for name in ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", "common/train.py"):
        assert Path(model_zoo.get_config_file(name)).is_file()
    assert model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.backbone


USES = {
    "rotated boxes": "from detectron2.layers import nms_rotated; nms_rotated(t(3, 5), t(3), 0.5)",
    "rotated overlap": (
        "from detectron2.layers.rotated_boxes import pairwise_iou_rotated;"
        "pairwise_iou_rotated(t(3, 5), t(3, 5))"
    ),
    # Its Python part refuses the CPU before it gets here.
    "deformable convolution": "import detectron2; detectron2._C.modulated_deform_conv_forward()",
}


@pytest.mark.usefixtures("without_extension")
@pytest.mark.parametrize("use", USES)
def test_using_the_missing_extension_says_so(use):
    import torch

    from robust_backbones.detection import compat  # noqa: F401

    with pytest.raises(RuntimeError, match=r"requires Detectron2's C\+\+ extension .* --official"):
        exec(USES[use], {"t": torch.rand})


@pytest.mark.usefixtures("without_extension")
def test_coco_evaluation_without_the_extension_is_pycocotools():
    from detectron2.evaluation.coco_evaluation import COCOeval_opt
    from pycocotools.cocoeval import COCOeval

    import robust_backbones.detection  # noqa: F401

    assert COCOeval_opt is COCOeval


def test_the_environment_report_works():
    out = run("""
        import robust_backbones.detection
        from detectron2.utils.collect_env import collect_env_info
        print(collect_env_info())
    """)
    assert "detectron2" in out


def test_the_exporter_is_there_without_caffe2():
    importlib.import_module("robust_backbones.detection")
    from detectron2 import export

    assert export.TracingAdapter.__module__ == "detectron2.export.flatten"
    assert callable(export.scripting_with_instances)
