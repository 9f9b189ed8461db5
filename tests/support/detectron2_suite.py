"""Run the test suite of Detectron2 0.6 on the installed Detectron2.

python -m tests.support.detectron2_suite /path/to/detectron2    # a clone at the tag v0.6

The exit status is 0 only if exactly the tests of `KNOWN` fail. The run takes about 5 minutes on one
CPU core. It has neither network nor datasets, so that its result does not depend on them.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


def _missing(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is None


def _no_extension() -> bool:
    file = importlib.util.find_spec("detectron2._C")
    return file is None or "install-detectron2" in Path(str(file.origin)).read_text(errors="ignore")


@dataclass(frozen=True)
class Known:
    """Tests that fail for one reason.

    Attributes:
        reason: why they fail.
        tests: names of the tests below `tests.`, separated by white space. A line with a colon is
            a prefix of the names that follow it.
        applies: whether the reason holds in this environment.
    """

    reason: str
    tests: str
    applies: Callable[[], bool] = lambda: True

    def names(self) -> set[str]:
        """Return the full names of the tests."""
        found, prefix = set(), ""
        for word in self.tests.split():
            if word.endswith(":"):
                prefix = word[:-1] + "."
            else:
                found.add(prefix + word)
        return found


KNOWN = (
    Known(
        "rotated boxes need the C++ extension",
        """
        layers.test_nms_rotated.TestNMSRotated: test_batched_nms_rotated_0_degree_cpu
            test_nms_rotated_0_degree_cpu test_nms_rotated_90_degrees_cpu
            test_nms_rotated_180_degrees_cpu
        layers.test_nms_rotated.TestScriptable: test_scriptable_cpu
        layers.test_roi_align_rotated.ROIAlignRotatedTest: test_empty_box
            test_forward_output_0_90_180_270 test_resize test_roi_align_rotated_gradcheck_cpu
        modeling.test_roi_heads.ROIHeadsTest: test_rroi_heads
        modeling.test_roi_pooler.TestROIPooler: test_roialignv2_roialignrotated_match_cpu
        modeling.test_rpn.RPNTest: test_rrpn
        structures.test_rotated_boxes.TestRotatedBoxesLayer: test_iou_0_dim_cpu test_iou_extreme
            test_iou_half_overlap_cpu test_iou_issue_2154 test_iou_issue_2167 test_iou_precision
        structures.test_rotated_boxes.TestRotatedBoxesStructure: test_pairwise_iou_0_degree
            test_pairwise_iou_45_degrees test_pairwise_iou_issue1207
            test_pairwise_iou_issue1207_simplified test_pairwise_iou_large_close_boxes
            test_pairwise_iou_many_boxes test_pairwise_iou_orthogonal
        """,
        _no_extension,
    ),
    Known(
        "PyTorch no longer contains Caffe2",
        "test_export_caffe2.TestCaffe2Export: testMaskRCNN testRetinaNet",
        _missing("caffe2"),
    ),
    Known(
        "weights and images are downloaded",
        """
        data.test_detection_utils.TestTransformAnnotations: test_opencv_exif_orientation
            test_read_exif_orientation
        test_export_torchscript.TestScripting: testMaskRCNNC4 testMaskRCNNFPN testRetinaNet
        test_export_torchscript.TestTracing: testMaskRCNNC4 testMaskRCNNFPN testRetinaNet
        """,
    ),
    Known(
        "COCO's files are needed",
        """
        data.test_coco_evaluation.TestCOCOeval: test_unknown_category
        data.test_dataset.TestDataLoader: test_build_dataloader_train
            test_build_iterable_dataloader_train
        test_engine.TestTrainer: test_default_trainer
        """,
    ),
    Known(
        "pycocotools' loadRes fails with NumPy 2 if it is called twice",
        "data.test_coco_evaluation.TestCOCOeval: test_fast_eval",
    ),
    Known(
        "black is not installed",
        "config.test_lazy_config.TestLazyPythonConfig: test_to_py",
        _missing("black"),
    ),
    Known(
        "shapely is not installed",
        "data.test_transforms.TestTransforms: test_resize_and_crop",
        _missing("shapely"),
    ),
)


def run(source: Path) -> dict[str, str]:
    """Run the suite, and return the outcome of each test.

    Args:
        source: clone of Detectron2 at the tag v0.6. Only its tests are used.

    Returns:
        `{name below "tests.": "passed", "failed" or "skipped"}`.
    """
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    environment.pop("CI", None)  # skips some tests
    for scheme in ("http", "https"):  # no server listens there, so downloads fail
        environment[f"{scheme}_proxy"] = "http://127.0.0.1:9"
    with tempfile.TemporaryDirectory() as folder:
        # Next to its sources, the suite would import the sources.
        shutil.copytree(source / "tests", Path(folder, "tests"))
        environment["DETECTRON2_DATASETS"] = folder
        flags = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--tb=line", "--junitxml=log.xml"]
        words = [sys.executable, "-m", "pytest", *flags, "tests"]
        subprocess.run(words, cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL)
        return outcomes(Path(folder, "log.xml"))


def outcomes(log: Path) -> dict[str, str]:
    """Read a JUnit file of pytest. See `run` for the result."""
    found = {}
    for case in ElementTree.parse(log).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}".removeprefix("tests.")
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        found[name] = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
    return found


def faults(found: dict[str, str]) -> list[str]:
    """Return a line for each test whose outcome is unexpected.

    Args:
        found: output of `run`.
    """
    failed = {name for name, outcome in found.items() if outcome == "failed"}
    known = {name: known.reason for known in KNOWN if known.applies() for name in known.names()}
    lines = [f"{name} fails for an unknown reason" for name in failed - known.keys()]
    lines += [
        f"{name} is listed as '{reason}', but its outcome is {found.get(name, 'missing')}"
        for name, reason in known.items()
        if name not in failed
    ]
    return sorted(lines)


def main(argv: list[str]) -> int:
    """Run the suite of the clone `argv[0]`, and print counts and unexpected outcomes."""
    found = run(Path(argv[0]))
    counts = {kind: list(found.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()))
    for known in KNOWN:
        if known.applies():
            print(f"{len(known.names()):4} {known.reason}")
    lines = faults(found)
    print(*lines, sep="\n")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
