"""Time a report of the paper's full grid with simulated results.

python benchmarks/report.py --simulate output/simulated --output output/simulated-report
python benchmarks/report.py --simulate output/simulated --output output/simulated-report --images 0

The grid has 12 tasks x 4 networks x 10 eps x 2 modes x 3 trials = 2,880 results. The accuracies are
random: a difficulty per task, an offset per network, a maximum over eps, and noise per trial. They
are no measurements, and each result has `settings.simulated`. Existing results in the folder are
used again.
"""

import hashlib
import itertools
import math
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from classification.datasets.specs import DATASETS, SUITE  # noqa: E402
from classification.report import records, run  # noqa: E402
from classification.report.answers import find_answers  # noqa: E402
from classification.report.contents.build import build_sections, collect  # noqa: E402
from classification.report.published import ARCHS, EPS  # noqa: E402
from classification.transfer import options as transfer_options  # noqa: E402
from classification.transfer.protocols import MODES  # noqa: E402
from classification.transfer.settings import SourceNetwork  # noqa: E402
from robust_backbones.core import results  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.errors import UserError, user_errors  # noqa: E402
from robust_backbones.core.input_statistics import IMAGENET  # noqa: E402

LEVELS = (0.0, *EPS)


def simulate(
    folder: Path,
    images: int,
    *,
    tasks=SUITE,
    archs=ARCHS,
    levels=LEVELS,
    modes=MODES,
    trials: int = 3,
) -> int:
    """Write simulated results and return their number.

    Args:
        folder: folder for the results.
        images: test images with predictions; 0 writes no predictions.
        tasks, archs, levels, modes: axes of the grid. Levels are values of eps.
        trials: trials of each cell.
    """
    cells = list(itertools.product(tasks, archs, levels, modes, range(trials)))
    for task, arch, eps, mode, seed in cells:
        weights = f"robust://{arch}_l2_eps{eps:g}"
        run = Path(folder, mode, task, f"{arch}-eps{eps:g}-seed{seed}")
        accuracy = _accuracy(task, arch, eps, mode, seed)
        classes = DATASETS[task].classes
        labels = np.arange(math.ceil(images / classes) * classes) % classes  # balanced classes
        if images:
            predictions = _predictions(labels, accuracy, f"{run.name} {task} {mode}")
            accuracy = 100 * float(np.mean(predictions == labels))
            _per_image(run / "per_image.csv", labels, predictions)
        _per_class(run / "per_class.csv", task, accuracy)
        _result(run, task, mode, weights, arch, seed, accuracy)
    return len(cells)


def _draw(*names) -> random.Random:
    """A random generator seeded with the names."""
    return random.Random(hashlib.sha256(" ".join(map(str, names)).encode()).digest())


def _accuracy(task: str, arch: str, eps: float, mode: str, seed: int) -> float:
    """Simulate the accuracy of a trial, percent."""
    base = _draw(task).uniform(-0.5, 1.8) + (0.8 if mode == "full-network" else 0)
    base += 0.25 * ARCHS.index(arch)
    peak, gain = _draw(task, mode).uniform(-2, 0.7), _draw("gain", task, mode).uniform(-0.1, 0.4)
    if eps:
        base += gain * math.exp(-((math.log10(eps) - peak) ** 2)) - 0.05
    base += _draw(task, arch, eps, mode, seed).gauss(0, 0.03)
    return 100 / (1 + math.exp(-base))


def _predictions(labels: np.ndarray, accuracy: float, name: str) -> np.ndarray:
    """Simulate predictions of this accuracy, with images that are hard for all networks."""
    hard = np.random.default_rng(0).random(len(labels))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    noise = np.random.default_rng(seed).random(len(labels))
    right = 0.8 * hard + 0.2 * noise < accuracy / 100
    return np.where(right, labels, labels + 1)


def _per_image(path: Path, labels: np.ndarray, predictions: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.column_stack([np.arange(len(labels)), labels, predictions])
    np.savetxt(path, rows, "%d", ",", header="index,label,trial0", comments="")


def _per_class(path: Path, task: str, accuracy: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw, lines = _draw(path), ["class,images,right,recall_percent"]
    for number in range(DATASETS[task].classes):
        right = min(30, max(0, round(30 * accuracy / 100 + draw.gauss(0, 3))))
        lines.append(f"{task} class {number},30,{right},{100 * right / 30:.4f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _result(run: Path, task, mode, weights, arch, seed, accuracy) -> None:
    """Write the result of one trial like `classification.transfer`."""
    words = [
        "--weights",
        weights,
        "--dataset",
        task,
        "--mode",
        mode,
        "--protocol",
        "paper",
        "--seed",
        str(seed),
    ]
    args = transfer_options.parser("").parse_args(words)
    digest = hashlib.sha256(weights.encode()).hexdigest()
    row = DATASETS[task]
    data = {
        split: {
            "name": task,
            "images": row.images.get(split) or 0,
            "fingerprint": hashlib.sha256(f"{task} {split}".encode()).hexdigest(),
        }
        for split in ("train", "test")
    }
    chosen = {"lr": 0.01}
    trial = {
        "seed": seed,
        "accuracy": accuracy,
        "chosen": chosen,
        "candidates": [chosen | {"value": accuracy}],
    }
    found = {
        "metric": row.metric,
        "accuracy": accuracy,
        "sd": None,
        "min": accuracy,
        "max": accuracy,
        "images": data["test"]["images"],
        "trials": [trial],
    }
    source = {"arch": arch, "dataset": "imagenet", "method": None, "constraint": None, "eps": None}
    settings = transfer_options.make_settings(
        args, SourceNetwork(arch, 224, IMAGENET, digest, {})
    ).to_json() | {
        "weights": weights,
        "source": source,
        "simulated": True,
        "data": {split: part["fingerprint"] for split, part in data.items()},
    }
    results.write(
        run / "result.json",
        kind="transfer",
        metrics=found,
        settings=settings,
        weights_sha256=digest,
        data=data,
        seed=seed,
        seconds=0.0,
        device="cpu",
    )


def measure(folder: Path, output: Path) -> None:
    """Print the wall and CPU seconds of each step, and the size of the page."""
    steps, last = [], [time.perf_counter(), time.process_time()]

    def done(name: str) -> None:
        now = [time.perf_counter(), time.process_time()]
        steps.append((name, now[0] - last[0], now[1] - last[1]))
        last[:] = now

    found, problems = records.read([folder])
    done(f"read {len(found)} results")
    results = collect(found)
    done(f"compare the networks of {len(results.groups)} groups")
    answers, sections = find_answers(results), build_sections(results)
    done(f"work out {len(sections)} sections")
    page = run.write(results, answers, sections, problems, output)
    done(f"draw {sum(len(s.figures) for s in sections)} figures, write tables and page")
    print("| step | wall s | CPU s |\n|---|---|---|")
    total = ("total", *(sum(step[k] for step in steps) for k in (1, 2)))
    for name, wall, processor in [*steps, total]:
        print(f"| {name} | {wall:.1f} | {processor:.1f} |")
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument(
        "--simulate",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the simulated results, new or existing",
    )
    p.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for the report"
    )
    p.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="test images with predictions, rounded up to a multiple of the classes",
    )
    args = p.parse_args(argv)
    if args.images < 0:
        raise UserError(f"--images {args.images}: must be at least 0.")
    if not args.simulate.exists():
        began = time.perf_counter()
        count = simulate(args.simulate, args.images)
        print(f"{count} results simulated in {time.perf_counter() - began:.1f} s", flush=True)
    measure(args.simulate, args.output)


if __name__ == "__main__":
    with user_errors():
        main()
