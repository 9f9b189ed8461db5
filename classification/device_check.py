"""Measure a device with classifiers: agreement with float64, speed and memory.

`robust-backbones check --device cuda` starts a process for each row.
"""

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from classification import colors
from classification.datasets import loader
from classification.datasets.open import open_split
from classification.datasets.split import Split
from classification.models import Classifier
from classification.pretrain import options as pretrain_options
from classification.training.evaluate import evaluate
from classification.training.learner import Learner
from classification.transfer import probe
from classification.transfer.memory import CPU_SLICE, Size, make_plan, solver_device
from robust_backbones import arithmetic, attacks
from robust_backbones.core import timing
from robust_backbones.core.measurements import (
    Line,
    at_least,
    at_most,
    expect,
    fast_if,
    peak_gib,
    precisions,
)
from robust_backbones.core.workers import cores

EPS, STEPS = 3.0, 3  # L2 over the image and PGD steps: the paper's pretraining


def classifier(arch: str, device: torch.device) -> Classifier:
    """A classifier with 1,000 classes and random weights."""
    torch.manual_seed(0)
    return Classifier.build(arch, 1000).to(device).to(memory_format=torch.channels_last)


def images(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise `(count, 3, size, size)` in [0, 1] and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, size, size, generator=generator)
    return x.to(device), torch.randint(1000, (count,), generator=generator).to(device)


def learner(arch: str, device: torch.device, *options: str) -> Learner:
    """The learner that `classification.pretrain` builds from these options."""
    words = ["--output", "unused", "--arch", arch, *options]
    settings = pretrain_options.make_settings(pretrain_options.parser("").parse_args(words))
    torch.backends.cudnn.benchmark = True  # as pretraining sets it
    arithmetic.set_tf32(False)
    return Learner(classifier(arch, device), settings.train)


def train_batch(learner: Learner, x: Tensor, y: Tensor, seed: int = 0, lr: float = 0.01) -> None:
    """Train on one batch, and report when pretraining would."""
    learner.step(x, y, [lr] * learner.settings.updates_per_batch, seed)
    if learner.due:
        learner.report()


def rate(learn: Learner, batch: int, size: int, repeats: int) -> float:
    """Images per second of a training step, the median of the repeats."""
    x, y = images(batch, size, learn.device)
    works = {"step": partial(train_batch, learn, x, y)}
    warm_up = 3 if learn.device.type == "cuda" else 1
    found = timing.take_turns(works, repeats, learn.device, warm_up)
    return batch / statistics.median(found["step"])


def largest_batch(device: torch.device) -> int:
    """The largest power of two up to 256 at which ResNet-50 trains in float32 at 224 pixels."""
    memory = torch.cuda.get_device_properties(device).total_memory
    return next(b for b in (256, 128, 64, 32, 16) if b * 150 * 2**20 < memory)


def parity(device: torch.device, full: bool) -> Iterator[Line]:
    """Compare logits, an attack and an update with float64 on the CPU."""
    arch, size, count = ("resnet50", 224, 8) if full else ("resnet18", 64, 4)
    model, (x, y) = classifier(arch, device), images(count, size, device)
    # Rounding errors grow more in an untrained residual network than in a trained one. Small
    # residual branches compensate for that.
    for name, module in model.named_modules():
        if name.endswith("bn3" if arch == "resnet50" else "bn2"):
            nn.init.constant_(module.weight, 0.2)
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    attack = partial(attacks.pgd, constraint="l2", eps=EPS, steps=STEPS, step_size=2 * EPS / STEPS)
    reference = _outputs(exact, x.cpu().double(), y.cpu(), attack)
    bounds = {"float32": (1e-5, 0.999), "tf32": (2e-3, 0.99), "bfloat16": (2e-2, 0.95)}
    arithmetic.set_tf32(False)
    for name in precisions(device):
        dtype = arithmetic.autocast_dtype(name)
        autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        with autocast, arithmetic.tf32(name):
            logits, x_adv, gradient, update = _outputs(copy.deepcopy(model), x, y, attack)
        error, cosine = bounds[name]
        found = _error(logits, reference[0])
        yield at_most(f"{name}: logits, relative error", found, error)
        if name == "tf32":  # the flags had an effect
            yield at_least(f"{name}: logits, relative error is not float32's", found, 1e-5)
        norms = (x_adv - x.cpu().double()).flatten(1).norm(dim=1)
        yield at_most(f"{name}: PGD, norm / eps", float(norms.max()) / EPS, 1 + 1e-5)
        outside = float((x_adv - x_adv.clamp(0, 1)).abs().max())
        yield at_most(f"{name}: PGD, largest distance of a pixel from [0, 1]", outside, 0.0)
        yield Line(f"{name}: PGD, relative error", _error(x_adv - x.cpu(), reference[1] - x.cpu()))
        similar = cosine_similarity(gradient.flatten(1), reference[2].flatten(1)).min()
        yield at_least(f"{name}: attack gradient, cosine", float(similar), cosine)
        similar = cosine_similarity(update, reference[3], dim=0)
        yield at_least(f"{name}: gradient of an update, cosine", float(similar), cosine)


