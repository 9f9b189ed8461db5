"""What this machine's PyTorch can compute, and what of it an adversarial training step reaches.

python benchmarks/roofline.py --arch resnet18 --size 32 64 --batch 32 --repeats 5 --threads 1

GFLOP/s, an addition and a multiplication counted as two: of a large matrix product (the machine's
roof), of the network's own convolutions one by one, forward and backward (the roof of this
network), and of the PGD training step of `classification.pretrain` (3 steps). Operations are
counted by PyTorch on the plain network.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from classification.models import Classifier  # noqa: E402
from classification.training.learner import Learner  # noqa: E402
from tests.support.small_models import learning  # noqa: E402

ATTACK = dict(eps=1.0, steps=3, step_size=2 / 3, use_best=True)
MATRIX = 2048


def seconds(work, repeats: int) -> float:
    """Median; a first call warms up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def operations(work) -> float:
    """Counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def convolutions(model: nn.Module, x: torch.Tensor) -> list[tuple[nn.Conv2d, torch.Tensor]]:
    """Each convolution of the network with an input of its shape."""
    found, hooks = [], []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(
                layer.register_forward_hook(
                    lambda layer, given, _: found.append((layer, given[0].detach()))
                )
            )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def alone(layers, backward: bool, repeats: int) -> tuple[float, float]:
    """Operations and seconds of all convolutions, one by one."""
    total, taken = 0.0, 0.0
    for layer, given in layers:
        x = given.clone().requires_grad_(backward)
        gradient = torch.ones_like(layer(x))

        def work(layer=layer, x=x, gradient=gradient):
            with torch.set_grad_enabled(backward):
                found = layer(x)
                if backward:
                    found.backward(gradient)

        total += operations(work)
        taken += seconds(work, repeats)
    return total, taken


def step_operations(model: nn.Module, x: torch.Tensor) -> float:
    """Of the plain network: each attack step goes forward and back to the image, the best iterate
    takes one forward pass more, then comes a training pass. (Counted pass by pass: PyTorch's
    counter does not bear `autograd.grad`.)"""

    def passes(image: bool, weights: bool):
        model.requires_grad_(weights)
        found = model(x.clone().requires_grad_(image))
        if found.requires_grad:
            found.sum().backward()

    forward, attack, training = (
        operations(partial(passes, image=image, weights=weights))
        for image, weights in ((False, False), (True, False), (False, True))
    )
    return ATTACK["steps"] * attack + ATTACK["use_best"] * forward + training


def main(argv=None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=formatter)
    p.add_argument("--arch", default="resnet18", help="network")
    p.add_argument("--size", nargs="+", type=int, default=[32, 64], help="pixels")
    p.add_argument("--batch", type=int, default=32, help="images per step")
    p.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"{args.arch}, batch {args.batch}, {args.threads} threads, torch {torch.__version__}")
    print("| pixels | what | GFLOP | median s | GFLOP/s | of the roof |\n|---|---|---|---|---|---|")
    square = torch.rand(MATRIX, MATRIX)
    roof = 2 * MATRIX**3 / seconds(lambda: square @ square, args.repeats)

    def row(size, name: str, flop: float, taken: float) -> None:
        print(
            f"| {size} | {name} | {flop / 1e9:.2f} | {taken:.3f} | {flop / taken / 1e9:.1f} | "
            f"{flop / taken / roof:.2f} |",
            flush=True,
        )

    row("", f"product of {MATRIX} x {MATRIX} matrices", 2 * MATRIX**3, 2 * MATRIX**3 / roof)
    for size in args.size:
        torch.manual_seed(0)
        model = Classifier(args.arch, 10).to(memory_format=torch.channels_last)
        x = torch.rand(args.batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        y = torch.arange(args.batch) % 10
        layers = convolutions(model, x)
        for name, backward in (("forward", False), ("forward and backward", True)):
            row(size, f"convolutions alone, {name}", *alone(layers, backward, args.repeats))

        learner = Learner(model, learning(**ATTACK))
        taken = seconds(lambda s=learner, x=x, y=y: s.step(x, y, [0.01], seed=0), args.repeats)
        row(size, "adversarial training step", step_operations(model, x), taken)


if __name__ == "__main__":
    main()
