"""One line on a terminal that says how far a run is."""

import sys
import time
from collections.abc import Callable


def line(total: int, done: int = 0) -> Callable[[int, str], None]:
    """Keeps one line on a terminal (stderr) up to date; elsewhere it does nothing.

    Args:
        total: images in the run.
        done: images that an earlier start has done; they do not count for the speed.

    Returns:
        `(images, doing)`: call it with the images done since the last call and what goes on.
    """
    if not sys.stderr.isatty():
        return lambda images, doing: None
    start, seen, width = time.perf_counter(), 0, 0

    def show(images: int, doing: str) -> None:
        nonlocal seen, width
        seen += images
        text = f"{done + seen}/{total} images, {doing}"
        if seen:
            rate = seen / (time.perf_counter() - start)
            text += f", {rate:.3g} images/s, {(total - done - seen) / rate:.0f} s left"
        end = "\r" + " " * len(text) + "\r" if done + seen >= total else ""
        print(f"\r{text:<{width}}{end}", end="", file=sys.stderr, flush=True)
        width = len(text)

    return show
