"""Seconds until --help, or the message of a mistake, stands there; whole processes.

python benchmarks/start_up.py --repeats 3

All commands that the tree has, and for each what people get wrong: a wrong value and a missing
file (`tests/support/commands.py`, where a test sees to it that none of them imports torch).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.commands import MISTAKES, commands  # noqa: E402

AIM = 1.5  # seconds


def seconds(words: list[str], repeats: int) -> float:
    """Median of the wall time."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
        taken.append(time.perf_counter() - start)
        if done.returncode not in (0, 2):
            sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.decode()}")
    return statistics.median(taken)


def main(argv=None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=formatter)
    p.add_argument("--repeats", type=int, default=3, help="starts of each")
    args = p.parse_args(argv)
    print("| command | words | median s | aim / s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, start in commands().items():
            for words in ("--help", *MISTAKES[name]):
                given = words.replace("OUT", f"{folder}/new").split()
                taken = seconds([*start, *given], args.repeats)
                print(f"| `{name}` | `{words}` | {taken:.2f} | {AIM / taken:.1f} |", flush=True)


if __name__ == "__main__":
    main()
