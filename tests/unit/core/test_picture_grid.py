"""Pictures in a grid: gaps, titles and cells of different sizes."""

import numpy as np
import pytest

from robust_backbones.core.picture_grid import GAP, arrange

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(height: int, width: int, color: tuple) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def where(drawn: np.ndarray, color: tuple) -> tuple[int, int, int, int]:
    """Top, left, bottom and right end of the pixels of one color."""
    rows, columns = np.nonzero((drawn == color).all(axis=2))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def test_pictures_are_unchanged_with_gaps_and_titles_above():
    drawn = arrange([[picture(100, 200, RED), picture(100, 200, BLUE)]], ("truth", "robust"))
    top, left, bottom, right = where(drawn, RED)
    assert (bottom - top, right - left, left) == (100, 200, 0)
    assert where(drawn, BLUE) == (top, 200 + round(GAP * 200), bottom, 400 + round(GAP * 200))
    assert drawn.shape == (bottom, 400 + round(GAP * 200), 3) and drawn.dtype == np.uint8
    gap = drawn[top:, 200 : 200 + round(GAP * 200)]
    assert (gap == 255).all()
    titles = drawn[:top].min(axis=2) < 128
    assert titles[:, :100].any() and titles[:, 206:306].any() and not titles[:, 150:206].any()


def test_rows_have_gaps_but_no_second_title():
    one = arrange([[picture(50, 60, RED)]], ("a",))
    drawn = arrange([[picture(50, 60, RED)], [picture(50, 60, BLUE)]], ("a",))
    top, *_ = where(drawn, RED)
    below, *_ = where(drawn, BLUE)
    assert below - top == 50 + round(GAP * 60)
    assert drawn.shape[0] == one.shape[0] + below - top


def test_pictures_of_different_sizes_do_not_overlap():
    rows = [
        [picture(30, 80, RED), picture(90, 40, BLUE)],
        [picture(50, 20, RED), picture(20, 60, BLUE)],
    ]
    drawn = arrange(rows, ("a", "b"))
    assert (drawn == RED).all(axis=2).sum() == 30 * 80 + 50 * 20
    assert (drawn == BLUE).all(axis=2).sum() == 90 * 40 + 20 * 60


@pytest.mark.parametrize("width", [1, 3, 40, 300])
@pytest.mark.parametrize("title", ["", "x", "a title that is much longer than its picture " * 3])
def test_titles_stay_above_their_column(width, title):
    drawn = arrange([[picture(5, width, RED), picture(5, 400, BLUE)]], (title, ""))
    top, left, _, right = where(drawn, RED)
    assert (left, right) == (0, width)
    if width >= 40:
        assert (drawn[:top, width:] == 255).all()
        assert (drawn[:top] < 255).any() == bool(title)


def test_every_row_has_a_picture_for_each_title():
    with pytest.raises(ValueError):
        arrange([[picture(5, 5, RED)]], ("a", "b"))
