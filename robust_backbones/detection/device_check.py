"""Measure a device with detectors: building, speed, mixed precision."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import torch

from robust_backbones import arithmetic
from robust_backbones.compilation import compile_problem
from robust_backbones.core import timing
from robust_backbones.core.measurements import SKIPPED, Line, at_least, at_most, fast_if
from robust_backbones.core.resources import configs
from robust_backbones.detection import attack, config, step_speed
from robust_backbones.detection.training.step import Step
from robust_backbones.detection.training.trainer import Trainer

# isort: split
from detectron2.utils.events import EventStorage

PUBLISHED = 61 / 8  # images/s per V100: Detectron2's model zoo, 0.261 s for 16 images on 8 GPUs
# For CPUs, where a step of the whole network takes a minute in bfloat16.
SMALL = (
    *("MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.RPN.CONV_DIMS", "[16]"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
)


def detector_step(device: torch.device, full: bool) -> Iterator[Line]:
    """Compare our step with plain Detectron2's, in float32, TF32 and mixed precision."""
    arch, size, batches = (
        ("resnet50", (800, 1216), (2, 8)) if full else ("resnet18", (64, 96), (1,))
    )
    for batch in batches:
        plain = 0.0
        for precision in ("float32", "tf32", "float16") if device.type == "cuda" else ("float32",):
            # The flag applies to both sides, which take turns. Plain Detectron2 has no such key.
            arithmetic.set_tf32(precision == "tf32")
            key = "float32" if precision == "tf32" else precision
            cfg = step_speed.configured(arch, 2, key, device, () if full else SMALL)
            found = step_speed.measure(cfg, size, batch, 9 if full else 1, device)
            name = f"batch {batch}, {precision}"
            ours, theirs = (batch / found["step"][side] for side in ("ours", "Detectron2"))
            yield Line(f"{name}: Detectron2", theirs, "images/s")
            yield Line(f"{name}: ours", ours, "images/s")
            yield fast_if(f"{name}: ours / Detectron2", ours / theirs, 0.97 * full)
            if precision == "float32":
                plain = ours
                # On a GPU, RoIAlign adds in any order.
                limit = 1e-2 if device.type == "cuda" else 1e-5
                yield at_most(f"{name}: weights, relative difference", found["difference"], limit)
            else:
                yield fast_if(f"{name}: ours / ours in float32", ours / plain, 1.0)
                yield Line(f"{name}: ours / published rate of a V100", ours / PUBLISHED)
            infer = found["inference"]
            yield Line(f"{name}: inference, ours", batch / infer["ours"], "images/s")
    yield from _variants(arch, size, batches[-1], device, full)
    yield from _attacked(arch, size, batches[-1], device, full)


LAST, COMPILED = "SOLVER.CHANNELS_LAST True", "SOLVER.COMPILE True"
PGD = "SOLVER.ADVERSARIAL.METHOD pgd"
# Name of a variant -> whether it uses mixed precision, and its keys.
VARIANTS = {
    "float32": (False, ""),
    "float32, channels_last": (False, LAST),
    "mixed": (True, ""),
    "mixed, channels_last": (True, LAST),
    "PGD-3, float32": (False, PGD),
    "PGD-3, mixed": (True, PGD),
    "PGD-3, mixed, attack in float32": (True, PGD),
}
COMPILED_VARIANTS = {
    "mixed": (True, ""),
    "mixed, compiled": (True, COMPILED),
    "mixed, compiled, channels_last": (True, f"{COMPILED} {LAST}"),
}
SMALL_COMPILED_VARIANTS = {"float32": (False, ""), "float32, compiled": (False, COMPILED)}


def _steps(
    variants: dict[str, tuple[bool, str]],
    arch: str,
    size: tuple[int, int],
    batch: int,
    device: torch.device,
    full: bool,
) -> dict[str, Step]:
    """Build our training step in several variants, with the same weights."""
    mixed = "float16" if device.type == "cuda" else "bfloat16"  # float16 is slow on CPUs
    loader, found = step_speed.batches(size, batch), {}
    for name, (amp, keys) in variants.items():
        more = [*(() if full else SMALL), "SOLVER.PRECISION", mixed if amp else "float32"]
        more += ["SOLVER.ADVERSARIAL.STEPS", "3" if full else "1", *keys.split()]
        cfg = step_speed.configured(arch, 2, "float32", device, more)
        torch.manual_seed(0)
        found[name] = step_speed.our_step(cfg, Trainer.build_model(cfg), loader)
    return found


def _rates(
    steps: dict[str, Step], batch: int, device: torch.device, full: bool
) -> dict[str, float]:
    """Return the images per second of several training steps, which take turns."""
    works = {name: partial(step_speed.next_step, step) for name, step in steps.items()}
    with EventStorage():
        times = timing.take_turns(works, 5 if full else 1, device, warm_up=int(full))
    return {name: batch / statistics.median(seconds) for name, seconds in times.items()}


