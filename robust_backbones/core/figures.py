"""Draw Matplotlib figures without a display and save them atomically."""

import io
from pathlib import Path
from typing import Any

from robust_backbones.core.files import atomic


def new_figure(width: float, height: float) -> Any:
    """Create an empty figure that needs no display.

    The function does not change Matplotlib's global state (pyplot, backend).

    Args:
        width, height: size in inches.
    """
    # Imported here because Matplotlib takes a second to import, and most commands draw nothing.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path, dpi: int = 120) -> None:
    """Save a figure as PNG or SVG, depending on the suffix of the path.

    Args:
        dpi: resolution of a PNG file, in pixels per inch.

    Raises:
        UserError: the file could not be written.
    """
    ending = Path(path).suffix[1:]
    with atomic(path) as temporary:
        figure.savefig(temporary, format=ending, dpi=dpi, metadata=_METADATA[ending])


def svg_element(figure: Any) -> str:
    """Return the figure as an `<svg>` element that can be embedded in a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=_METADATA["svg"])
    return text.getvalue()[text.getvalue().index("<svg") :]


def literal(text: str) -> str:
    """Escape dollar signs, because matplotlib reads the text between two of them as a formula."""
    return text.replace("$", r"\$")


# SVG files contain no date, so that equal figures give equal files.
_METADATA: dict[str, dict] = {"png": {}, "svg": {"Date": None}}