def _outputs(model: nn.Module, x: Tensor, y: Tensor, attack: Callable) -> list[Tensor]:
    """Logits, attacked images, gradients of images, gradient of an update; float64 on the CPU."""
    model.eval()
    x_adv = attack(model, x, y)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), leaf)
    model.train()
    cross_entropy(model(x), y).backward()
    update = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [t.detach().cpu().double() for t in (logits, x_adv, gradient, update)]


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def training_step(device: torch.device, full: bool) -> Iterator[Line]:
    """Time standard and PGD-3 training steps in all precisions.

    A PGD step makes k forward and input-gradient passes, a forward pass for the best iterate and a
    training pass. A pass without weight gradients costs two thirds of a pass with them. With k = 3,
    PGD should therefore reach 1.2 / (k + 1) of the standard rate.
    """
    for name in reversed(precisions(device)):
        variants = (True, False) if name == "bfloat16" else (True,)
        yield from _rates(name, device, full, ["--precision", name], variants)


def compiled_step(device: torch.device, full: bool) -> Iterator[Line]:
    """Time the steps with `--compile` in bfloat16."""
    options = ["--precision", "bfloat16", "--compile"]
    if full:
        yield from _rates("bfloat16", device, full, options, (True,))
        # Some versions of torch.compile fail if the flags of TF32 contradict each other.
        tf32 = ("--precision", "tf32", "--compile", "--eps", "0")
        found = rate(learner("resnet50", device, *tf32), largest_batch(device), 224, 7)
        yield Line("tf32: standard", found, "images/s")
    else:  # a CPU compiles for minutes: one graph is enough
        found = rate(learner("resnet18", device, *options, "--eps", "0"), 4, 32, 1)
        yield Line("bfloat16: standard", found, "images/s")


def _rates(
    name: str, device: torch.device, full: bool, options: list[str], variants: tuple[bool, ...]
) -> Iterator[Line]:
    """Time a standard step and PGD steps.

    Args:
        options: options of pretraining.
        variants: for each PGD step, whether the attack uses the folded copy of the network.
    """
    arch, size, repeats = ("resnet50", 224, 7) if full else ("resnet18", 32, 1)
    batch = largest_batch(device) if full else 4
    plain = rate(learner(arch, device, *options, "--eps", "0"), batch, size, repeats)
    yield Line(f"{name}: standard, batch {batch}", plain, "images/s")
    peak_gib(device)
    for folded in variants:
        learn = learner(arch, device, *options)
        if not folded:
            learn.folded = None
        found = rate(learn, batch, size, repeats)
        what = f"{name}: PGD-{STEPS}{'' if folded else ', without the folded copy'}"
        yield Line(what, found, "images/s")
        ratio = found / (plain / (STEPS + 1))
        yield fast_if(f"{what}, PGD / (standard / {STEPS + 1})", ratio, 1.05 * full)
    if device.type == "cuda":
        yield Line(f"{name}: PGD, peak memory", peak_gib(device), "GiB")


