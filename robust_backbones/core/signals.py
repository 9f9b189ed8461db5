"""Graceful shutdown: SIGTERM and SIGINT set a flag that a run checks at safe points."""

import contextlib
import signal
from collections.abc import Iterator

EXIT_RESUMABLE = 75  # EX_TEMPFAIL, which schedulers interpret as "retry"


class Stopped(Exception):
    """A run ended early because a signal requested it. Its state is saved."""


class StopSignals:
    """Flag that SIGTERM or SIGINT (Ctrl-C) sets. A second Ctrl-C interrupts at once.

    Attributes:
        requested: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def watch(self) -> Iterator["StopSignals"]:
        """Set the flag on signals during the block, instead of ending the process."""
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