def _variants(
    arch: str, size: tuple[int, int], batch: int, device: torch.device, full: bool
) -> Iterator[Line]:
    """Time our training step in several variants."""
    steps = _steps(VARIANTS, arch, size, batch, device, full)
    adversary = steps["PGD-3, mixed, attack in float32"].adversary
    assert adversary is not None
    # Attacks left autocast before.
    autocast_off = torch.autocast(device.type, enabled=False)
    vars(adversary)["attacked"] = autocast_off(adversary.attacked)
    found = _rates(steps, batch, device, full)
    for name, rate in found.items():
        yield Line(f"batch {batch}, step, {name}", rate, "images/s")
    gain = found["PGD-3, mixed"] / found["PGD-3, mixed, attack in float32"]
    yield fast_if(f"batch {batch}, step, PGD-3, mixed: gain of autocast", gain, 1.0 * full)


def compiled_detector_step(device: torch.device, full: bool) -> Iterator[Line]:
    """Compare steps with `SOLVER.COMPILE` and `SOLVER.CHANNELS_LAST` with plain ones."""
    if problem := compile_problem(device):
        yield Line("detector steps with SOLVER.COMPILE", problem, state=SKIPPED)
        return
    arch, size, batch = ("resnet50", (800, 1216), 8) if full else ("resnet18", (96, 128), 1)
    variants = COMPILED_VARIANTS if full else SMALL_COMPILED_VARIANTS
    steps = _steps(variants, arch, size, batch, device, full)
    losses = {}
    for name, step in steps.items():
        began = time.perf_counter()
        losses[name] = _loss_of_a_step(step)
        yield Line(f"{name}: first step", time.perf_counter() - began, "s")
    plain, *others = steps
    for name in others:  # rounding can change which regions are sampled
        difference = abs(losses[name] / losses[plain] - 1)
        yield at_most(f"{name}: loss of the first step, relative difference", difference, 0.05)
    found = _rates(steps, batch, device, full)
    for name in steps:
        yield Line(f"batch {batch}, step, {name}", found[name], "images/s")
    for name in others:
        yield Line(f"batch {batch}, step, {name} / {plain}", found[name] / found[plain])


def _loss_of_a_step(step: Step) -> float:
    with EventStorage() as storage:
        torch.manual_seed(0)  # for the sampling of regions
        step_speed.next_step(step)
        step.report()
        return storage.latest()["total_loss"][0]


def _attacked(
    arch: str, size: tuple[int, int], batch: int, device: torch.device, full: bool
) -> Iterator[Line]:
    """Time PGD-3 on a detector, with and without autocast."""
    cfg = step_speed.configured(arch, 2, "float32", device, () if full else SMALL)
    model = Trainer.build_model(cfg)
    images = next(iter(step_speed.batches(size, batch)))
    generator = torch.Generator(device).manual_seed(0)
    names = ("float32", "float16") if device.type == "cuda" else ("float32",)
    for name in names:

        def work(amp: bool = name == "float16") -> None:
            with EventStorage(), torch.autocast(device.type, torch.float16, enabled=amp):
                attack.pgd(
                    model,
                    images,
                    constraint="linf",
                    eps=4 / 255,
                    steps=3,
                    step_size=2 / 255,
                    generator=generator,
                )

        found = timing.take_turns({name: work}, 3 if full else 1, device)[name]
        yield Line(
            f"batch {batch}: PGD-3 attack in {name}", batch / statistics.median(found), "images/s"
        )


def mixed_precision(device: torch.device, full: bool) -> Iterator[Line]:
    """Train on the digit scenes in float32 and in mixed precision; the losses must agree."""
    iterations = 200 if full else 4
    last, found = iterations // 4, {}
    other = "float16" if device.type == "cuda" else "bfloat16"
    for precision in ("float32", other):
        with tempfile.TemporaryDirectory() as folder:
            keys = {
                "MODEL.WEIGHTS": "",
                "MODEL.DEVICE": str(device),
                "OUTPUT_DIR": folder,
                "SOLVER.MAX_ITER": iterations,
                "SOLVER.STEPS": "()",
                "TEST.EVAL_PERIOD": 0,
                "SOLVER.CHECKPOINT_PERIOD": 10_000,
                "SOLVER.PRECISION": precision,
                "SOLVER.IMS_PER_BATCH": 4 if full else 2,
            }
            words = [str(part) for pair in keys.items() for part in pair]
            words += () if full else SMALL
            run = Trainer(config.load_config(configs() / "digits_mask_rcnn_robust.yaml", words))
            run.resume_or_load(resume=False)
            with EventStorage() as storage:
                for run.iter in range(iterations):
                    storage.iter = run.iter
                    run.run_step()
                    run.scheduler.step()
                losses = [loss for loss, _ in storage.history("total_loss").values()]
            found[precision] = statistics.mean(losses[-last:])
            yield Line(f"{precision}: loss of the last {last} steps", found[precision])
            if precision == "float16":
                yield at_least("float16: loss scale", run._trainer.scaler.get_scale(), 1.0)
    ratio = found[other] / found["float32"]
    yield at_most(f"{other} / float32, difference", abs(ratio - 1), 0.15 if full else 0.5)


ROWS = {row.__name__: row for row in (detector_step, mixed_precision, compiled_detector_step)}
