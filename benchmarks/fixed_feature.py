"""Time fixed-feature transfer: the paper's code, our copy of its recipe, and our clean protocol.

python benchmarks/fixed_feature.py --weights output/study/eps0.5_seed0/checkpoint.pt --threads 1

The paper's recipe uses the training loop of the `robustness` library and torchvision's transforms.
It trains for 150 epochs on augmented images with each of two learning rates. BatchNorm statistics
adapt, and the best epoch and learning rate are selected on the test images. Our clean protocol
extracts features once and selects the penalty on held-out training images. The time is the whole
run after loading the weights, without cached features.
"""

import contextlib
import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torchvision import transforms as tv  # noqa: E402

from classification.datasets.open import open_split  # noqa: E402
from classification.training.recipes import TRANSFER_RECIPES  # noqa: E402
from classification.transfer import __main__ as transfer  # noqa: E402
from classification.transfer.options import EVAL_EVERY  # noqa: E402
from robust_backbones.checkpoint.architectures import build_network  # noqa: E402
from robust_backbones.checkpoint.io import read_checkpoint  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from tests.support import robustness_bridge  # noqa: E402

PAPER = TRANSFER_RECIPES["paper"]


class Images(torch.utils.data.Dataset):
    """A split for the paper's loaders: PIL images with torchvision's transforms."""

    def __init__(self, source, transform):
        self.source, self.transform = source, transform

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        image, label = self.source[i]
        if isinstance(image, torch.Tensor):
            image = tv.functional.to_pil_image(image)
        return self.transform(image), label


def reference(library, args, size: int) -> float:
    """Run the paper's recipe. Returns the test accuracy of the best epoch, percent."""
    steps = [tv.RandomResizedCrop(size), tv.RandomHorizontalFlip(), tv.ToTensor()]
    test_steps = [tv.Resize(round(size * 256 / 224)), tv.CenterCrop(size), tv.ToTensor()]
    loaders = {}
    for split, chain, limit in (
        ("train", steps, args.limit),
        ("test", test_steps, args.test_limit),
    ):
        source = open_split(args.dataset, split, args.data, limit=limit)
        images = Images(source, tv.Compose(chain))
        loaders[split] = torch.utils.data.DataLoader(images, PAPER.batch_size, shuffle=True)
    found, settings = read_checkpoint(args.weights), robustness_bridge.loop_settings()
    best = 0.0
    for lr in (PAPER.lr, PAPER.lr / 10):
        model, head = _frozen(library, found, source.classes)
        optimizer = torch.optim.SGD(
            head, lr, momentum=PAPER.momentum, weight_decay=PAPER.weight_decay
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, args.epochs // 3))
        for epoch in range(args.epochs):
            library.train._model_loop(
                settings, "train", loaders["train"], model, optimizer, epoch, False, None
            )
            if epoch % EVAL_EVERY == 0 or epoch == args.epochs - 1:
                with torch.no_grad():
                    accuracy, _ = library.train._model_loop(
                        settings, "val", loaders["test"], model, None, epoch, False, None
                    )
                best = max(best, float(accuracy))
            schedule.step()
    return best


def _frozen(library, found, classes: int):
    """Build the model like the paper's code: no normalization, and a new, trainable last layer."""
    network = build_network(found.arch, classes)
    kept = {k: v for k, v in found.tensors.items() if not k.startswith("fc.")}
    network.load_state_dict(network.state_dict() | copy.deepcopy(kept))
    dataset = library.datasets.ImageNet("/nowhere")
    dataset.mean, dataset.std = torch.zeros(3), torch.ones(3)
    model = library.attacker.AttackerModel(library.model_utils.DummyModel(network), dataset)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "fc." in name
    return model, list(network.fc.parameters())


def ours(args, folder: Path, *options: str) -> float:
    """Run our command. Returns the test accuracy, percent."""
    limits = [["--limit", str(args.limit)], ["--test-limit", str(args.test_limit)]]
    transfer.main(
        [
            "--weights",
            str(args.weights),
            "--dataset",
            args.dataset,
            *sum(limits, []),
            *(["--data", args.data] if args.data else []),
            "--device",
            "cpu",
            "--output",
            str(folder),
            *options,
        ]
    )
    return json.loads((folder / "result.json").read_text())["metrics"]["accuracy"]


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--weights", type=Path, required=True, help="checkpoint of a ResNet")
    p.add_argument("--dataset", default="textures", help="dataset of the task")
    p.add_argument("--data", help="folder of the dataset")
    p.add_argument("--limit", type=int, default=500, help="number of training images")
    p.add_argument("--test-limit", type=int, default=300, help="number of test images")
    p.add_argument("--epochs", type=int, default=PAPER.epochs, help="epochs of the recipe")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    library = robustness_bridge.import_library()
    robustness_bridge.stay_on_the_cpu()
    found = read_checkpoint(args.weights)
    size = found.metadata.get("image_size") or 224
    recipe = ["--protocol", "paper", "--epochs", str(args.epochs)]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["ROBUST_BACKBONES_CACHE"] = str(folder / "cache")
        variants = {
            "paper's recipe, robustness library": lambda: reference(library, args, size),
            "ours, --protocol paper": lambda: ours(args, folder / "paper", *recipe),
            "ours, --protocol clean": lambda: ours(args, folder / "clean"),
        }
        rows = {}
        for name, variant in variants.items():
            start = time.perf_counter()
            with open(folder / "log", "w") as log, contextlib.redirect_stderr(log):
                with contextlib.redirect_stdout(log):
                    accuracy = variant()
            rows[name] = (time.perf_counter() - start, accuracy)
    print(
        f"{found.arch}, {size} px, {args.dataset}: {args.limit} training and {args.test_limit} "
        f"test images, {args.epochs} epochs, {args.threads} threads, torch "
        f"{torch.__version__}"
    )
    print("| implementation | s | speedup | accuracy, % |")
    print("|---|---|---|---|")
    base = rows["paper's recipe, robustness library"][0]
    for name, (seconds, accuracy) in rows.items():
        print(f"| {name} | {seconds:.1f} | {base / seconds:.1f} | {accuracy:.1f} |")


if __name__ == "__main__":
    main()
