"""A torchvision checkpoint -> Detectron2's weights: ours, and the three steps of Detectron2's own.

python benchmarks/conversion.py --arch resnet18 resnet50 --repeats 3

Detectron2's `tools/convert-torchvision-to-d2.py` loads, renames, pickles NumPy arrays, and checks
nothing; `three steps` does as much. Ours also refuses damaged, foreign and unsafe files, and with
verification compares the features of source and target. Each run is a process of its own: seconds
from its start to its end, its peak memory, and what of both `import torch` alone takes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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
SIDES = {  # name -> words behind `python`, and the ending of the target
    BASE: (["-c", THREE_STEPS], ".pkl"),
    "ours, verified": (CONVERT, ".pth"),
    "ours, --no-verify": ([*CONVERT, "--no-verify"], ".pth"),
    "import torch": (["-c", "import torch"], ""),
}


def run(words: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory, MB, of a Python process.

    Linux counts what the parent had among the child's peak: nothing large is imported here.
    """
    start = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(
        sys.executable, [sys.executable, *words], os.environ, file_actions=silent
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main(argv=None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=formatter)
    p.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"], help="ResNets")
    p.add_argument("--repeats", type=int, default=3, help="conversions by each side")
    args = p.parse_args(argv)
    print(f"torch {version('torch')}")
    print("| network | side | median s | times faster | peak memory, MB | times less |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for arch in args.arch:
            source = f"{folder}/{arch}.pth"
            run(["-c", RANDOM_WEIGHTS, arch, source])
            found = {name: [] for name in SIDES}
            for repeat in range(1 + args.repeats):  # the first fills the system's cache of files
                for name, (words, ending) in SIDES.items():
                    taken = run([*words, source, f"{folder}/{name}{ending}"])
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
