"""Schedule the unfinished runs of a study in dependency order, and retry failures."""

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from classification.study.commands import read_metrics
from classification.study.execute import BUSY, FINISHED, INTERRUPTED, LOST, Attempt, failures
from classification.study.executors import Executor
from classification.study.file import StudyRun
from robust_backbones.core.errors import EXIT_USER_ERROR

MAX_LOSSES = 20  # allowed cluster losses per run; the pauses add up to about three hours
LONGEST_PAUSE = 600.0  # longest pause in seconds before a lost run is started again
OUT_OF_GPU_MEMORY = "CUDA out of memory"  # in the message of an exception of PyTorch
POLL = 0.5  # seconds to wait for the end of a run before checking signals and pauses


@dataclass
class Queue:
    """Queue of the runs of a study during their execution.

    Attributes:
        runs: all runs, in the order in which they should start.
        executor: executor of the runs.
        max_attempts: maximum number of starts of a failing run, including starts by earlier calls.
        pause: seconds before the second start, doubled for each later start.
        at_once: maximum number of simultaneous runs; None: the executor's.
        on_end: function called with the run, the attempt and the queue whenever a run has ended.
        finished: folders of the finished runs.
        failed: error of each run that is not started again, by the run's folder.
        running: number of running runs.
    """

    runs: list[StudyRun]
    executor: Executor
    max_attempts: int = 3
    pause: float = 30.0
    at_once: int | None = None
    on_end: Callable[[StudyRun, Attempt, "Queue"], None] = lambda run, attempt, queue: None
    finished: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)
    running: int = 0
    # Number of failures in this call, by the run's folder. They are also counted here because they
    # cannot be recorded in the folders if the disk is full.
    _failures: Counter = field(default_factory=Counter)
    _losses: Counter = field(default_factory=Counter)  # cluster losses by folder of the run
    _losses_in_a_row: int = 0
    _no_start_before: float = 0.0  # time.monotonic() of the next connection attempt
    _dependents: dict[Path, list[StudyRun]] = field(default_factory=lambda: defaultdict(list))

    def work(self, stop_requested: Callable[[], bool] = lambda: False) -> bool:
        """Execute every unfinished run. Return False if `stop_requested` stopped the execution."""
        self._read_states()
        position = {run.folder: i for i, run in enumerate(self.runs)}
        ready = [(position[run.folder], run) for run in self.runs if self._is_ready(run)]
        heapq.heapify(ready)
        paused: list[tuple[float, int, StudyRun]] = []  # (time of the next start, position, run)
        stopped = False
        while self.running or (ready or paused) and not stopped:
            if not stopped and stop_requested():
                stopped = True
                self.executor.stop()
            while paused and paused[0][0] <= time.monotonic():
                heapq.heappush(ready, heapq.heappop(paused)[1:])
            while ready and not stopped and self._has_room(ready[0][1]):
                self.executor.start(heapq.heappop(ready)[1])
                self.running += 1
            for run, attempt in self.executor.wait(POLL):
                self.running -= 1
                delay = self._note_end(run, attempt)
                if delay is not None:
                    entry = (time.monotonic() + delay, position[run.folder], run)
                    heapq.heappush(paused, entry)
                if run.folder in self.finished:
                    for other in self._dependents[run.folder]:
                        if self._is_ready(other):
                            heapq.heappush(ready, (position[other.folder], other))
                self.on_end(run, attempt, self)
        return not stopped

    def _read_states(self) -> None:
        """Read from the runs' folders which runs have finished or failed before."""
        for run in self.runs:
            for folder in run.needs:
                self._dependents[folder].append(run)
            if read_metrics(run.result) is not None:
                self.finished.add(run.folder)
        for run in self.runs:
            if run.folder not in self.finished and (past := failures(run.folder)):
                if self._is_final(past[-1]["code"], past[-1]["error"], len(past)):
                    self._give_up(run.folder, past[-1]["error"])

    def _is_ready(self, run: StudyRun) -> bool:
        done = run.folder in self.finished or run.folder in self.failed
        return not done and self.finished.issuperset(run.needs)

    def _note_end(self, run: StudyRun, attempt: Attempt) -> float | None:
        """Record how a run ended.

        Returns:
            Seconds until the next start of the run, or None if it is not started again.
        """
        if run.store:
            run.store.fetch(run.folder)  # another machine may have executed the run
        if attempt.state == LOST:
            return self._note_loss(run, attempt)
        self._losses_in_a_row, self._no_start_before = 0, 0.0
        if attempt.state == FINISHED:
            self.finished.add(run.folder)
            return None
        if attempt.state in (BUSY, INTERRUPTED):
            return self.pause if attempt.state == BUSY else 0.0
        self._failures[run.folder] += 1
        count = max(len(failures(run.folder)), self._failures[run.folder])
        if self._is_final(attempt.code, attempt.error, count):
            self._give_up(run.folder, attempt.error)
            return None
        return self.pause * 2 ** (count - 1)

    def _note_loss(self, run: StudyRun, attempt: Attempt) -> float | None:
        """Pause all starts after the loss of a cluster, which is not a failure of the run."""
        self._losses[run.folder] += 1
        if (losses := self._losses[run.folder]) >= MAX_LOSSES:
            self._give_up(run.folder, f"cluster lost {losses} times: {attempt.error}")
            return None
        now = time.monotonic()
        if now >= self._no_start_before:  # a lost cluster ends all of its runs
            pause = min(self.pause * 2**self._losses_in_a_row, LONGEST_PAUSE)
            self._losses_in_a_row += 1
            self._no_start_before = now + pause
            print(f"cluster lost ({attempt.error}). Trying again in {pause:.0f} s.", flush=True)
        return self._no_start_before - now

    def _has_room(self, run: StudyRun) -> bool:
        if time.monotonic() < self._no_start_before or self.running == self.at_once:
            return False
        return self.executor.has_room(run)

    def _is_final(self, code: int, error: str, failures: int) -> bool:
        """Return whether a failure is final, so that the run is not started again."""
        same_again = code == EXIT_USER_ERROR or OUT_OF_GPU_MEMORY in error
        return same_again or failures >= self.max_attempts

    def _give_up(self, folder: Path, error: str) -> None:
        """Mark a run and all runs that need its files as failed."""
        self.failed[folder] = error
        for other in self._dependents[folder]:
            if other.folder not in self.failed and other.folder not in self.finished:
                self._give_up(other.folder, f"needs {folder.name}, which failed")
