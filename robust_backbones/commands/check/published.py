"""Steps that fetch weights, compare them with the table of published models, and use them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from skimage import data

from robust_backbones import download, weights, zoo
from robust_backbones.checkpoint.architectures import arch_row, build_network, with_module_versions
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint
from robust_backbones.commands.check.steps import CheckSettings, Outcome, SkippedStep
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import cache_dir, read_json, sha256
from robust_backbones.core.input_statistics import ASSUMED, FILE, SOURCES
from robust_backbones.core.paths import expand
from robust_backbones.core.resources import python_environment
from robust_backbones.zoo import PublishedModel

VALIDATION = ("val", "valid", "validation")  # names of the folder inside ImageNet's folder
CATS = range(281, 286)  # ImageNet's classes of domestic cats
CROP, LEFT = 224, 80  # size and left edge of the classifier's image: the cat's head, pixels
ALL_IMAGES = 50_000  # of ImageNet's validation


def fetch(settings: CheckSettings) -> Outcome:
    """Return the local file of the weights, downloaded if necessary."""
    path = weights.fetch_weights(settings.weights)
    size = path.stat().st_size / 1e6
    mirror = os.environ.get(weights.MIRROR)
    if mirror and Path(expand(mirror)).absolute() in path.absolute().parents:
        place = f"in the mirror folder ({weights.MIRROR})"
    elif "://" not in settings.weights and not zoo.known(settings.weights):
        place = "a local file"
    else:
        hub = download.hub_endpoint() != download.PUBLISHER
        place = "in the cache" + (", HF_ENDPOINT is set" if hub else "")
    return Outcome(f"{size:.1f} MB, {place}", path, {"bytes": path.stat().st_size})


def compare_digest(settings: CheckSettings, path: Path) -> Outcome:
    """Hash the file, and compare its digest with the published one."""
    found, model = sha256(path), zoo.known(settings.weights)
    given = settings.weights.partition("#sha256=")[2].lower()  # `fetch` has enforced it
    expected = model.sha256 if model else given or None
    facts = {"sha256": found, "published": expected}
    if expected is None:
        return Outcome(f"SHA-256 {found}; no digest is published", facts=facts)
    if found == expected:
        return Outcome(f"SHA-256 {found}, as published", facts=facts)
    text = f"SHA-256 {found}, but {expected} is published. Remove {path}, and fetch it again"
    return Outcome(text, facts=facts, failed=True)


def compare_contents(settings: CheckSettings, path: Path) -> Outcome:
    """Read the file, and compare what it states with the table of published models."""
    found, model = read_checkpoint(path), zoo.known(settings.weights)
    head = f"{arch_row(found.arch).head}.weight"
    classes = len(found.tensors[head]) if head in found.tensors else None
    stated = {
        "arch": found.arch,
        "classes": classes,
        "statistics": str(found.statistics) if found.statistics.source == FILE else None,
        "constraint": found.training.get("constraint"),
        "eps": found.training.get("eps"),
    }
    text = ", ".join(f"{key} {value}" for key, value in stated.items() if value is not None)
    absent = [key for key, value in stated.items() if value is None]
    if absent:
        text += f"; not stated: {', '.join(absent)}"
    facts = stated | {"layout": found.layout, "tensors": len(found.tensors)}
    if model is None:
        if found.statistics.source == ASSUMED:
            text += f" (mean and std are {SOURCES[ASSUMED]})"
        return Outcome(f"{found.layout} layout, {text}", found, facts)
    faults = _differences(found, classes, model)
    text = f"{'; '.join(faults)}. The file has: {text}" if faults else f"{text}; as in the table"
    return Outcome(text, found, facts, failed=bool(faults))


def _differences(found: Checkpoint, classes: int | None, model: PublishedModel) -> list[str]:
    """Return the differences between a file and the table. What the file omits is no difference."""
    eps = found.training.get("eps")
    pairs: dict[str, tuple[Any, Any, bool]] = {
        "arch": (found.arch, model.arch, found.arch == model.arch),
        "classes": (classes, 1000, classes in (None, 1000)),
        "statistics": (
            found.statistics,
            model.statistics,
            found.statistics.source != FILE or found.statistics.equal(model.statistics),
        ),
        "constraint": (
            found.training.get("constraint"),
            model.constraint,
            found.training.get("constraint") in (None, model.constraint) or not model.eps,
        ),
        "eps": (eps, model.eps, None in (eps, model.eps) or _close(eps, model.eps)),
    }
    return [
        f"{key}: {here} in the file, {there} in the table of published models"
        for key, (here, there, same) in pairs.items()
        if not same
    ]


def _close(stated: object, eps: float | None) -> bool:
    try:
        return abs(float(str(stated)) - float(str(eps))) < 1e-4
    except ValueError:
        return False


def classify(settings: CheckSettings, source: Checkpoint) -> Outcome:
    """Classify a photograph of a cat."""
    source.require_head(settings.weights)
    classes = len(source.tensors[f"{arch_row(source.arch).head}.weight"])
    network = build_network(source.arch, classes)
    state = network.state_dict() | source.tensors
    network.load_state_dict(with_module_versions(state, source.arch))
    crop = data.chelsea()[:CROP, LEFT : LEFT + CROP]
    image = torch.from_numpy(crop).permute(2, 0, 1).float() / 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (source.statistics.mean, source.statistics.std)
    )
    with torch.no_grad():
        shares = network.eval()(((image - mean) / std)[None]).softmax(1)[0]
    if not shares.isfinite().all():
        raise UserError("the outputs are not finite. The weights are damaged.")
    best = int(shares.argmax())
    text = f"photograph of a cat: class {best} of {classes}, {100 * shares[best].item():.0f} %"
    if classes == 1000:
        text += " (a cat)" if best in CATS else f" (cats are {CATS[0]} to {CATS[-1]})"
    return Outcome(text, facts={"class": best})


def measure_accuracy(settings: CheckSettings, source: Checkpoint) -> Outcome:
    """Measure the top-1 accuracy on ImageNet's validation images, and compare it."""
    if settings.imagenet is None:
        raise SkippedStep("give ImageNet's folder with --imagenet")
    number = settings.images or "all"
    folder = cache_dir() / "check" / f"{source.sha256[:16]}-{number}"
    command = [
        *(sys.executable, "-m", "robust_backbones", "robustness-eval", "--eps", "0"),
        *("--weights", settings.weights, "--dataset", "imagenet"),
        *("--data", str(_imagenet_root(settings.imagenet)), "--output", str(folder)),
        *(("--images", str(settings.images)) if settings.images else ()),
    ]
    _run(command)
    row = read_json(folder / "result.json")["metrics"]["attacks"]["clean"]
    shutil.rmtree(folder)  # a later check measures again
    model = zoo.known(settings.weights)
    return compare_accuracy(row, model.accuracy if model else None)


