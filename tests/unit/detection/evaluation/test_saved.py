"""Files of saved predictions that are refused, and in which words."""

import re

from tests.support.exact_predictions import SCENES, exact_predictions, refused, write


def spoiled(tmp_path) -> dict[str, object]:
    """Prediction files that must be refused."""
    row = exact_predictions()[0]
    small_mask = {"size": [5, 5], "counts": "i0"}
    files = {
        "image": [row | {"image_id": 99999}],
        "class": [row | {"category_id": 77}],
        "keys": [{"image_id": 0}],
        "box": [row | {"bbox": [1, 2, 3]}],
        "number": [row | {"score": "high"}],
        "dictionary": {"annotations": []},
        "mask": [row | {"segmentation": small_mask}],
    }
    paths = {name: write(tmp_path / f"{name}.json", rows) for name, rows in files.items()}
    paths["cut"] = tmp_path / "cut.json"
    paths["cut"].write_text('[{"image_id": 3')
    return paths | {"none": tmp_path / "none.json"}


PREDICTIONS = {
    "image": r"predictions\[0\]: image_id is 99999. The ids in digit_scenes_val are 0, 1, 2",
    "class": "category_id is 77. The ids in digit_scenes_val are ",
    "keys": r"predictions\[0\] has no category_id. It must have image_id, category_id, score",
    "box": r"has bbox \[1, 2, 3\]. It must be \[x, y, width, height\], four finite numbers",
    "number": "has score 'high'. It must be a finite number",
    "dictionary": "must be a list of predictions, not a dict",
    "mask": r"has a mask of size \[5, 5\], but image 0 has \[96, 96\] \(height, width\)",
    "cut": "cut.json is not JSON",
    "none": "none.json: the file cannot be read .No such file or directory",
}


def test_prediction_files_that_cannot_be_right_are_refused(tmp_path, capsys):
    paths = spoiled(tmp_path)
    assert paths.keys() == PREDICTIONS.keys()
    for name, path in paths.items():
        line = refused(
            capsys,
            "--dataset",
            SCENES,
            "--predictions",
            path,
            "--images",
            1000,
            "--errors",
            "--output",
            tmp_path / "out",
        )
        assert re.search(PREDICTIONS[name], line), name
