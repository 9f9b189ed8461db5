"""Time --help and common errors of all commands, as whole processes.

python benchmarks/start_up.py --repeats 3

The errors are an invalid value and a missing file, listed in `tests/support/commands.py`. A test
checks that none of these calls imports torch.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from robust_backbones.core.cli import Parser  # noqa: E402
from tests.support.commands import MISTAKES, commands  # noqa: E402

TARGET = 1.5  # seconds


def seconds(words: list[str], repeats: int) -> float:
    """Median wall time of a command, seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
        taken.append(time.perf_counter() - start)
        if done.returncode not in (0, 2):
            sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.decode()}")
    return statistics.median(taken)


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--repeats", type=int, default=3, help="runs of each command")
    args = p.parse_args(argv)
    print("| command | arguments | median s | target / time |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, start in commands().items():
            for words in ("--help", *MISTAKES[name]):
                given = words.replace("OUT", f"{folder}/new").split()
                taken = seconds([*start, *given], args.repeats)
                print(f"| `{name}` | `{words}` | {taken:.2f} | {TARGET / taken:.1f} |", flush=True)


if __name__ == "__main__":
    main()
