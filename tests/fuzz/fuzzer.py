"""Fuzz every reader of foreign files: a changed file must be accepted or raise a UserError.

python -m tests.fuzz.fuzzer --cases 10000                    # all targets, minutes each
python -m tests.fuzz.fuzzer --targets voc study --cases 500
python -m tests.fuzz.fuzzer --targets voc --case 4711        # repeat this case with its traceback
python -m tests.fuzz.fuzzer --targets voc --engine atheris --seconds 120   # guided by coverage

A case depends only on --seed, target and number. It may succeed, or raise a UserError that names
the file and can be printed. Anything else is a finding: another exception, a crash, too much time
or memory, a started program, a connection, or a file written elsewhere. Findings are saved in
--output. Exit codes: 0 no findings, 1 findings, 2 invalid arguments.
"""

import collections
import contextlib
import faulthandler
import importlib.util
import json
import logging
import mmap
import os
import random
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors
from tests.fuzz.judge import OUTCOMES, judge, signature, watch
from tests.fuzz.mutations import mutate
from tests.support import ROOT

SECONDS = 10.0  # time limit of a case
MEMORY = 1 << 30  # memory limit of a case, bytes
SAVED = 3  # saved cases per cause


def input_of(target, seeds: list, seed: int, name: str, case: int) -> tuple[str, bytes]:
    """Create a case: path relative to the folder, and bytes."""
    rng = random.Random(f"{seed}/{name}/{case}")
    chosen = rng.choice(seeds)
    return chosen.file, changed(target, seeds, chosen, chosen.data, rng)


def changed(target, seeds: list, chosen, data: bytes, rng: random.Random) -> bytes:
    """Mutate `data`, build a similar file from the chosen seed, or both."""
    if chosen.build and rng.random() < 0.6:
        data = chosen.build(rng)
        if rng.random() < 0.8:
            return data
    return mutate(data, rng, [s.data for s in seeds], target.words)


def run(name: str, target, cases: range, seed: int, output: Path) -> dict:
    """Run all cases in child processes. A process that crashes is replaced.

    Returns:
        Counts of `OUTCOMES`, seconds, and `{signature: [cases]}` of the findings.
    """
    counts, found = collections.Counter(), collections.defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary, name)
        folder.mkdir()
        seeds = target.seeds(folder)
        for given in seeds:
            (folder / given.file).parent.mkdir(parents=True, exist_ok=True)
        started, first, log = time.time(), cases.start, Path(temporary, "log")
        log.touch()
        while first < cases.stop:
            first, lines = _stretch(
                name, target, seeds, folder, range(first, cases.stop), seed, log
            )
            for case, outcome, text in lines:
                counts[outcome] += 1
                if outcome == "findings":
                    found[signature(text)].append(case)
                    if len(found[signature(text)]) <= SAVED:
                        _save(output, name, target, seeds, seed, case, text)
    return {"outcomes": dict(counts), "seconds": time.time() - started, "found": dict(found)}


def _stretch(name, target, seeds, folder, cases, seed, log) -> tuple[int, list]:
    """Run cases until one ends the process. Returns the next number and `(case, outcome, text)`."""
    at = mmap.mmap(-1, 8)
    results = log.with_name("results")
    results.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            _work(name, target, seeds, folder, cases, seed, log, results, at)
            code = 0
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    if not status:
        return cases.stop, lines
    case = struct.unpack("q", at[:])[0]
    kind = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "time-out or end"
    text = f"{log.read_text(errors='replace')}\n{kind}"
    return case + 1, [*(line for line in lines if line[0] != case), (case, "findings", text)]


def _work(name, target, seeds, folder, cases, seed, log, results, at) -> None:
    """Set the limits in the child process and run its cases."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(watch)
    with open(log, "w") as crash, open(results, "w", buffering=1) as told:
        # Enabling it again would not restore handlers that a library has replaced since.
        faulthandler.disable()
        faulthandler.enable(crash)
        for case in cases:
            at[:] = struct.pack("q", case)
            crash.truncate(0)
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=crash)
            outcome, text = judge(target, folder, *input_of(target, seeds, seed, name, case))
            faulthandler.cancel_dump_traceback_later()
            told.write(json.dumps([case, outcome, text if outcome == "findings" else ""]) + "\n")


def _save(output: Path, name: str, target, seeds, seed: int, case: int, text: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    file, data = input_of(target, seeds, seed, name, case)
    (output / f"{name}-{case}-{Path(file).name}").write_bytes(data)
    (output / f"{name}-{case}.txt").write_text(text, errors="backslashreplace")


def replay(name: str, target, case: int, seed: int) -> int:
    """Run one case in this process, without limits, and print its outcome."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary)
        seeds = target.seeds(folder)
        file, data = input_of(target, seeds, seed, name, case)
        sys.addaudithook(watch)
        outcome, text = judge(target, folder, file, data)
    print(f"{name} {case}: {file}, {len(data)} bytes, {data[:300]!r}: {outcome}\n{text}")
    return int(outcome == "findings")


