"""Code, messages and documents use plain phrases and American spelling."""

import json

import pytest

from tests.support import ROOT, words

FILES = words.files([ROOT / name for name in words.PATHS])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words(path):
    assert not list(words.hits(path))


@pytest.mark.parametrize(
    ("name", "source", "hit"),
    [
        ("a.py", '"""Read the file anew."""\n', "anew"),
        ("a.py", "x = 1  # what it is\n", "what it is"),
        ("a.py", "def visualise():\n    pass\n", "visualise"),
        ("a.py", "grey_image = 1\n", "grey"),
        ("a.py", 'print(f"{1} lies in the folder")\n', "lies in"),
        ("a.yaml", "eps: 1  # beside the others\n", "beside"),
        ("a.yaml", "# what it\n# is\n", "what it is"),
        ("a.md", "# Title\n\nThe mean is that\nof the paper.\n", "that of"),
        ("a.md", "```\ntransfer --trials 3    # so many trials\n```\n", "so many"),
        ("a.ipynb", json.dumps({"cells": [{"cell_type": "markdown", "source": ["luck"]}]}), "luck"),
    ],
)
def test_phrases_are_found(tmp_path, name, source, hit):
    path = tmp_path / name
    path.write_text(source)
    (line,) = words.hits(path)
    assert f"'{hit}'" in line


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.py", '"""Sort by learning rate; the radius eps is 4/255."""\ncolor = normalize = 1\n'),
        ("a.md", "All pixels lie in [0, 1]. The networks exhibit and the analyses show this.\n"),
        ("a.md", "Images are of the same size. As a rule of thumb, use 16 for good results.\n"),
        ("a.md", "| `--normalisation` | renamed |\n"),
        ("a.yaml", "name: visualise  # draws images\n"),
    ],
)
def test_standard_words_are_not_phrases(tmp_path, name, source):
    path = tmp_path / name
    path.write_text(source)
    assert not list(words.hits(path))
