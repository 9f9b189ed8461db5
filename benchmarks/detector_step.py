"""Time a training step and the inference of a detector: plain Detectron2 against ours.

python benchmarks/detector_step.py --arch resnet50 --size 320 --batch 2 --repeats 5 --threads 1
python benchmarks/detector_step.py --size 800 1216 --device cuda --precision float32 float16

Both use the same config, weights, images and boxes, and take turns in one process. `Detectron2` is
its own backbone builder and SimpleTrainer (AMPTrainer for float16). `ours` is the robust builder
and our training step. `difference` is the largest difference of a weight after one step, relative
to the largest change of a weight in that step.
"""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import timing  # noqa: E402
import torch  # noqa: E402

from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.detection import config  # noqa: E402
from robust_backbones.detection.training.step import Step  # noqa: E402

# isort: split
from detectron2.engine import AMPTrainer, SimpleTrainer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.solver import build_optimizer  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402


def batches(size: tuple[int, int], count: int):
    """An endless loader of one batch: noise, with eight boxes and masks per image.

    Args:
        size: height and width of the images, pixels.
        count: images per batch.
    """
    torch.manual_seed(0)
    batch = []
    for _ in range(count):
        extent = torch.tensor([size[1], size[0]])  # width and height
        corners = torch.rand(8, 2) * extent * 0.6
        truth = Instances(size)
        truth.gt_boxes = Boxes(torch.cat([corners, corners + 0.3 * extent], 1))
        truth.gt_classes = torch.randint(0, 80, (8,))
        truth.gt_masks = BitMasks(torch.rand(8, *size) > 0.5)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        batch.append({"image": image, "instances": truth, "height": size[0], "width": size[1]})

    class Loader:
        def __iter__(self):
            while True:
                yield batch

    return Loader()


def build_trainers(cfg, loader):
    """Build both trainers, by name, with the same weights."""
    made, state = {}, None
    plain = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    for name, builder in (
        ("Detectron2", "build_resnet_fpn_backbone"),
        ("ours", "build_robust_resnet_fpn_backbone"),
    ):
        cfg.MODEL.BACKBONE.NAME = builder
        torch.manual_seed(0)
        model = build_model(cfg)
        state = state or {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        if name == "ours":
            made[name] = our_step(cfg, model, loader)
        else:
            made[name] = plain(model, loader, build_optimizer(cfg, model))
            made[name].iter = 0
    return made


def our_step(cfg, model, loader) -> Step:
    """Build our training step, before its first iteration."""
    step = Step(cfg, model, loader, build_optimizer(cfg, model))
    step.iter = 0
    return step


def configured(arch: str, freeze: int, precision: str, device: torch.device, more=()):
    """The config of COCO's Mask R-CNN with random weights, and `KEY VALUE` pairs in `more`."""
    return config.load_config(
        ROOT / "configs/coco_mask_rcnn_robust_eps3.yaml",
        [
            "MODEL.ROBUST.ARCH",
            arch,
            "MODEL.WEIGHTS",
            "",
            "MODEL.DEVICE",
            str(device),
            "MODEL.BACKBONE.FREEZE_AT",
            str(freeze),
            "SOLVER.BASE_LR",
            "1e-3",
            "SOLVER.AMP.ENABLED",
            str(precision != "float32"),
            *more,
        ],
    )


def measure(cfg, size: tuple[int, int], batch: int, repeats: int, device: torch.device) -> dict:
    """Time both implementations.

    Returns:
        "step" and "inference": `{implementation: median seconds}`. "difference": largest difference
        of a weight after one step, relative to the largest change of a weight in the step.
    """
    loader = batches(size, batch)
    trainers = build_trainers(cfg, loader)
    with EventStorage():
        before = {k: v.clone() for k, v in trainers["ours"].model.state_dict().items()}
        for trainer in trainers.values():
            torch.manual_seed(0)
            next_step(trainer)
        after = [trainer.model.state_dict() for trainer in trainers.values()]
        change = max((after[0][k] - before[k]).abs().max() for k in before)
        apart = max((after[0][k] - after[1][k]).abs().max() for k in before) / change
        works = {n: partial(next_step, t) for n, t in trainers.items()}
        steps = _medians(works, repeats, device)
    for trainer in trainers.values():
        trainer.model.eval()
    images = next(iter(loader))
    with torch.no_grad(), torch.autocast(device.type, enabled=cfg.SOLVER.AMP.ENABLED):
        inference = _medians(
            {n: (lambda model=t.model: model(images)) for n, t in trainers.items()}, repeats, device
        )
    return {"step": steps, "inference": inference, "difference": float(apart)}


def next_step(trainer) -> None:
    """Make a training step."""
    trainer.run_step()
    trainer.iter += 1  # ours reads the losses of a GPU only in some iterations


def _medians(works: dict, repeats: int, device: torch.device) -> dict:
    def seeded(work):
        torch.manual_seed(0)  # both sample the same anchors and regions
        work()

    works = {name: (lambda work=work: seeded(work)) for name, work in works.items()}
    return timing.medians(works, repeats, device)


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--arch", default="resnet50", help="network of the backbone")
    p.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[320],
        metavar="PIXELS",
        help="height and width of the images, or one number for both",
    )
    p.add_argument("--batch", type=int, default=2, help="images per step")
    p.add_argument("--repeats", type=int, default=5, help="timed steps")
    p.add_argument(
        "--freeze-at", type=int, nargs="+", default=[2, 0], help="numbers of frozen stages"
    )
    p.add_argument(
        "--precision",
        nargs="+",
        default=["float32"],
        choices=("float32", "float16"),
        help="precision of the step; float16 requires a GPU",
    )
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch threads")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    args = p.parse_args(argv)
    device = timing.chosen(args.device)
    if len(args.size) > 2:
        p.error(f"--size: {len(args.size)} numbers given. Give one or two.")
    if device.type == "cpu" and "float16" in args.precision:
        p.error("--precision float16: Detectron2's AMPTrainer requires a GPU. Use --device cuda.")
    torch.set_num_threads(args.threads)
    size = (args.size[0], args.size[-1])

    print("| frozen stages | precision | part | implementation | median s | speedup | difference |")
    print("|---|---|---|---|---|---|---|")
    for freeze in args.freeze_at:
        for precision in args.precision:
            cfg = configured(args.arch, freeze, precision, device)
            found = measure(cfg, size, args.batch, args.repeats, device)
            for part in ("step", "inference"):
                for name, value in found[part].items():
                    ours = (part, name) == ("step", "ours")
                    shown = f"{found['difference']:.0e}" if ours else ""
                    times = found[part]["Detectron2"] / value
                    print(
                        f"| {freeze} | {precision} | {part} | {name} | {value:.3f} | "
                        f"{times:.2f} | {shown} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
