"""Compare an adversarial training step with the peak speed of PyTorch on this machine.

python benchmarks/roofline.py --arch resnet18 --size 32 64 --batch 32 --repeats 5 --threads 1

The table has the GFLOP/s of a large matrix product (the bound of the machine), of the network's
convolutions one by one (the bound of the network), and of the training step of
`classification.pretrain` with 3 PGD steps. A multiplication and an addition count as two
operations. PyTorch counts them on the plain network.
"""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from classification.device_check import train_batch  # noqa: E402
from classification.models import Classifier  # noqa: E402
from classification.training.learner import Learner  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from tests.support.small_models import learning  # noqa: E402

ATTACK = dict(eps=1.0, steps=3, step_size=2 / 3, use_best=True)
MATRIX = 2048


def seconds(work, repeats: int) -> float:
    """Median seconds of `work`, after a warm-up call."""
    return timing.medians({"work": work}, repeats)["work"]


def operations(work) -> float:
    """Floating-point operations of `work`, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def convolutions(model: nn.Module, x: torch.Tensor) -> list[tuple[nn.Conv2d, torch.Tensor]]:
    """All convolutions of the network, each with its input."""
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


def time_alone(layers, backward: bool, repeats: int) -> tuple[float, float]:
    """Total operations and seconds of the convolutions, run one by one."""
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
    """Floating-point operations of a training step of the plain network.

    An attack step is a forward and an input-gradient pass. The best iterate costs one more forward
    pass, and the update is a training pass. The passes are counted separately, because PyTorch's
    counter does not support `autograd.grad`.
    """

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
    p = Parser(description=__doc__)
    p.add_argument("--arch", default="resnet18", help="network")
    p.add_argument("--size", nargs="+", type=int, default=[32, 64], help="image sizes, pixels")
    p.add_argument("--batch", type=int, default=32, help="images per step")
    p.add_argument("--repeats", type=int, default=5, help="timed calls per row")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"{args.arch}, batch {args.batch}, {args.threads} threads, torch {torch.__version__}")
    print(
        "| pixels | work | GFLOP | median s | GFLOP/s | share of peak |\n|---|---|---|---|---|---|"
    )
    square = torch.rand(MATRIX, MATRIX)
    peak = 2 * MATRIX**3 / seconds(lambda: square @ square, args.repeats)

    def row(size, name: str, flop: float, taken: float) -> None:
        print(
            f"| {size} | {name} | {flop / 1e9:.2f} | {taken:.3f} | {flop / taken / 1e9:.1f} | "
            f"{flop / taken / peak:.2f} |",
            flush=True,
        )

    row("", f"product of {MATRIX} x {MATRIX} matrices", 2 * MATRIX**3, 2 * MATRIX**3 / peak)
    for size in args.size:
        torch.manual_seed(0)
        model = Classifier.build(args.arch, 10).to(memory_format=torch.channels_last)
        x = torch.rand(args.batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        y = torch.arange(args.batch) % 10
        layers = convolutions(model, x)
        for name, backward in (("forward", False), ("forward and backward", True)):
            row(size, f"convolutions alone, {name}", *time_alone(layers, backward, args.repeats))

        learner = Learner(model, learning(**ATTACK))
        taken = seconds(partial(train_batch, learner, x, y), args.repeats)
        row(size, "adversarial training step", step_operations(model, x), taken)


if __name__ == "__main__":
    main()
