"""Convert torchvision checkpoints to Detectron2's format: our converter against Detectron2's steps.

python benchmarks/conversion.py --arch resnet18 resnet50 --repeats 3

Detectron2's `tools/convert-torchvision-to-d2.py` loads, renames and pickles NumPy arrays, without
any check; `three steps` does the same. Ours also rejects damaged, unknown and unsafe files. With
verification, it compares the features of source and target. Each run is its own process. The table
has its wall time and peak memory, and both for `import torch` alone.
"""

import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from robust_backbones.core.cli import Parser  # noqa: E402

os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

THREE_STEPS = """
import pickle, sys, torch
state = torch.load(sys.argv[1], map_location="cpu")
renamed = {}
for name in list(state):
    new = name
    if "layer" not in new:
        new = "stem." + new
    for t in (1, 2, 3, 4):
        new = new.replace(f"layer{t}", f"res{t + 1}")
    for t in (1, 2, 3):
        new = new.replace(f"bn{t}", f"conv{t}.norm")
    new = new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    renamed[new] = state.pop(name).detach().numpy()
with open(sys.argv[2], "wb") as file:
    pickle.dump({"model": renamed, "__author__": "torchvision", "matching_heuristics": True}, file)
"""
RANDOM_WEIGHTS = """
import sys, torch
from robust_backbones.checkpoint.architectures import build_network
torch.save(build_network(sys.argv[1], 1000).state_dict(), sys.argv[2])
"""
BASE = "three steps, unverified"
CONVERT = [str(ROOT / "tools/convert.py"), "--force"]
VARIANTS = {  # name -> arguments of Python, and the suffix of the target
    BASE: (["-c", THREE_STEPS], ".pkl"),
    "ours, verified": (CONVERT, ".pth"),
    "ours, --no-verify": ([*CONVERT, "--no-verify"], ".pth"),
    "import torch": (["-c", "import torch"], ""),
}


def run(words: list[str]) -> tuple[float, float]:
    """Measure the wall seconds and the peak memory in MB of a Python process.

    On Linux, the child's peak includes the memory of its parent, so this script imports nothing
    large.
    """
    start = time.perf_counter()
    no_output = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(
        sys.executable, [sys.executable, *words], os.environ, file_actions=no_output
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"], help="ResNets to convert")
    p.add_argument("--repeats", type=int, default=3, help="conversions with each variant")
    args = p.parse_args(argv)
    print(f"torch {version('torch')}")
    print("| network | converter | median s | speedup | peak memory, MB | memory ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for arch in args.arch:
            source = f"{folder}/{arch}.pth"
            run(["-c", RANDOM_WEIGHTS, arch, source])
            found = {name: [] for name in VARIANTS}
            for repeat in range(1 + args.repeats):  # the first run fills the file cache
                for name, (words, suffix) in VARIANTS.items():
                    taken = run([*words, source, f"{folder}/{name}{suffix}"])
                    if repeat:
                        found[name].append(taken)
            median = {
                name: list(map(statistics.median, zip(*rows, strict=True)))
                for name, rows in found.items()
            }
            for name, (wall, memory) in median.items():
                print(
                    f"| {arch} | {name} | {wall:.2f} | {median[BASE][0] / wall:.2f} | "
                    f"{memory:.0f} | {median[BASE][1] / memory:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