# Modules that atheris instruments. PyYAML would be a hundred times slower.
COUNTED = ["robust_backbones", "classification", "PIL", "fvcore", "yacs", "webdataset"]


def _targets(engine: str) -> dict:
    """Import the table of targets: after --help, and under the instrumentation of atheris."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=COUNTED):
            from tests.fuzz.targets import TARGETS
    else:
        from tests.fuzz.targets import TARGETS
    return TARGETS


def guided(name: str, target, seconds: int) -> None:
    """Fuzz with atheris, guided by line coverage. It ends this process.

    Mutations are atheris's or ours, at random. libFuzzer limits a case to 4 GB and three times
    SECONDS, because counting lines makes Python slow.
    """
    import atheris

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    seeds = target.seeds(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, given in enumerate(seeds):
        (corpus / f"{number}").write_bytes(bytes([number]) + given.data)
    sys.addaudithook(watch)
    logging.disable()  # messages of the readers would hide the statistics

    def one(data: bytes) -> None:
        file = seeds[(data[0] if data else 0) % len(seeds)].file
        outcome, text = judge(target, folder, file, data[1:])
        if outcome == "findings":
            raise RuntimeError(text)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if not data or rng.random() < 0.5:
            return atheris.Mutate(data, longest)
        chosen = seeds[data[0] % len(seeds)]
        return (data[:1] + changed(target, seeds, chosen, data[1:], rng))[:longest]

    # Every case also reads the companion files, so the first seed covers the lines of all seeds.
    # Without keep_seed, the other seeds would be dropped.
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={int(3 * SECONDS)}",
            "-rss_limit_mb=4096",
            "-keep_seed=1",
            "-len_control=0",
            "-print_final_stats=1",
            str(corpus),
        ],
        one,
        custom_mutator=change,
    )
    atheris.Fuzz()


def parser() -> Parser:
    """Build the parser."""
    p = Parser(description=__doc__)
    p.add_argument("--cases", type=int, default=1000, help="cases per target")
    p.add_argument("--seed", type=int, default=0, help="random seed of all cases")
    p.add_argument("--targets", nargs="+", metavar="NAME", help="targets (default: all)")
    p.add_argument(
        "--case", type=int, help="run only this case, with all details (default: all cases)"
    )
    p.add_argument(
        "--output",
        type=Path,
        default=ROOT / "output" / "fuzz",
        help="folder for findings (default: output/fuzz)",
    )
    p.add_argument(
        "--engine", choices=("random", "atheris"), default="random", help="source of the cases"
    )
    p.add_argument("--seconds", type=int, default=120, help="duration of atheris")
    return p


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    with user_errors():
        if args.engine == "atheris" and not importlib.util.find_spec("atheris"):
            raise UserError("--engine atheris: the package atheris is missing. pip install atheris")
        targets = _targets(args.engine)
        names = args.targets or list(targets)
        if unknown := [name for name in names if name not in targets]:
            raise UserError(f"target '{unknown[0]}' is unknown. Choose from {', '.join(targets)}.")
        if args.engine == "atheris":
            if len(names) > 1:
                raise UserError("--engine atheris: give exactly one target with --targets.")
            guided(names[0], targets[names[0]], args.seconds)
        if args.case is not None:
            return max(replay(name, targets[name], args.case, args.seed) for name in names)
        print("| target | cases | accepted | refused | findings | causes | seconds |")
        print("|---|---|---|---|---|---|---|")
        causes = []
        for name in names:
            told = run(name, targets[name], range(args.cases), args.seed, args.output)
            numbers = [told["outcomes"].get(outcome, 0) for outcome in OUTCOMES]
            cells = [name, sum(numbers), *numbers, len(told["found"]), round(told["seconds"])]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            causes += [(name, cause, cases) for cause, cases in told["found"].items()]
        for name, cause, cases in causes:
            print(f"{name}: {len(cases)} x {cause}. First case: --targets {name} --case {cases[0]}")
        return int(bool(causes))


if __name__ == "__main__":
    sys.exit(main())
