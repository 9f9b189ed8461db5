"""Kill runs with SIGKILL at random times, resume them, and compare the results.

python -m tests.faults.kills --kills 50
python -m tests.faults.kills --kills 5 --spawn --subjects "detector training"

A run and all its processes are killed at a random time within its normal duration, and the run is
started again. This repeats until the run finishes first, or until it was killed --chain times and
may finish. After every kill, all finished files must be readable, and the next start must resume
from the saved state. At the end, no temporary file may remain, and all results and weights must be
bit-identical to an undisturbed run. The first violation ends the program and keeps the folder.

Attempts are forked from a process that has already imported everything, so kills hit the work and
not the import of torch. With --spawn, each attempt is a new Python process. The runs of a study are
always new processes. Every second kill of a study kills only the study and not its current run.
"""

import argparse
import contextlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked

from robust_backbones.core.cli import Parser
from tests.faults import subjects
from tests.faults.subjects import SUBJECTS, Subject, contents, same
from tests.support import ROOT

POLL = 0.002  # seconds between checks of a running attempt


class Attempt:
    """A command that runs in its own process group.

    Args:
        name: key of `SUBJECTS`.
        place: folder of the run.
        log: file for the output.
        spawn: whether to start a new Python process instead of a fork.
    """

    def __init__(self, name: str, place: Path, log: Path, spawn: bool):
        self.began = time.monotonic()
        if spawn:
            with open(log, "wb") as file:
                words = [sys.executable, "-m", "tests.faults.kills", "--attempt", name, str(place)]
                self._pid = subprocess.Popen(
                    words, stdout=file, stderr=file, start_new_session=True, cwd=ROOT
                ).pid
        else:
            sys.stdout.flush()
            self._pid = os.fork()
            if not self._pid:
                os._exit(_in_child(SUBJECTS[name], place, log))

    def ended(self, seconds: float) -> int | None:
        """Wait until a time since the start. Returns the exit code, or None if it still runs."""
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() - self.began >= seconds:
                return None
            time.sleep(POLL)

    def kill(self, everything: bool) -> None:
        """Kill its process group and, with `everything`, also the processes in other groups."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGSTOP)
            others = _descendants(self._pid) if everything else []
            os.killpg(self._pid, signal.SIGKILL)
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _in_child(subject: Subject, place: Path, log: Path) -> int:
    os.setsid()
    with open(log, "w", buffering=1) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout = sys.stderr = file
        try:
            subject.start(place)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        (place / "modules.txt").write_text("\n".join(sys.modules))
        return code if isinstance(code, int) else 1


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, task.read_text().split())
    return children + [other for child in children for other in _descendants(child)]


def warm(place: Path) -> None:
    """Import the modules that an attempt imported, so that later attempts are faster."""
    names = (place / "modules.txt").read_text().split("\n")
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: an attempt cannot be forked"


@dataclass
class Chain:
    """Kills of one subject, with counts."""

    name: str
    place: Path
    spawn: bool
    kills: int = 0
    chains: int = 0
    torn: int = 0  # kills that left a temporary file
    files: int = 0  # files read after kills
    seconds: float = 0.0  # duration of an undisturbed run
    expected: dict = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        return SUBJECTS[self.name]

    def undisturbed(self) -> None:
        """Run once for the results, and once more for the duration."""
        for _ in range(2):
            self._clear()
            attempt = self._start()
            code = attempt.ended(600)
            self.seconds = time.monotonic() - attempt.began
            assert code == 0, f"exit code {code}; see {self._log}"
            if not self.spawn:
                warm(self.place)
        self.expected = self._results()
        self._clear()

    def run(self, kills: int, longest: int, moments: random.Random) -> None:
        """Kill runs `kills` times in total, and let one finish after at most `longest` kills."""
        here, last = 0, kills
        while self.kills < last or here:
            before = self.subject.saved(self.place)
            attempt = self._start()
            alone = here == longest or self.kills == last
            code = attempt.ended(600 if alone else moments.uniform(0, self.seconds))
            if code is None:
                attempt.kill(everything=self.kills % 2 == 0)
                self.kills, here = self.kills + 1, here + 1
                self._look()
            else:
                assert code == 0, f"exit code {code} after {here} kills; see {self._log}"
            self._compare(before, code is not None)
            if code is not None:
                self._end()
                self.chains, here = self.chains + 1, 0
                self._clear()

    @property
    def _log(self) -> Path:
        return self.place / "attempt.txt"

    def _start(self) -> Attempt:
        return Attempt(self.name, self.place, self._log, self.spawn)

    def _clear(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        cache = Path(os.environ["ROBUST_BACKBONES_CACHE"])
        shutil.rmtree(cache, ignore_errors=True)
        for folder in (self.place, cache):
            folder.mkdir()
        (self.place / "cache").symlink_to(cache)

    def _files(self) -> list[Path]:
        """All files of the run and of the cache, including temporary files and locks."""
        folders = (self.place / "run", self.place / "cache")
        found = [
            Path(top, name)
            for folder in folders
            for top, _, names in os.walk(folder)
            for name in names
        ]
        return [path for path in found if not path.name.endswith(".lock")]

    def _look(self) -> None:
        """Read every finished file completely."""
        temporary = [path for path in self._files() if self._is_temporary(path)]
        self.torn += bool(temporary)
        for path in self._files():
            if path not in temporary and path.suffix not in (".jpg", ".xml"):
                try:
                    contents(path)
                except FileNotFoundError:  # replaced by a run that is still alive
                    continue
                self.files += 1

    def _compare(self, before: list[str], ended: bool) -> None:
        """Check that the attempt resumed from the saved state and repeated nothing."""
        log, after = self._log.read_text(errors="replace"), self.subject.saved(self.place)
        if self.subject.found is None:
            assert set(before) <= set(after), f"created twice: {set(before) - set(after)}"
            return
        found = self.subject.found(log)
        if not (
            self.place / "run" / "result.json"
        ).exists():  # the final result removes the saved state
            steps = [list(map(_steps, lines[: len(before)])) for lines in (before, after)]
            assert steps[0] <= steps[1], f"saved was {before}, and then {after}"
        assert found == before[: len(found)], f"saved was {before}, found {found}"
        if ended and "Nothing to do" not in log and "finished already" not in log:
            assert found == before, f"saved was {before}, found {found}"

    def _end(self) -> None:
        left = [path for path in self._files() if self._is_temporary(path)]
        assert not left, f"left behind: {left}"
        results = self._results()
        assert results.keys() == self.expected.keys(), (results.keys(), self.expected.keys())
        for name, value in results.items():
            assert same(value, self.expected[name]), f"{name} differs from the undisturbed run"

    def _is_temporary(self, path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(self.place).parts)

    def _results(self) -> dict:
        found = {}
        for pattern in self.subject.results:
            for path in sorted(self.place.glob(pattern)):
                found[str(path.relative_to(self.place))] = contents(path)
        assert found, f"no result of {self.name}"
        return found


def _steps(line: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", line)))


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--kills", type=int, default=50, help="kills per subject")
    p.add_argument("--chain", type=int, default=10, help="kills before a run may finish")
    p.add_argument("--seed", type=int, default=0, help="random seed of the times")
    p.add_argument(
        "--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="subjects"
    )
    p.add_argument(
        "--spawn", action="store_true", help="start a new Python process for each attempt"
    )
    p.add_argument("--attempt", nargs=2, metavar=("SUBJECT", "PLACE"), help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.attempt:
        SUBJECTS[args.attempt[0]].start(Path(args.attempt[1]))
        return
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    os.environ["ROBUST_BACKBONES_CACHE"] = str(folder / "cache")
    subjects.make_inputs(folder)
    print(
        "| run | undisturbed, s | kills | finished runs | kills during a write "
        "| files read | seconds |\n|---|---|---|---|---|---|---|"
    )
    for name in args.subjects:
        began = time.monotonic()
        chain = Chain(name, folder / "place", args.spawn)
        try:
            chain.undisturbed()
            chain.run(args.kills, args.chain, random.Random(f"{args.seed} {name}"))
        except BaseException:
            print(f"{name}, kill {chain.kills}: see {folder}", file=sys.stderr)
            raise
        print(
            f"| {name} | {chain.seconds:.1f} | {chain.kills} | {chain.chains} | {chain.torn} "
            f"| {chain.files} | {time.monotonic() - began:.0f} |",
            flush=True,
        )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
