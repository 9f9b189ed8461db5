"""Compare the speed of reading JPEG files: torchvision's ImageFolder against our loaders.

python benchmarks/decoding.py --images 64 --repeats 5

The images are scikit-image's photographs in two sizes. The test transform resizes the shorter edge
to 256 and crops the center 224 pixels. The training transform is a random resized crop of 224
pixels with a random flip. The loaders take turns in one process with one thread. `difference` is
the pixel difference from torchvision after the test transform, in levels of 255. `decoding alone`
only decodes the files with Pillow.
"""

import dataclasses
import sys
import tempfile
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import PIL  # noqa: E402
import timing  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from PIL import Image  # noqa: E402
from skimage import data  # noqa: E402
from torchvision import transforms as tv  # noqa: E402

from classification.datasets import loader  # noqa: E402
from classification.datasets.open import open_split  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SIZES = {"500 x 375": (500, 375), "1632 x 1224": (1632, 1224)}  # the second has two megapixels
BATCH = 32


def write(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write two classes of `count` / 2 photographs, rotated slightly so that all differ."""
    for i in range(count):
        pixels = getattr(data, PHOTOGRAPHS[i % len(PHOTOGRAPHS)])()
        picture = Image.fromarray(pixels)
        picture = picture.rotate(i / 8, Image.BICUBIC).resize(size, Image.BICUBIC)
        for split in ("train", "test"):
            place = folder / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{i:04}.jpg", quality=90)


def torchvision_batches(folder: Path, split: str):
    steps = [tv.Resize(256), tv.CenterCrop(224)]
    if split == "train":
        steps = [tv.RandomResizedCrop(224), tv.RandomHorizontalFlip()]
    images = torchvision.datasets.ImageFolder(
        str(folder / split), tv.Compose([*steps, tv.ToTensor()])
    )
    return torch.utils.data.DataLoader(images, BATCH, shuffle=split == "train")


def our_batches(folder: Path, split: str, decode: str):
    source = dataclasses.replace(open_split("folder", split, folder, image_size=224), decode=decode)
    if split == "test":
        return loader.load_batches(source, BATCH)
    return loader.train_batches(source, BATCH, augmentation="imagenet_plain", seed=0, epoch=0)


def decode_only(folder: Path, split: str):
    for path in sorted((folder / split).rglob("*.jpg")):
        with Image.open(path) as image:
            image.convert("RGB")
        yield ()


def difference(folder: Path, decode: str) -> str:
    """Mean and largest pixel difference from torchvision, in levels of 255."""
    reference = torch.cat([x for x, _ in torchvision_batches(folder, "test")])
    found = torch.cat([x for x, _ in our_batches(folder, "test", decode)])
    levels = 255 * (found - reference).abs()
    return f"{levels.mean():.2f}, {levels.max():.0f}"


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--images", type=int, default=64, help="images of each size; a multiple of 32")
    p.add_argument("--repeats", type=int, default=5, help="timed passes per loader")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    print(
        f"one thread, torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow "
        f"{PIL.__version__}"
    )
    print("| image | transform | loader | images/s | speedup | difference: mean, largest |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        for label, size in SIZES.items():
            folder = Path(root) / label
            write(folder, size, args.images)
            for split in ("test", "train"):
                loaders = {
                    "torchvision": lambda f=folder, s=split: torchvision_batches(f, s),
                    "ours, exact": lambda f=folder, s=split: our_batches(f, s, "exact"),
                    "ours, fast": lambda f=folder, s=split: our_batches(f, s, "fast"),
                    "decoding alone": lambda f=folder, s=split: decode_only(f, s),
                }
                passes = {n: (lambda b=batches: deque(b(), 0)) for n, batches in loaders.items()}
                for name, seconds in (found := timing.medians(passes, args.repeats)).items():
                    levels = ""
                    if name.startswith("ours") and split == "test":
                        levels = difference(folder, name.split()[-1])
                    print(
                        f"| {label} | {split} | {name} | {args.images / seconds:.0f} | "
                        f"{found['torchvision'] / seconds:.2f} | {levels} |"
                    )


if __name__ == "__main__":
    main()
