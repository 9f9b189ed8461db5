"""Arrange pictures in a grid with titles."""

from collections.abc import Sequence

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

GAP = 0.03  # distance between pictures, as a fraction of the widest picture


def arrange(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> np.ndarray:
    """Arrange pictures in rows and columns on white, with a title above each column.

    Pictures of different sizes are placed in the upper left corners of their cells.

    Args:
        rows: pictures of each row, `(H, W, 3)` uint8 RGB, one for each title.
        titles: title of each column.

    Returns:
        Image `(height, width, 3)`, uint8 RGB.
    """
    widths = [max(picture.shape[1] for picture in column) for column in zip(*rows, strict=True)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    gap = max(round(GAP * max(widths)), 1)
    font = _font(titles, widths)
    band = round(1.6 * font.size)  # height of the titles
    lefts = np.cumsum([0, *(width + gap for width in widths)])
    tops = np.cumsum([band, *(height + gap for height in heights)])
    canvas = Image.new("RGB", (int(lefts[-1]) - gap, int(tops[-1]) - gap), "white")
    for title, left, width in zip(titles, lefts, widths, strict=False):
        strip = Image.new("RGB", (width, band), "white")
        ImageDraw.Draw(strip).text((0, band // 2), title, fill="black", font=font, anchor="lm")
        canvas.paste(strip, (int(left), 0))
    for row, top in zip(rows, tops, strict=False):
        for picture, left in zip(row, lefts, strict=False):
            canvas.paste(Image.fromarray(picture), (int(left), int(top)))
    return np.asarray(canvas)


def _font(titles: Sequence[str], widths: Sequence[int]) -> ImageFont.FreeTypeFont:
    """Return the largest font, up to 1/18 of the width of a column, in which all titles fit."""
    path = font_manager.findfont("DejaVu Sans")
    size = max(widths) / 18
    font = ImageFont.truetype(path, max(round(size), 1))
    room = min(
        width / max(font.getlength(title), 1) for title, width in zip(titles, widths, strict=True)
    )
    return font if room >= 1 else ImageFont.truetype(path, max(int(size * room), 1))
