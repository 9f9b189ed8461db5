"""Seconds per adversarial training step: the `robustness` library's loop against ours.

python benchmarks/adversarial_step.py --threads 2
python benchmarks/adversarial_step.py --arch resnet18 --size 32 --batch 8 --repeats 3
python benchmarks/adversarial_step.py --arch resnet50 --size 224 --batch 128 --device cuda

Both sides train the same network with the same adversary (L2 PGD, eps 1, 3 steps of 2/3) on the
same images, one step at a time, taking turns, so that what else the machine does falls on all of
them. `use best` is the library's default: return the iterate of highest loss, which costs one
forward pass more. The last column is how far, in float64, the weights after two steps are from the
library's.
"""

import argparse
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # the library's progress bar; before it is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from adversarial_step_sides import EPS, LIBRARY, OURS, STEP_SIZE, STEPS, passes, sides  # noqa: E402

from tests.support import robustness_bridge as bridge  # noqa: E402

CASES = (("resnet18", 32), ("resnet18", 64), ("resnet50", 64))  # arch, pixels
ALLOWED = 1e-5  # difference of a weight after two steps, in float64


def images(batch: int, size: int, dtype: torch.dtype, device: torch.device):
    """Noise and labels. Away from 0 and 1: such pixels the library's attack leaves alone since
    PyTorch 2.14, which changed the gradient of its clamp there."""
    torch.manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(batch, 3, size, size, dtype=torch.float64)
    return x.to(device, dtype), (torch.arange(batch) % 10).to(device)


def differences(library, names, arch: str, size: int, use_best: bool, device) -> dict:
    """Side -> largest difference of a weight or statistic from the library's after two steps.

    In float64 and on 8 images: in float32, rounding decides whether a ReLU that is nearly 0 is
    open, and its gradient jumps there, so that equal sides can differ by a thousandth.
    """
    built = sides(library, names, arch, use_best, torch.float64, device)
    for step, _ in built.values():
        for _ in range(2):  # the second has other weights, so an outdated folded copy shows
            step(*images(8, size, torch.float64, device))
    reference = next(iter(built.values()))[1].state_dict()
    found = {
        name: max(
            (value - network.state_dict()[key]).abs().max().item()
            for key, value in reference.items()
        )
        for name, (_, network) in built.items()
    }
    for name, difference in found.items():
        if not difference <= ALLOWED:
            sys.exit(f"{name}: the weights differ from the library's by {difference:.1e}")
    return found


def measure(library, names, arch: str, size: int, use_best: bool, args) -> dict:
    """Side -> seconds of each repeat."""
    built = sides(library, names, arch, use_best, torch.float32, args.device)
    x, y = images(args.batch, size, torch.float32, args.device)
    steps = {n: (lambda step=step: step(x, y)) for n, (step, _) in built.items()}
    return timing.take_turns(steps, args.repeats, args.device)


def print_passes(arch: str, size: int, found: dict, args) -> None:
    """Where the time goes: what the network's own passes of a step cost, and a step's ratio to it.

    A step of k attack steps makes k forward and input-gradient passes, one forward pass more for
    the best iterate, and one training pass.
    """
    works = passes(arch, args.batch, size, args.device)
    seconds = timing.take_turns(works, args.repeats, args.device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"| {arch} | {size} | {name} | {value:.4f} |")
    for side, prefix in {"channels_last": "", "pretrain": "folded: "}.items():
        for use_best, steps in found.items():
            if side not in steps:
                continue
            bound = STEPS * median[f"{prefix}forward, input gradient"]
            bound += use_best * median[f"{prefix}forward"]
            bound += median["training forward, backward"]
            ratio = statistics.median(steps[side]) / bound
            kind = "best" if use_best else "last"
            print(f"| {arch} | {size} | sum for '{side}', {kind} iterate | {bound:.4f} |")
            print(f"| {arch} | {size} | its step / this sum | {ratio:.2f} |", flush=True)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, both = (
        p.add_argument,
        "; without --arch and --size: " + ", ".join(f"{arch} at {size}" for arch, size in CASES),
    )
    add(
        "--arch",
        nargs="+",
        choices=("resnet18", "resnet50"),
        default=argparse.SUPPRESS,
        help="networks" + both,
    )
    add(
        "--size",
        nargs="+",
        type=int,
        default=argparse.SUPPRESS,
        help="height and width of the images, pixels" + both,
    )
    default = [name for name in OURS if name != "compiled"]
    add(
        "--sides",
        nargs="+",
        choices=OURS,
        default=default,
        metavar="SIDE",
        help="of ours; one of: " + ", ".join(f"'{name}'" for name in OURS),
    )
    add(
        "--use-best",
        choices=("yes", "no", "both"),
        default="both",
        help="return the iterate of highest loss",
    )
    add("--batch", type=int, default=32, help="images per step")
    add("--repeats", type=int, default=7, help="timed steps of each side")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    add("--device", default="cpu", help="cpu or cuda")
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    args.device = timing.chosen(args.device)
    if args.device.type == "cpu":
        bridge.stay_on_the_cpu()
    try:
        library = bridge.import_library()
    except ImportError as error:
        sys.exit(f"the robustness library cannot be imported: {error}; pip install robustness")
    cases = CASES
    if "arch" in args or "size" in args:
        archs, sizes = getattr(args, "arch", ["resnet18"]), getattr(args, "size", [64])
        cases = [(arch, size) for arch in archs for size in sizes]
    print(
        f"robustness {version('robustness')}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, Python {platform.python_version()}, {args.threads} threads, "
        f"{args.device}, batch {args.batch}, {args.repeats} repeats; L2 eps {EPS:g}, {STEPS} steps "
        f"of {STEP_SIZE:.3f}"
    )
    print(
        "| network | pixels | use best | side | median s | fastest s | times faster | "
        "difference |\n|---|---|---|---|---|---|---|---|"
    )
    chosen = {"yes": (True,), "no": (False,), "both": (True, False)}[args.use_best]
    rows = {}
    for arch, size in cases:
        for use_best in chosen:
            found = differences(library, args.sides, arch, size, use_best, args.device)
            seconds = measure(library, args.sides, arch, size, use_best, args)
            rows.setdefault((arch, size), {})[use_best] = seconds
            base = statistics.median(seconds[LIBRARY])
            for side, values in seconds.items():
                median = statistics.median(values)
                print(
                    f"| {arch} | {size} | {'yes' if use_best else 'no'} | {side} | {median:.4f} | "
                    f"{min(values):.4f} | {base / median:.2f} | {found[side]:.0e} |",
                    flush=True,
                )
    print("\n| network | pixels | pass | median s |\n|---|---|---|---|")
    for (arch, size), found in rows.items():
        print_passes(arch, size, found, args)


if __name__ == "__main__":
    main()
