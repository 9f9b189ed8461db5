"""Tasks of a comparison of classifiers."""

import pytest

from classification.compare.classifiers import KIND
from classification.compare.settings import CLASSIFICATION, CompareSettings
from robust_backbones.core.errors import UserError


@pytest.mark.parametrize(
    "data", [("digits", "digits"), ("photos", "photos/"), ("photos", "./photos")]
)
def test_the_same_images_twice(data):
    settings = CompareSettings(CLASSIFICATION, data, (), trials=1)
    with pytest.raises(UserError, match=f"DATA {data[0]} and {data[1]} are the same images"):
        KIND.tasks(settings, [])
