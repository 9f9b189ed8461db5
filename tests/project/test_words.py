"""Code and messages use plain phrases and American spelling."""

import pytest

from tests.support import ROOT, words

FILES = words.files([ROOT / name for name in ("robust_backbones", "classification", "tools")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words(path):
    assert not list(words.hits(path))


@pytest.mark.parametrize(
    ("source", "hit"),
    [
        ('"""Read the file anew."""\n', "anew"),
        ("x = 1  # what it is\n", "what it is"),
        ("def visualise():\n    pass\n", "visualise"),
        ("grey_image = 1\n", "grey"),
        ('print(f"{1} lies in the folder")\n', "lies in"),
    ],
)
def test_phrases_are_found(tmp_path, source, hit):
    path = tmp_path / "a.py"
    path.write_text(source)
    (line,) = words.hits(path)
    assert f"'{hit}'" in line


def test_standard_words_are_not_phrases(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        '"""Sort by learning rate; the radius eps is 4/255."""\ncolor = normalize = 1\n'
    )
    assert not list(words.hits(path))
