"""The bridges: enough for Detectron2, and nothing left behind."""

import importlib
import subprocess
import sys
import textwrap

import pytest


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

    stub = sys.modules.get("detectron2._C")
    if type(stub).__name__ != "_MissingExtension":
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


def test_a_detectron2_that_needs_nothing_is_left_alone(tmp_path):
    """A stand-in for a newer, compiled Detectron2: no attribute and no module may be added."""
    package = tmp_path / "detectron2"
    for name in ("", "data/transforms/", "structures/", "model_zoo/"):
        (package / name).mkdir(parents=True, exist_ok=True)
        (package / name / "__init__.py").write_text("")
    (package / "data" / "__init__.py").write_text("")
    (package / "_C.py").write_text("compiled = True")
    (package / "data/transforms/transform.py").write_text("import numpy as np\nx = np.int64(1)\n")
    (package / "structures/masks.py").write_text("import numpy as np\n")
    run(f"""
        import sys, importlib.util
        sys.path.insert(0, {str(tmp_path)!r})
        # the file alone: its package imports the real Detectron2's parts
        spec = importlib.util.spec_from_file_location(
            "compat", {str(compat_file())!r})
        compat = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compat)
        compat.bridge()
        assert "detectron2._C" not in sys.modules
        assert "detectron2.structures.masks" not in sys.modules
        import detectron2._C, detectron2.structures.masks, numpy
        assert detectron2._C.compiled
        assert detectron2.structures.masks.np is numpy
    """)


def compat_file():
    from robust_backbones.detection import compat

    return compat.__file__


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