def _imagenet_root(folder: Path) -> Path:
    """Return the folder that contains `val`."""
    return folder.parent if folder.name.lower() in VALIDATION else folder


def _run(command: list[str]) -> None:
    """Run an evaluation. Its progress and messages go to stderr.

    Raises:
        UserError: the evaluation failed. The message is the command's own.
    """
    process = subprocess.Popen(
        command,
        env=python_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stderr
    last = ""
    for line in process.stderr:
        last = line.strip() or last
        if not last.startswith("error: "):
            print(line, end="", file=sys.stderr, flush=True)
    if status := process.wait():
        raise UserError(last.removeprefix("error: ") + f" (robustness-eval, exit code {status})")


def compare_accuracy(row: dict, published: float | None) -> Outcome:
    """Compare a measured accuracy with the published one.

    Args:
        row: row of the clean accuracy in a result of robustness-eval.
        published: published top-1 accuracy in percent; None if it is unknown.
    """
    low, high = row["interval"]
    facts = {key: row[key] for key in ("accuracy", "right", "images", "interval")}
    facts["published"] = published
    text = f"top-1 {row['accuracy']:.2f} % on {counted(row['images'], 'image', 'images')}"
    interval = f"95 % interval [{low:.2f}, {high:.2f}]"
    if published is None:
        return Outcome(f"{text}, {interval}; no accuracy is published", facts=facts)
    if low <= published <= high:
        return Outcome(
            f"{text}; the published {published:.2f} % is inside the {interval}", facts=facts
        )
    text += f"; the published {published:.2f} % is outside the {interval}. "
    if row["images"] < ALL_IMAGES:
        text += "It is by chance in 1 of 20 samples of images. Repeat with --images all. "
    text += "Compare how the images in DIR were made, and report the block below."
    return Outcome(text, facts=facts, failed=True)
