"""Count the operations of a training step, and the memory that its backward pass needs.

python benchmarks/activations.py --arch resnet18 resnet50 wide_resnet50_4

Operations are multiplications and additions of a forward pass with one image. Memory is the tensors
that the forward pass saves for the backward pass, in float32, plus weights, gradients and momentum.
It excludes workspaces of libraries. Nothing is computed: the tensors have no contents.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from study_cost import forward  # noqa: E402

from robust_backbones import archs  # noqa: E402
from robust_backbones.checkpoint.architectures import build_network  # noqa: E402
from robust_backbones.core.cli import Parser, count  # noqa: E402

DEFAULT = ["resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4", "densenet161", "vgg16_bn"]
COPIES = 3  # weights, gradients and momentum


def saved(arch: str, pixels: int) -> tuple[int, int]:
    """Bytes saved for the backward pass of one image, and bytes of the weights."""
    storages: dict[int, torch.UntypedStorage] = {}
    with torch.device("meta"):
        network = build_network(arch, 1000).train()
        weights = {p.untyped_storage()._cdata: p.nbytes for p in network.parameters()}

        def save(t: torch.Tensor) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage._cdata not in weights:
                storages[storage._cdata] = storage  # alive, so that no other storage has its number
            return t

        # Two images, because BatchNorm cannot train on one value per channel.
        with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
            network(torch.zeros(2, 3, pixels, pixels)).sum()
    return sum(s.nbytes() for s in storages.values()) // 2, sum(weights.values())


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--arch", choices=archs.ARCHS, nargs="+", default=DEFAULT, help="networks")
    p.add_argument("--pixels", type=count, default=224, help="height and width of the images")
    p.add_argument("--batch", type=count, default=256, help="images per step on a GPU")
    args = p.parse_args(argv)
    print(f"| network | GFLOP per image | MiB per image | GiB at batch {args.batch} |")
    print("|---|---|---|---|")
    for arch in args.arch:
        each, weights = saved(arch, args.pixels)
        total = (each * args.batch + COPIES * weights) / 2**30
        print(f"| {arch} | {forward(arch) / 1e9:.1f} | {each / 2**20:.0f} | {total:.1f} |")


if __name__ == "__main__":
    main()
