"""Graceful shutdown: SIGTERM and SIGINT set a flag that a run checks at safe points."""

import contextlib
import signal
from collections.abc import Iterator

EXIT_RESUMABLE = 75  # EX_TEMPFAIL, which schedulers interpret as "retry"
GRACE = 600  # seconds that an interrupted run gets to save its state


class Stopped(Exception):
    """A stop signal ended the run early. A later start can resume the run."""


class StopSignals:
    """Flag that SIGTERM or SIGINT (Ctrl-C) sets. Ctrl-C after that interrupts at once.

    Attributes:
        requested: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def watch(self) -> Iterator["StopSignals"]:
        """Make signals set the flag instead of ending the process, until the block ends."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