def synchronizations(device: torch.device, full: bool) -> Iterator[Line]:
    """Count how often PGD steps wait for the device between two reports.

    Also measure the share of time that a GPU computes.
    """
    arch, size, batches = ("resnet50", 224, (256, 64)) if full else ("resnet18", 32, (4,))
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    for batch in batches:
        learn = learner(arch, device, "--precision", "bfloat16")
        unprofiled = batch / rate(learn, batch, size, 5 if full else 1)
        x, y = images(batch, size, device)
        learn.report()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(3):
                learn.step(x, y, [0.01], seed=0)
        learn.report()
        events = profile.key_averages()
        kind = "cuda" if device.type == "cuda" else "cpu"
        print(events.table(f"self_{kind}_time_total", row_limit=25, max_name_column_width=90))
        scalars = sum(e.count for e in events if e.key == "aten::_local_scalar_dense") / 3
        if device.type == "cpu":  # a CPU reads the number that decides about an update
            yield Line(f"batch {batch}: scalars read per step", scalars)
        else:
            yield at_most(f"batch {batch}: scalars read between reports", scalars, 0)
            # The profiler itself waits for the GPU once, at its end.
            waits = sum(e.count for e in events if e.key.endswith("Synchronize"))
            yield at_most(f"batch {batch}: CUDA synchronizations between reports", waits, 1)
            kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
            busy = sum(e.self_device_time_total for e in kernels) / 3e6
            least = 0.95 if batch >= 256 else 0.85
            yield fast_if(f"batch {batch}: share of time computing", busy / unprofiled, least)


def loading(device: torch.device, full: bool) -> Iterator[Line]:
    """Compare the speed of the image loader with the training step."""
    most = cores()
    arch, size, batch = ("resnet50", 224, 64) if full else ("resnet18", 32, 4)
    learn = learner(arch, device, "--precision", "bfloat16")
    alone = rate(learn, batch, size, 5 if full else 2)
    yield Line(f"PGD step alone, bfloat16, batch {batch}", alone, "images/s")
    pixels = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    numbers = torch.stack([colors.draw_numbers() for _ in range(batch)]).to(device)
    works = {"colors": partial(colors.finish, pixels, numbers, device)}
    took = statistics.median(timing.take_turns(works, 5, device, 3)["colors"])
    yield Line("colors on the device", batch / took, "images/s")
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(Path(folder), batch * (6 * most if full else 4))
        source = open_split("folder", "train", folder, image_size=size)
        for workers in sorted({0, most if full else 1}):
            batches = 6 * workers or 4
            found = _streamed(source, batch, workers, batches, device, lambda x, y: None)
            yield Line(f"{workers} workers: loader alone", found, "images/s")
            fed = _streamed(source, batch, workers, batches, device, partial(train_batch, learn))
            bound = 0.9 if full and workers else 0.0
            yield fast_if(f"{workers} workers: loader and step / step", fed / alone, bound)


def _write_photographs(folder: Path, count: int) -> None:
    """Write JPEG files of 500 x 375 pixels in two classes, of about ImageNet's file size."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i >= 64:  # the same images again
            os.link(folder / "train" / "ab"[i % 2] / f"{i % 64}.jpg", path)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=90)


def _streamed(
    source: Split, batch: int, workers: int, batches: int, device: torch.device, work: Callable
) -> float:
    """Images per second over the second half of the batches.

    Workers start together and deliver in waves. The first half includes their start.
    """
    stream = loader.train_batches(
        source, batch, augmentation="imagenet", seed=0, epoch=0, workers=workers, device=device
    )
    for number, (x, y) in enumerate(islice(stream, batches)):
        work(x, y)
        if number + 1 == batches // 2:
            began = time.perf_counter()
    return (batches - batches // 2) * batch / (time.perf_counter() - began)


def synthetic(n: int, d: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features `(n, d)`, float64, half of them 0, with mean norm sqrt(d); and labels `(n,)`."""
    g = torch.Generator().manual_seed(0)
    width = d // 2
    scale = torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    means = torch.randn(classes, width, generator=g, dtype=torch.float64)
    y = torch.randint(0, classes, (n,), generator=g)
    z = (0.6 * means[y] + torch.randn(n, width, generator=g, dtype=torch.float64)) * scale
    for outputs in (d, d):
        weights = torch.randn(z.shape[1], outputs, generator=g, dtype=torch.float64)
        z = (z @ weights / z.shape[1] ** 0.5).relu()
    return z * d**0.5 / z.norm(dim=1).mean(), y


