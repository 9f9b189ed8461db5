"""Measure how time and memory grow with the number of images, runs and results.

python benchmarks/growth.py --subjects features probe report --repeats 1

The sizes cover a factor of ten. Each size runs in its own process. The table has the CPU seconds of
the work and the increase of the peak memory. An exponent is the slope of log(time) or log(memory)
over log(size): 1 is linear growth, 0 no growth. Memory below 1 MB counts as 1 MB.
"""

import argparse
import contextlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.input_statistics import PRESETS  # noqa: E402

STEPS = (1, 3, 10)

# Each subject imports its own modules, because the imports of others would add to its memory.


def features(size: int, folder: Path):
    import torch

    from classification.datasets.split import ImageSplit
    from classification.models import Classifier
    from classification.transfer import features

    os.environ["ROBUST_BACKBONES_CACHE"] = str(folder)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(size) % 2
    source = ImageSplit(
        name="noise",
        split="test",
        classes=2,
        image_size=32,
        statistics=PRESETS["half"],
        augmentation="imagenet_plain",
        images=images,
        labels=labels,
        class_names=("a", "b"),
    )
    model = Classifier.build("resnet18", 2)
    return lambda: features.extract(model, source)


def probe(size: int, folder: Path):
    import probe as benchmark
    import torch

    from classification.transfer import probe

    x, y = benchmark.synthetic(size, 128, 10)
    # A fifth of the labels is random. Otherwise the classes may be almost separable, depending on
    # the size, and L-BFGS then needs a thousand iterations.
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(size, generator=generator) < 0.2
    y = torch.where(noise, torch.randint(0, 10, (size,), generator=generator), y)
    return lambda: probe.fit(x, y, 10)


def plan(size: int, folder: Path):
    from classification.study import summary
    from classification.study.commands import COMMANDS, Command
    from classification.study.file import read_study

    COMMANDS["nothing"] = Command(
        lambda options, place, gpus: [],
        lambda options: None,
        lambda name: False,
        (),
        lambda found: [],
    )
    path = folder / "study.yaml"
    axes = {"number": list(range(size))}
    path.write_text(
        json.dumps(
            {
                "output": f"{folder}/out",
                "command": "nothing",
                "axes": axes,
                "common": {"value": "{number}"},
            }
        )
    )
    return lambda: summary.plan(read_study(path))


def report(size: int, folder: Path):
    import report as benchmark

    from classification.report import records, run
    from classification.report.answers import find_answers
    from classification.report.contents.build import build_sections, collect

    trials = max(1, size // 16)
    benchmark.simulate(
        folder / "results",
        100,
        tasks=("cars", "dtd"),
        archs=benchmark.ARCHS[:2],
        levels=(0.0, 1.0),
        trials=trials,
    )

    def work():
        found, problems = records.read([folder / "results"])
        results = collect(found)
        sections = build_sections(results)
        run.write(results, find_answers(results), sections, problems, folder / "report")

    return work


def coco(size: int, folder: Path):
    import coco_evaluation as benchmark

    contents, found = benchmark.generate(size, 7 * size)
    found = [{k: v for k, v in row.items() if k != "segmentation"} for row in found]
    return lambda: benchmark.ours(contents, found, "bbox")


def annotations(size: int, folder: Path):
    import coco_evaluation as benchmark

    from robust_backbones.detection.data import coco_annotations as reader

    contents, _ = benchmark.generate(size, 7 * size)
    for image in contents["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    (folder / "a.json").write_text(json.dumps(contents))
    return lambda: reader.read_coco(folder, folder / "a.json")


SUBJECTS = {  # name -> counted objects, smallest size, function that prepares the work
    "features": ("images", 128, features),
    "probe": ("images", 500, probe),
    "plan": ("runs", 1000, plan),
    "report": ("results", 240, report),
    "coco": ("images", 300, coco),
    "annotations": ("images", 1000, annotations),
}


def memory() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(subject: str, size: int) -> None:
    """Print the seconds and MB of one size. Runs in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        work = SUBJECTS[subject][2](size, Path(folder))
        before, start = memory(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        print(time.process_time() - start, memory() - before)


def exponent(sizes, values) -> float:
    """Slope of a straight-line fit to the logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / sum(
        (a - middle) ** 2 for a in x
    )


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument(
        "--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="subjects"
    )
    p.add_argument("--scale", type=float, default=1.0, help="factor for all sizes")
    p.add_argument(
        "--repeats", type=int, default=1, help="processes per size, of which the fastest counts"
    )
    p.add_argument("--measure", nargs=2, metavar=("SUBJECT", "SIZE"), help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.measure:
        measure(args.measure[0], int(args.measure[1]))
        return
    print("| subject | sizes | seconds | exponent | memory, MB | memory exponent |")
    print("|---|---|---|---|---|---|")
    for subject in args.subjects:
        counted, smallest, _ = SUBJECTS[subject]
        sizes, found = [round(step * smallest * args.scale) for step in STEPS], []
        for size in sizes:
            runs = []
            for _ in range(args.repeats):
                words = [sys.executable, __file__, "--measure", subject, str(size)]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{subject}, {size}: {done.stderr}")
                runs.append(tuple(map(float, done.stdout.split()[-2:])))
            found.append(min(runs))
        seconds, megabytes = zip(*found, strict=True)
        counting = [max(m, 1.0) for m in megabytes]
        print(
            f"| {subject} | {', '.join(map(str, sizes))} {counted} | "
            f"{', '.join(f'{s:.2f}' for s in seconds)} | {exponent(sizes, seconds):.2f} | "
            f"{', '.join(f'{m:.0f}' for m in megabytes)} | {exponent(sizes, counting):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
