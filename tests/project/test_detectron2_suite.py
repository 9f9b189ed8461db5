"""Detectron2's own test suite: known failures, and a run where its source is given."""

import os
from pathlib import Path

import pytest

from tests.support import detectron2_suite

FAILING = {
    name: "failed" for known in detectron2_suite.KNOWN if known.applies() for name in known.names()
}


def test_names_are_listed_once():
    names = [name for known in detectron2_suite.KNOWN for name in known.names()]
    assert len(names) == len(set(names))
    assert all(name.count(".") >= 2 for name in names)


CAFFE2 = "test_export_caffe2.TestCaffe2Export.testRetinaNet"
# Outcomes that differ from the known ones -> the line about them
CHANGES = [
    ({}, []),
    ({"test_engine.TestTrainer.test_tensorboard_logging": "passed"}, []),
    ({"a.B.test_c": "failed"}, ["a.B.test_c fails for an unknown reason"]),
    ({CAFFE2: "passed"}, [f"{CAFFE2} is listed as 'PyTorch no longer contains Caffe2', but its "]),
    ({CAFFE2: "skipped"}, ["but its outcome is skipped"]),
]


@pytest.mark.parametrize(("change", "lines"), CHANGES)
def test_exactly_the_known_tests_may_fail(change, lines):
    found = detectron2_suite.faults(FAILING | change)
    assert len(found) == len(lines)
    assert all(text in line for text, line in zip(lines, found, strict=True))


@pytest.mark.slow
def test_the_suite_passes():
    """Set DETECTRON2_SOURCE to a clone at the tag v0.6. The run takes minutes."""
    source = os.environ.get("DETECTRON2_SOURCE")
    if not source:
        pytest.skip("DETECTRON2_SOURCE is not set")
    assert not detectron2_suite.faults(detectron2_suite.run(Path(source)))
