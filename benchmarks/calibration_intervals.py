"""Measure how often the intervals of calibration scores contain the true score.

python benchmarks/calibration_intervals.py

Labels of ten classes are drawn from the probabilities of known logits, so that a classifier with
these logits is calibrated. A classifier whose logits are divided by a temperature below 1 is
overconfident. The true score is that of many images. Prints a Markdown table.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from classification.calibration import Scores, score, summarize

CLASSES, MANY, SCALE = 10, 200_000, 3.0
TEMPERATURES, IMAGES = (0.5, 0.8, 1.0), (300, 2000)
MEASURES = ("nll", "brier", "ece")


def draw(images: int, temperature: float, seed: int) -> Scores:
    """Return the scores of a classifier on images that are drawn from its calibrated twin.

    Args:
        images: number of images.
        temperature: number to divide the calibrated logits by.
        seed: random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = SCALE * torch.randn(images, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return score(logits, labels, temperature)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=200, help="samples per row (default: 200)")
    args = parser.parse_args()
    print(
        "| test images | temperature | true ECE, % | NLL covered, % | Brier score covered, % "
        "| ECE covered, % |"
    )
    print("|---|---|---|---|---|---|")
    for temperature in TEMPERATURES:
        many = summarize([draw(MANY, temperature, 0)], [None], None)
        truth = {name: many[name]["mean"] for name in MEASURES}
        for images in IMAGES:
            hits = dict.fromkeys(MEASURES, 0)
            for seed in range(1, args.repeats + 1):
                found = summarize([draw(images, temperature, seed)], [None], None)
                for name in MEASURES:
                    low, high = found[name]["interval"]
                    hits[name] += low <= truth[name] <= high
            shares = " | ".join(f"{100 * hits[name] / args.repeats:.0f}" for name in MEASURES)
            print(f"| {images} | {temperature} | {truth['ece']:.1f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
