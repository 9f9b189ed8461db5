"""Seconds per adversarial training step: the `robustness` library's loop against ours, on a CPU.

python benchmarks/adversarial_step.py --threads 2
python benchmarks/adversarial_step.py --arch resnet18 --size 32 --batch 8 --repeats 3

Both sides train the same network with the same adversary (L2 PGD, eps 1, 3 steps of 2/3) on the
same images, one step at a time, taking turns, so that what else the machine does falls on all of
them. `use best` is the library's default: return the iterate of highest loss, which costs one
forward pass more. The last column is how far, in float64, the weights after two steps are from the
library's.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # the library's progress bar; before it is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import robustness_bridge as bridge  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_weights  # noqa: E402

from classification import attacks, engine  # noqa: E402
from classification.models import Classifier  # noqa: E402

CASES = (("resnet18", 32), ("resnet18", 64), ("resnet50", 64))  # arch, pixels
EPS, STEPS, STEP_SIZE, LR = 1.0, 3, 2 / 3, 0.01
ALLOWED = 1e-5  # difference of a weight after two steps, in float64
# Name -> whether weights are in channels_last, and whether the attack runs on folded BatchNorm.
OURS = {
    "ours, eager": (False, False),
    "ours, channels_last": (True, False),
    "ours, folded": (False, True),
    "ours, channels_last, folded": (True, True),
}


class Folded:
    """A twin of a ResNet without BatchNorm: each convolution has its BatchNorm's scale and shift.

    It is the network in eval mode. The twin is made once; `refresh` writes the network's present
    weights into it, which takes as long as reading them.
    """

    def __init__(self, model: nn.Module):
        self.twin = copy.deepcopy(model).eval().requires_grad_(False)
        self.pairs = []
        for path, parent in list(model.named_modules()):
            names = [name for name, _ in parent.named_children()]
            for first, second in zip(names, names[1:], strict=False):
                conv, norm = getattr(parent, first), getattr(parent, second)
                # Holds for torchvision's ResNets, which list modules in the order of their use.
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    place = self.twin.get_submodule(path)
                    setattr(place, second, nn.Identity())
                    folded = getattr(place, first)
                    folded.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)
                    self.pairs.append((conv, norm, folded))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in self.twin.modules())
        done = {id(folded) for _, _, folded in self.pairs}
        self.rest = [
            (module, self.twin.get_submodule(path))
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            and id(self.twin.get_submodule(path)) not in done
        ]

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        for conv, norm, folded in self.pairs:
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias)  # fmt: skip
            folded.weight.copy_(weight)
            folded.bias.copy_(bias)
        for module, twin in self.rest:
            for parameter, copied in zip(module.parameters(), twin.parameters(), strict=True):
                copied.copy_(parameter)
        return self.twin


def library_side(library, arch: str, state: dict, use_best: bool, dtype: torch.dtype):
    """`(step, network)`: a training step as the library makes it, and what it trains."""
    dataset = library.datasets.ImageNet("/nowhere")
    dataset.num_classes = 10
    model, _ = library.model_utils.make_and_restore_model(arch=arch, dataset=dataset)
    model = getattr(model, "module", model)  # out of DataParallel
    model.model.load_state_dict(state)
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    settings = bridge.loop_settings(
        constraint="2", eps=EPS, attack_lr=STEP_SIZE, attack_steps=STEPS, use_best=use_best
    )

    def step(x, y):
        library.train._model_loop(settings, "train", [(x, y)], model, optimizer, 0, True, None)

    return step, model.model


def our_side(
    arch: str, state: dict, use_best: bool, dtype: torch.dtype, channels_last: bool, fold: bool
):
    """`(step, network)`: ours, likewise."""
    model = Classifier(arch, 10)
    model.net.load_state_dict(state)
    model.to(dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    pgd = partial(attacks.pgd, constraint="l2", eps=EPS, steps=STEPS, step_size=STEP_SIZE,
                  use_best=use_best)  # fmt: skip
    adversary = pgd
    if fold:
        folded = Folded(model)

        def adversary(model, x, y):
            return pgd(folded.refresh(), x, y)

    def step(x, y):
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        engine.train_one_epoch(model, [(x, y)], optimizer, lambda step: LR, adversary)

    return step, model.net


def sides(library, arch: str, use_best: bool, dtype: torch.dtype) -> dict:
    """Name -> `(step, network)`, all from the same weights, the library first."""
    torch.manual_seed(0)
    state = Classifier(arch, 10).net.state_dict()
    built = {"robustness library": library_side(library, arch, state, use_best, dtype)}
    for name, (channels_last, fold) in OURS.items():
        built[name] = our_side(arch, state, use_best, dtype, channels_last, fold)
    return built


def images(batch: int, size: int, dtype: torch.dtype):
    """Noise and labels. Away from 0 and 1: such pixels the library's attack leaves alone since
    PyTorch 2.14, which changed the gradient of its clamp there."""
    torch.manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(batch, 3, size, size, dtype=torch.float64)
    return x.to(dtype), torch.arange(batch) % 10


def differences(library, arch: str, size: int, use_best: bool) -> dict:
    """Side -> largest difference of a weight or statistic from the library's after two steps.

    In float64 and on 8 images: in float32, rounding decides whether a ReLU that is nearly 0 is
    open, and its gradient jumps there, so that equal sides can differ by a thousandth.
    """
    built = sides(library, arch, use_best, torch.float64)
    for step, _ in built.values():
        for _ in range(2):  # the second with other weights: a twin that is out of date would show
            step(*images(8, size, torch.float64))
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


def measure(library, arch: str, size: int, batch: int, repeats: int, use_best: bool) -> dict:
    """Side -> seconds of each repeat."""
    built = sides(library, arch, use_best, torch.float32)
    x, y = images(batch, size, torch.float32)
    seconds = {name: [] for name in built}
    for repeat in range(1 + repeats):
        for name, (step, _) in built.items():
            start = time.perf_counter()
            step(x, y)
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, both = (
        p.add_argument,
        "; without --arch and --size: " + ", ".join(f"{arch} at {size}" for arch, size in CASES),
    )
    add("--arch", nargs="+", choices=("resnet18", "resnet50"), default=argparse.SUPPRESS,
        help="networks" + both)  # fmt: skip
    add("--size", nargs="+", type=int, default=argparse.SUPPRESS,
        help="height and width of the images, pixels" + both)  # fmt: skip
    add("--batch", type=int, default=32, help="images per step")
    add("--repeats", type=int, default=7, help="timed steps of each side")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
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
        f"batch {args.batch}, {args.repeats} repeats; L2 eps {EPS:g}, {STEPS} steps of "
        f"{STEP_SIZE:.3f}"
    )
    print("| network | pixels | use best | side | median s | fastest s | times faster | "
          "difference |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for arch, size in cases:
        for use_best in (True, False):
            found = differences(library, arch, size, use_best)
            seconds = measure(library, arch, size, args.batch, args.repeats, use_best)
            base = statistics.median(seconds["robustness library"])
            for side, values in seconds.items():
                median = statistics.median(values)
                print(
                    f"| {arch} | {size} | {'yes' if use_best else 'no'} | {side} | {median:.4f} | "
                    f"{min(values):.4f} | {base / median:.2f} | {found[side]:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