def probing(device: torch.device, full: bool) -> Iterator[Line]:
    """Solve a path of 45 penalties and compare the objectives with the CPU."""
    x, y = synthetic(2000 if full else 200, 256, 10)
    found, exact = (probe.fit(x.to(d), y.to(d), 10).objective.cpu() for d in (device, "cpu"))
    excess = float((found / exact - 1).abs().max())
    yield at_most("objectives against the CPU's, relative", excess, 1e-6)
    n, d, classes = (20_000, 2048, 101) if full else (300, 64, 5)
    x, y = (a.to(device) for a in synthetic(n, d, classes))
    yield Line("features", f"{n:,} x {d}, {classes} classes, float64")
    plan = make_plan(Size(n, d, classes, len(probe.PENALTIES)), device)
    yield Line("plan", str(plan))
    yield Line("device of the solver", str(solver_device(device)))
    for size in dict.fromkeys((CPU_SLICE, plan.slice_size)):
        peak_gib(device)
        work = partial(probe.fit, x, y, classes, plan=replace(plan, slice_size=size))
        took = timing.seconds(work, device)
        yield Line(f"45 penalties, slices of 2^{size.bit_length() - 1}", took, "s")
        if device.type == "cuda":
            found = peak_gib(device) * 2**30 - x.nbytes
            yield at_most("peak memory / planned memory", found / plan.needs, 1)
    x, mapped = x.float().cpu(), replace(plan, store="mapped")
    took = timing.seconds(partial(probe.fit, x, y.cpu(), classes, plan=mapped), device)
    yield Line("45 penalties, features in host memory", took, "s")
    imagenet = make_plan(Size(1_281_167, 2048, 1000, len(probe.PENALTIES)), device)
    yield Line("plan for ImageNet", str(imagenet))


def evaluation(device: torch.device, full: bool) -> Iterator[Line]:
    """Time a PGD-10 evaluation whose random starts are drawn on the CPU, and on the device."""
    arch, size, batch, count = ("resnet50", 224, 200, 4) if full else ("resnet18", 32, 16, 2)
    model = classifier(arch, device)
    batches = [images(batch, size, torch.device("cpu")) for _ in range(count)]
    attack = partial(
        attacks.pgd,
        constraint="l2",
        eps=EPS,
        steps=10,
        step_size=EPS / 4,
        random_start=True,
        use_best=True,
    )
    for where in dict.fromkeys(("cpu", device.type)):
        generator = torch.Generator(where).manual_seed(0)
        adversary = partial(attack, generator=generator)
        evaluate(model, batches[:1], adversary)  # warm up
        took = timing.seconds(partial(evaluate, model, batches, adversary), device)
        yield Line(f"random starts drawn on {where}", batch * count / took, "images/s")


def memory_growth(device: torch.device, full: bool) -> Iterator[Line]:
    """Compare the memory in use after a third of the steps and after all of them."""
    steps = 90 if full else 12
    learn = learner("resnet18", device, "--ema", "0.999", "--accumulate", "2")
    x, y = images(64 if full else 8, 64 if full else 32, device)
    used = []
    for step in range(steps):
        train_batch(learn, x, y, seed=step)
        if step + 1 in (steps // 3, steps):
            used.append(_memory(device))
    growth = (used[1] - used[0]) / 2**20
    # A CPU's allocator releases memory late. A leak of one batch of activations is larger.
    yield at_most(f"from step {steps // 3} to {steps}", growth, 1 if full else 100, "MiB")


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def determinism(device: torch.device, full: bool) -> Iterator[Line]:
    """Whether every operation of a training step has a deterministic implementation."""
    torch.use_deterministic_algorithms(True)
    for arch in ("resnet50", "densenet161", "vgg16_bn") if full else ("resnet18",):
        try:
            train_batch(learner(arch, device), *images(4, 64, device))
            said = "runs"
        except RuntimeError as error:
            said = str(error).split(".")[0]
        yield expect(arch, said, "runs", said == "runs")


ROWS = {
    row.__name__: row
    for row in (
        parity,
        training_step,
        loading,
        synchronizations,
        probing,
        evaluation,
        memory_growth,
        determinism,
        compiled_step,
    )
}
