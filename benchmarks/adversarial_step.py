"""Time adversarial training steps: the `robustness` library's loop against ours.

python benchmarks/adversarial_step.py --threads 2
python benchmarks/adversarial_step.py --arch resnet18 --size 32 --batch 8 --repeats 3
python benchmarks/adversarial_step.py --arch resnet50 --size 224 --batch 128 --device cuda

All implementations train the same network with the same attack (L2 PGD, eps 1, 3 steps of 2/3) on
the same images. They take turns after every step, so that other load affects all of them. `best
iterate` is the library's default: return the iterate of highest loss, which costs one more forward
pass. `difference` is the largest difference of a weight from the library's after two steps in
float64.
"""

import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when the library is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from adversarial_step_variants import EPS, LIBRARY, OURS, STEP_SIZE, STEPS, build_steps, passes  # noqa: E402

from robust_backbones.core.cli import Parser  # noqa: E402
from tests.support import robustness_bridge as bridge  # noqa: E402

CASES = (("resnet18", 32), ("resnet18", 64), ("resnet50", 64))  # architecture, pixels
TOLERANCE = 1e-5  # largest difference of a weight after two steps, in float64


def images(batch: int, size: int, dtype: torch.dtype, device: torch.device):
    """Noise in [0.1, 0.9] and labels.

    Pixels of exactly 0 or 1 are excluded: since PyTorch 2.14, which changed the gradient of clamp,
    the library's attack does not change them.
    """
    torch.manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(batch, 3, size, size, dtype=torch.float64)
    return x.to(device, dtype), (torch.arange(batch) % 10).to(device)


def differences(library, names, arch: str, size: int, use_best: bool, device) -> dict:
    """Largest difference of a weight or statistic from the library's after two steps, by name.

    Computed in float64 on 8 images. In float32, rounding can switch a ReLU whose input is almost 0,
    and then identical steps differ by a thousandth.
    """
    built = build_steps(library, names, arch, use_best, torch.float64, device)
    for step, _ in built.values():
        for _ in range(2):  # the second step would reveal a folded copy with outdated weights
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
        if not difference <= TOLERANCE:
            sys.exit(f"{name}: weights differ from the library's by {difference:.1e}")
    return found


def measure(library, names, arch: str, size: int, use_best: bool, args) -> dict:
    """Seconds of each repeat, by name."""
    built = build_steps(library, names, arch, use_best, torch.float32, args.device)
    x, y = images(args.batch, size, torch.float32, args.device)
    steps = {n: (lambda step=step: step(x, y)) for n, (step, _) in built.items()}
    return timing.take_turns(steps, args.repeats, args.device)


def print_passes(arch: str, size: int, found: dict, args) -> None:
    """Print the time of single passes of the network, and of a step relative to their sum.

    A step with k attack steps consists of k forward and input-gradient passes, one more forward
    pass for the best iterate, and one training pass.
    """
    works = passes(arch, args.batch, size, args.device)
    median = timing.medians(works, args.repeats, args.device)
    for name, value in median.items():
        print(f"| {arch} | {size} | {name} | {value:.4f} |")
    for name, prefix in {"channels_last": "", "pretrain": "folded: "}.items():
        for use_best, steps in found.items():
            if name not in steps:
                continue
            bound = STEPS * median[f"{prefix}forward, input gradient"]
            bound += use_best * median[f"{prefix}forward"]
            bound += median["training forward, backward"]
            ratio = statistics.median(steps[name]) / bound
            kind = "best" if use_best else "last"
            print(f"| {arch} | {size} | sum for '{name}', {kind} iterate | {bound:.4f} |")
            print(f"| {arch} | {size} | step / sum | {ratio:.2f} |", flush=True)


def parser() -> Parser:
    cases = ", ".join(f"{arch} at {size}" for arch, size in CASES)
    p = Parser(description=f"{__doc__}\nWithout --arch and --size: {cases} pixels.")
    add = p.add_argument
    add("--arch", nargs="+", choices=("resnet18", "resnet50"), help="networks")
    add("--size", nargs="+", type=int, metavar="PIXELS", help="heights and widths of the images")
    add(
        "--variants",
        nargs="+",
        choices=OURS,
        default=[name for name in OURS if name != "compiled"],
        metavar="NAME",
        help="variants of our step, out of " + ", ".join(f"'{name}'" for name in OURS),
    )
    add(
        "--use-best",
        choices=("yes", "no", "both"),
        default="both",
        help="whether the attack returns the iterate of highest loss",
    )
    add("--batch", type=int, default=32, help="images per step")
    add("--repeats", type=int, default=7, help="timed steps per implementation")
    add("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads")
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
        sys.exit(f"the robustness library cannot be imported ({error}). pip install robustness")
    cases = CASES
    if args.arch or args.size:
        cases = [(a, size) for a in args.arch or ["resnet18"] for size in args.size or [64]]
    print(
        f"robustness {version('robustness')}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, Python {platform.python_version()}, {args.threads} threads, "
        f"{args.device}, batch {args.batch}, {args.repeats} repeats; L2 eps {EPS:g}, {STEPS} steps "
        f"of {STEP_SIZE:.3f}"
    )
    print(
        "| network | pixels | best iterate | implementation | median s | fastest s | speedup | "
        "difference |\n|---|---|---|---|---|---|---|---|"
    )
    chosen = {"yes": (True,), "no": (False,), "both": (True, False)}[args.use_best]
    rows = {}
    for arch, size in cases:
        for use_best in chosen:
            found = differences(library, args.variants, arch, size, use_best, args.device)
            seconds = measure(library, args.variants, arch, size, use_best, args)
            rows.setdefault((arch, size), {})[use_best] = seconds
            base = statistics.median(seconds[LIBRARY])
            for name, values in seconds.items():
                median = statistics.median(values)
                print(
                    f"| {arch} | {size} | {'yes' if use_best else 'no'} | {name} | {median:.4f} | "
                    f"{min(values):.4f} | {base / median:.2f} | {found[name]:.0e} |",
                    flush=True,
                )
    print("\n| network | pixels | pass | median s |\n|---|---|---|---|")
    for (arch, size), found in rows.items():
        print_passes(arch, size, found, args)


if __name__ == "__main__":
    main()
