"""Compare the speed of the adversarial training methods with their default attacks.

python benchmarks/training_methods.py --arch resnet18 --size 32 --batch 64 --threads 1

The methods train one network each on the same images. They take turns after every step, so that
other load on the machine affects all of them. `free` updates the weights four times per image and
epoch, and its recipe therefore has a quarter of the epochs. The last column is the time of a run
with the same number of updates, relative to PGD.
"""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402
import torch  # noqa: E402

from classification.device_check import train_batch  # noqa: E402
from classification.models import Classifier  # noqa: E402
from classification.training.learner import Learner  # noqa: E402
from classification.training.settings import METHOD_DEFAULTS  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from tests.support.small_models import learning  # noqa: E402

EPS = 0.5


def learners(arch: str) -> dict[str, Learner]:
    """One learner per method, all with the same initial weights."""
    found = {}
    for name, row in METHOD_DEFAULTS.items():
        torch.manual_seed(0)
        model = Classifier.build(arch, 10).to(memory_format=torch.channels_last)
        found[name] = Learner(model, learning(method=name, attack=row.attack("l2", EPS)))
    return found


def measure(arch: str, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Median seconds of a mini-batch, by method."""
    x = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    y = torch.arange(batch) % 10

    works = {name: partial(train_batch, learner, x, y) for name, learner in learners(arch).items()}
    return timing.medians(works, repeats)


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--arch", default="resnet18", help="network")
    p.add_argument("--size", type=int, default=32, help="height and width, pixels")
    p.add_argument("--batch", type=int, default=64, help="images per mini-batch")
    p.add_argument("--repeats", type=int, default=7, help="timed mini-batches per method")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    seconds = measure(args.arch, args.size, args.batch, args.repeats)
    print(
        f"{args.arch}, {args.size} px, batch {args.batch}, {args.threads} threads, torch "
        f"{torch.__version__}"
    )
    print("| method | updates | median s | images/s | per update, relative to pgd |")
    print("|---|---|---|---|---|")
    updates = {name: row.steps if row.replays else 1 for name, row in METHOD_DEFAULTS.items()}
    for name, median in seconds.items():
        print(
            f"| {name} | {updates[name]} | {median:.3f} | {args.batch / median:.0f} | "
            f"{median / updates[name] / seconds['pgd']:.2f} |"
        )


if __name__ == "__main__":
    main()
