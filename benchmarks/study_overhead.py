"""Measure the overhead of studies with thousands of tiny runs.

python benchmarks/study_overhead.py --runs 500 5000 --executor local ray

A run starts a Python process that writes a result. `process` is the time of this process alone, and
`per run` is the wall time of the study divided by its number of runs. `memory` is the memory of the
driver after a tenth of the runs and at the end.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from classification.study.commands import COMMANDS, Command  # noqa: E402
from classification.study.executors import Local  # noqa: E402
from classification.study.file import read_study  # noqa: E402
from classification.study.queue import Queue  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402

CODE = "import sys; open(sys.argv[1] + '/result.json', 'w').write('{\"metrics\": {}}')"


def lines(options: dict, folder: Path, gpus: int) -> list[list[str]]:
    return [["-I", "-S", "-c", CODE, str(folder)]]


def memory() -> float:
    """Memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(name: str, count: int, jobs: int) -> tuple[float, float, float, float]:
    """Seconds of reading the file and of all runs, and memory after a tenth and at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.yaml")
        path.write_text(
            json.dumps(
                {
                    "output": f"{folder}/out",
                    "command": "nothing",
                    "common": {"value": "{number}"},
                    "axes": {"number": list(range(count))},
                }
            )
        )
        began = time.perf_counter()
        runs = read_study(path)
        reading = time.perf_counter() - began
        if name == "ray":
            from classification.study.ray_executor import RayExecutor  # an optional package

            executor = RayExecutor()
        else:
            executor = Local(jobs)
        early = []

        def told(run, outcome, queue):
            if not early and len(queue.finished) >= count // 10:
                early.append(memory())

        began = time.perf_counter()
        queue = Queue(runs, executor, on_end=told)
        queue.work()
        seconds = time.perf_counter() - began
        executor.close()
        assert len(queue.finished) == count, queue.failed
        return reading, seconds, early[0], memory()


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--runs", type=int, nargs="+", default=[500, 5000], help="numbers of runs")
    p.add_argument(
        "--executor",
        nargs="+",
        choices=("local", "ray"),
        default=["local", "ray"],
        help="executors",
    )
    p.add_argument("--jobs", type=int, default=2, help="parallel runs of the local executor")
    args = p.parse_args(argv)
    COMMANDS["nothing"] = Command(
        lines, lambda options: None, lambda name: False, (), lambda found: []
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for _ in range(50):
            subprocess.run([sys.executable, "-I", "-S", "-c", CODE, folder], check=True)
        alone = (time.perf_counter() - began) / 50
    print("| executor | runs | reading, s | all runs, s | per run, ms | process, ms | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name in args.executor:
        for count in args.runs:
            reading, seconds, early, late = measure(name, count, args.jobs)
            each = 1000 * seconds / count
            print(
                f"| {name} | {count} | {reading:.2f} | {seconds:.1f} | {each:.1f} "
                f"| {1000 * alone:.1f} | {early:.0f}, {late:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
