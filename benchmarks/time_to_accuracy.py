"""Time to reach a robust accuracy: the `robustness` library against our training methods.

python benchmarks/time_to_accuracy.py --threads 1
python benchmarks/time_to_accuracy.py --data DIR --limit 2000 --targets 20 25 30 --threads 1

The data are the bundled digits or an image folder, `DIR/train/<class>/<image>`. All trainings use
the same network, initial weights, batches and learning rate, and L2 eps 0.5. The library trains
with its own loop and PGD-3, and ours with each method and its default attack. After every epoch,
PGD-10 measures the robust accuracy on held-out images, which is not timed. Training stops when all
targets are reached.
"""

import contextlib
import io
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when the library is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from classification.datasets import loader  # noqa: E402
from classification.datasets.open import open_split  # noqa: E402
from classification.device_check import train_batch  # noqa: E402
from classification.models import Classifier  # noqa: E402
from classification.training.learner import Learner  # noqa: E402
from classification.training.settings import METHOD_DEFAULTS  # noqa: E402
from robust_backbones import attacks  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from tests.support import robustness_bridge as bridge  # noqa: E402
from tests.support.small_models import learning  # noqa: E402

EPS, LIBRARY = 0.5, "robustness library, pgd"
PGD = METHOD_DEFAULTS["pgd"].attack("l2", EPS)
OURS = [name for name in METHOD_DEFAULTS if name != "standard"]
HELD_OUT = 0.2


def images(data, split: str, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(N, 3, 32, 32)` in [0, 1] and labels `(N,)`."""
    name = "folder" if data else "digits"
    source = open_split(name, split, data, image_size=32, limit=limit, held_out=HELD_OUT)
    x, y = zip(*loader.load_batches(source, 100), strict=True)
    return torch.cat(x), torch.cat(y)


def library_training(network: Classifier, arch: str, classes: int, lr: float):
    """Build the library's training: `(train on a batch, get the weights)`."""
    library = bridge.import_library()
    dataset = library.datasets.ImageNet("/nowhere")
    dataset.num_classes = classes
    model, _ = library.model_utils.make_and_restore_model(arch=arch, dataset=dataset)
    model = getattr(model, "module", model)  # out of DataParallel
    model.model.load_state_dict(network.net.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-3)
    settings = bridge.loop_settings(
        constraint="2",
        eps=EPS,
        attack_lr=PGD.step_size,
        attack_steps=PGD.steps,
        use_best=PGD.use_best,
    )

    def learn(x, y, seed):
        with contextlib.redirect_stdout(io.StringIO()):
            library.train._model_loop(settings, "train", [(x, y)], model, optimizer, 0, True, None)

    return learn, model.model.state_dict


def our_training(network: Classifier, method: str, lr: float):
    """Build our training: `(train on a batch, get the weights)`."""
    learner = Learner(
        network.to(memory_format=torch.channels_last),
        learning(method=method, lr=lr, attack=METHOD_DEFAULTS[method].attack("l2", EPS)),
    )
    return partial(train_batch, learner, lr=lr), network.net.state_dict


def robust_accuracy(weights: dict, arch: str, x, y, classes: int) -> float:
    """Accuracy under PGD-10, percent."""
    network = Classifier.build(arch, classes).eval()
    network.net.load_state_dict(weights)
    right = 0
    for part, labels in zip(x.split(100), y.split(100), strict=True):
        found = attacks.pgd(
            network,
            part,
            labels,
            constraint="l2",
            eps=EPS,
            steps=10,
            step_size=EPS / 4,
            use_best=True,
        )
        with torch.no_grad():
            right += (network(found).argmax(1) == labels).sum().item()
    return 100 * right / len(y)


def train_until_targets(training, train, test, args) -> list[tuple[float, float]]:
    """Train epoch by epoch. Returns the training seconds and robust accuracy after each epoch."""
    (learn, weights), (x, y) = training, train
    seconds, generator, curve = 0.0, torch.Generator().manual_seed(args.seed), []
    for turn in range(1, 1 + args.epochs):
        order = torch.randperm(len(y), generator=generator)
        start = time.perf_counter()
        for number, chosen in enumerate(order.split(args.batch)):
            learn(x[chosen], y[chosen], seed=1000 * turn + number)
        seconds += time.perf_counter() - start
        curve.append((seconds, robust_accuracy(weights(), args.arch, *test, args.classes)))
        if curve[-1][1] >= max(args.targets) or seconds > args.limit_seconds:
            break
    return curve


def row(target: float, name: str, curve: list, library: list) -> str:
    """Format a table row. If the library missed the target, its total time bounds the speedup."""
    epochs = next((n for n, (_, found) in enumerate(curve, 1) if found >= target), None)
    if epochs is None:
        best = max(found for _, found in curve)
        return f"| {target:g} % | {name} | more than {curve[-1][0]:.1f} | | | no: {best:.1f} % |"
    seconds = curve[epochs - 1][0]
    base = next((s for s, found in library if found >= target), None)
    times = f"{base / seconds:.2f}" if base else f"more than {library[-1][0] / seconds:.2f}"
    return f"| {target:g} % | {name} | {seconds:.1f} | {times} | {epochs} | yes |"


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--data", type=Path, help="image folder (default: the bundled digits)")
    p.add_argument("--limit", type=int, help="training images (default: all)")
    p.add_argument("--arch", default="resnet18", choices=("resnet18", "resnet50"), help="network")
    p.add_argument(
        "--targets",
        type=float,
        nargs="+",
        default=[40.0, 60.0, 80.0],
        help="target robust accuracies, percent",
    )
    p.add_argument("--seed", type=int, default=0, help="random seed of weights and batches")
    p.add_argument("--methods", nargs="+", choices=OURS, default=OURS, help="training methods")
    p.add_argument("--batch", type=int, default=64, help="images per step")
    p.add_argument("--lr", type=float, default=0.02, help="constant learning rate")
    p.add_argument("--epochs", type=int, default=60, help="largest number of epochs")
    p.add_argument(
        "--limit-seconds",
        type=float,
        default=600,
        metavar="SECONDS",
        help="approximate time limit of each training",
    )
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    bridge.stay_on_the_cpu()
    train = images(args.data, "train", args.limit)
    test = images(args.data, "val", None)
    test = test[0][:500], test[1][:500]
    args.classes = int(train[1].max()) + 1
    print(
        f"{args.arch}, {len(train[1])} training and {len(test[1])} held-out images, batch "
        f"{args.batch}, L2 eps {EPS:g}, seed {args.seed}; {args.threads} threads, "
        f"torch {torch.__version__}"
    )
    curves = {}
    for name in (LIBRARY, *args.methods):
        torch.manual_seed(args.seed)
        network = Classifier.build(args.arch, args.classes)
        training = (
            library_training(network, args.arch, args.classes, args.lr)
            if name == LIBRARY
            else our_training(network, name, args.lr)
        )
        curves[name] = train_until_targets(training, train, test, args)
    print("| robust accuracy, % | training | time, s | speedup | epochs | reached |")
    print("|---|---|---|---|---|---|")
    for target in args.targets:
        for name, curve in curves.items():
            print(row(target, name, curve, curves[LIBRARY]))


if __name__ == "__main__":
    main()
