"""Kill -9 at random moments: what is left, and how the runs end that go on with it.

python -m tests.faults.kills --kills 50
python -m tests.faults.kills --kills 5 --spawn --subjects "detector training"

A run is killed, all its processes with it, at a moment drawn uniformly from the time that it takes
undisturbed; it is started again and killed again, until it ends before its moment or has been
killed --chain times and is left alone: a chain. After every kill each file that has its final name
is read whole; the next start must go on from what was saved, not from before it; at the end of a
chain no temporary file is left, and all results and weights are those of the undisturbed run, bit
for bit. The first thing that is not so ends the program, with the folder kept.

Attempts are forked from a process that has imported everything, so that kills hit the work and not
the seconds of `import torch`; with --spawn each attempt is a Python of its own. What a run starts
itself (the runs of a study) is always a Python of its own. Of the kills of a study, every second
one leaves the running run alive, as a kill of one process does.
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

from tests.faults import subjects
from tests.faults.subjects import SUBJECTS, Subject, contents, same
from tests.support import ROOT

POLL = 0.002  # seconds between two looks at a running attempt


class Attempt:
    """A start of a command, in a process group of its own.

    Args:
        log: file for what it says.
        spawn: as a new Python, not a fork of this one.
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
        """The exit code if it ends by then, counted from its beginning; else None."""
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() - self.began >= seconds:
                return None
            time.sleep(POLL)

    def kill(self, everything: bool) -> None:
        """SIGKILL to its group, and to `everything` that it has started in other groups."""
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
    """Import what an attempt had imported at its end, so that its successors need not."""
    names = (place / "modules.txt").read_text().split("\n")
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: an attempt cannot be forked"


@dataclass
class Chain:
    """The kills of one subject, counted."""

    name: str
    place: Path
    spawn: bool
    kills: int = 0
    chains: int = 0
    torn: int = 0  # kills that left a temporary file behind
    files: int = 0  # read after a kill
    seconds: float = 0.0  # that an undisturbed run takes
    expected: dict = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        return SUBJECTS[self.name]

    def undisturbed(self) -> None:
        """Run it once, and once more for the time that it takes."""
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
        """Kill it that often, and leave it alone after at most `longest` kills in a row."""
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
        """All of the run and of the cache, temporary ones and locks included."""
        folders = (self.place / "run", self.place / "cache")
        found = [
            Path(top, name)
            for folder in folders
            for top, _, names in os.walk(folder)
            for name in names
        ]
        return [path for path in found if not path.name.endswith(".lock")]

    def _look(self) -> None:
        """Read every file with a final name to its end."""
        temporary = [path for path in self._files() if self._is_temporary(path)]
        self.torn += bool(temporary)
        for path in self._files():
            if path not in temporary and path.suffix not in (".jpg", ".xml"):
                try:
                    contents(path)
                except FileNotFoundError:  # a run that is still alive has replaced it
                    continue
                self.files += 1

    def _compare(self, before: list[str], ended: bool) -> None:
        """What an attempt found is what the one before had left; nothing is made twice."""
        log, after = self._log.read_text(errors="replace"), self.subject.saved(self.place)
        if self.subject.found is None:
            assert set(before) <= set(after), f"made a second time: {set(before) - set(after)}"
            return
        found = self.subject.found(log)
        if not (self.place / "run" / "result.json").exists():  # which ends what is saved, too
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
            assert same(value, self.expected[name]), f"{name} is not the undisturbed run's"

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
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--kills", type=int, default=50, help="of each subject (default: 50)")
    p.add_argument(
        "--chain", type=int, default=10, help="kills before a run is left alone (default: 10)"
    )
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    p.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    p.add_argument("--spawn", action="store_true", help="a new Python for each attempt")
    p.add_argument("--attempt", nargs=2, metavar=("SUBJECT", "PLACE"), help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.attempt:
        SUBJECTS[args.attempt[0]].start(Path(args.attempt[1]))
        return
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    os.environ["ROBUST_BACKBONES_CACHE"] = str(folder / "cache")
    subjects.make_inputs(folder)
    print(
        "| run | undisturbed, s | kills | runs to their end | kills amid a write "
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
