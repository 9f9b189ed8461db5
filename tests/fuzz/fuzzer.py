"""Fuzzing of every reader of foreign files: changed files in, success or a UserError out.

python -m tests.fuzz.fuzzer --cases 10000                    # all targets, minutes each
python -m tests.fuzz.fuzzer --targets voc study --cases 500
python -m tests.fuzz.fuzzer --targets voc --case 4711        # that case again, with its traceback
python -m tests.fuzz.fuzzer --targets voc --engine atheris --seconds 120   # led by coverage

A case is a function of --seed, target and number. It may succeed, or raise a UserError that names
the file and can be printed. All else is a finding: another exception, a crash, more than SECONDS or
MEMORY, a program started, a connection, a file written elsewhere. Findings are saved in --output.
Exit codes: 0 nothing found, 1 findings, 2 a mistake of the user.
"""

import argparse
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

from robust_backbones.core.errors import UserError, user_errors
from tests.fuzz.judge import OUTCOMES, judge, signature, watch
from tests.fuzz.mutations import mutate
from tests.support import ROOT

SECONDS = 10.0  # of a case
MEMORY = 1 << 30  # bytes that a case may take besides what is there before
SAVED = 3  # cases of each cause


def input_of(target, seeds: list, seed: int, name: str, case: int) -> tuple[str, bytes]:
    """The file of a case, relative to the folder, and its bytes."""
    rng = random.Random(f"{seed}/{name}/{case}")
    chosen = rng.choice(seeds)
    return chosen.file, changed(target, seeds, chosen, chosen.data, rng)


def changed(target, seeds: list, chosen, data: bytes, rng: random.Random) -> bytes:
    """Bytes made of `data`, or written anew in the form of the chosen seed, or both."""
    if chosen.build and rng.random() < 0.6:
        data = chosen.build(rng)
        if rng.random() < 0.8:
            return data
    return mutate(data, rng, [s.data for s in seeds], target.words)


def run(name: str, target, cases: range, seed: int, output: Path) -> dict:
    """All cases, in processes that end with the first crash and are replaced.

    Returns:
        The numbers of `OUTCOMES`, seconds, and `{signature: [cases]}` of the findings.
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
    """Cases until one ends the process; the number of the next, and `(case, outcome, text)`."""
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
    """In the child: bounds, then case after case."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(watch)
    with open(log, "w") as crash, open(results, "w", buffering=1) as told:
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
    """One case in this process, without bounds; prints what came of it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary)
        seeds = target.seeds(folder)
        file, data = input_of(target, seeds, seed, name, case)
        sys.addaudithook(watch)
        outcome, text = judge(target, folder, file, data)
    print(f"{name} {case}: {file}, {len(data)} bytes, {data[:300]!r}: {outcome}\n{text}")
    return int(outcome == "findings")


# What atheris counts the lines of; PyYAML would be a hundred times slower so.
COUNTED = ["robust_backbones", "classification", "PIL", "fvcore", "yacs", "webdataset"]


def _targets(engine: str) -> dict:
    """The table; imported here, so that --help comes at once and atheris sees what is imported."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=COUNTED):
            from tests.fuzz.targets import TARGETS
    else:
        from tests.fuzz.targets import TARGETS
    return TARGETS


def guided(name: str, target, seconds: int) -> None:
    """Let atheris choose by the lines that they reach which changed files to change on; it ends
    this process. The changes are its own and ours, in turn.

    Its bounds are those of libFuzzer: three times SECONDS a case, since counting lines makes
    Python slow, and 4 GB.
    """
    import atheris

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    seeds = target.seeds(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, given in enumerate(seeds):
        (corpus / f"{number}").write_bytes(bytes([number]) + given.data)
    sys.addaudithook(watch)
    logging.disable()  # what the readers notice would hide the figures

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

    # keep_seed: whichever file is changed, the others beside it are read, too, so that the first
    # seed reaches the lines of all and the rest would be dropped.
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--cases", type=int, default=1000, help="of each target (default: 1000)")
    p.add_argument("--seed", type=int, default=0, help="of all cases (default: 0)")
    p.add_argument("--targets", nargs="+", metavar="NAME", help="default: all")
    p.add_argument("--case", type=int, help="only this one, told in full")
    p.add_argument(
        "--output",
        type=Path,
        default=ROOT / "output" / "fuzz",
        help="of findings (default: output/fuzz)",
    )
    p.add_argument("--engine", choices=("random", "atheris"), default="random")
    p.add_argument("--seconds", type=int, default=120, help="of atheris (default: 120)")
    return p


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    with user_errors():
        if args.engine == "atheris" and not importlib.util.find_spec("atheris"):
            raise UserError("--engine atheris needs the package atheris; run: pip install atheris.")
        targets = _targets(args.engine)
        names = args.targets or list(targets)
        if unknown := [name for name in names if name not in targets]:
            raise UserError(f"target '{unknown[0]}' is unknown; one of: {', '.join(targets)}.")
        if args.engine == "atheris":
            if len(names) > 1:
                raise UserError("atheris ends the process with its target: give one, --targets.")
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
            print(f"{name}: {len(cases)} x {cause}; the first: --targets {name} --case {cases[0]}")
        return int(bool(causes))


if __name__ == "__main__":
    sys.exit(main())
