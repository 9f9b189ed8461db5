"""The wish to stop: a signal is noted, and the run ends at the next good moment, all saved."""

import contextlib
import signal
from collections.abc import Iterator

STOPPED = 75  # exit code EX_TEMPFAIL: what schedulers take for "try again"


class Stopped(Exception):
    """The process was asked to stop, and does so at the next good moment."""


class StopSignals:
    """Whether SIGTERM or SIGINT (Ctrl-C) has come. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def watched(self) -> Iterator["StopSignals"]:
        """Note the signals during the block instead of dying of them."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
