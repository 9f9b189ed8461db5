"""A training step and an inference of a detector: Detectron2 alone, and ours.

python benchmarks/detector_step.py --arch resnet50 --size 320 --batch 2 --repeats 5 --threads 1

Same config, same weights, same images and boxes; both sides take turns in one process. `Detectron2`
is its own builder and its SimpleTrainer; `ours` is the robust builder and our step. `difference` is
the largest of a weight after one step, relative to the largest change of a weight in it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from robust_backbones.detection import config  # noqa: E402
from robust_backbones.detection.step import Step  # noqa: E402


def batches(size: int, count: int, masks: bool):
    """An endless loader of one batch: noise with eight boxes an image."""
    from detectron2.structures import BitMasks, Boxes, Instances

    torch.manual_seed(0)
    batch = []
    for _ in range(count):
        corners = torch.rand(8, 2) * size * 0.6
        truth = Instances((size, size))
        truth.gt_boxes = Boxes(torch.cat([corners, corners + size * 0.1 + 0.2 * size], 1))
        truth.gt_classes = torch.randint(0, 80, (8,))
        if masks:
            truth.gt_masks = BitMasks(torch.rand(8, size, size) > 0.5)
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
        batch.append({"image": image, "instances": truth, "height": size, "width": size})

    class Loader:
        def __iter__(self):
            while True:
                yield batch

    return Loader()


def sides(cfg, loader):
    """`{name: trainer}` with the same weights."""
    from detectron2.engine import SimpleTrainer
    from detectron2.modeling import build_model
    from detectron2.solver import build_optimizer

    made, state = {}, None
    for name, builder in (
        ("Detectron2", "build_resnet_fpn_backbone"),
        ("ours", "build_robust_resnet_fpn_backbone"),
    ):
        cfg.MODEL.BACKBONE.NAME = builder
        torch.manual_seed(0)
        model = build_model(cfg)
        state = state or {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        optimizer = build_optimizer(cfg, model)
        trainer = (
            SimpleTrainer(model, loader, optimizer)
            if name == "Detectron2"
            else Step(cfg, model, loader, optimizer)
        )
        trainer.iter = 0
        made[name] = trainer
    return made


def timed(work, repeats: int, names) -> dict:
    """Median seconds of `work(name)`, the names taking turns after one unmeasured round."""
    seconds = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            torch.manual_seed(turn)
            start = time.perf_counter()
            work(name)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(argv=None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=formatter)
    p.add_argument("--arch", default="resnet50", help="network of the backbone")
    p.add_argument("--size", type=int, default=320, help="pixels of the square images")
    p.add_argument("--batch", type=int, default=2, help="images of a step")
    p.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    p.add_argument("--freeze-at", type=int, nargs="+", default=[2, 0], help="frozen stages")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    from detectron2.utils.events import EventStorage

    print("| frozen stages | part | side | median s | times faster | difference |")
    print("|---|---|---|---|---|---|")
    for freeze in args.freeze_at:
        cfg = config.load_config(
            ROOT / "configs/coco_mask_rcnn_robust_eps3.yaml",
            ["MODEL.ROBUST.ARCH", args.arch, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu",
             "MODEL.BACKBONE.FREEZE_AT", str(freeze), "SOLVER.BASE_LR", "1e-3"],
        )  # fmt: skip
        loader = batches(args.size, args.batch, masks=True)
        trainers = sides(cfg, loader)
        with EventStorage():
            before = {k: v.clone() for k, v in trainers["ours"].model.state_dict().items()}
            for trainer in trainers.values():
                torch.manual_seed(0)
                trainer.run_step()
            after = [trainer.model.state_dict() for trainer in trainers.values()]
            change = max((after[0][k] - before[k]).abs().max() for k in before)
            apart = max((after[0][k] - after[1][k]).abs().max() for k in before) / change
            steps = timed(lambda name, t=trainers: t[name].run_step(), args.repeats, trainers)
        for trainer in trainers.values():
            trainer.model.eval()
        batch = next(iter(loader))
        with torch.no_grad():
            found = timed(
                lambda name, t=trainers, b=batch: t[name].model(b), args.repeats, trainers
            )
        for part, seconds in (("step", steps), ("inference", found)):
            for name, value in seconds.items():
                shown = f"{apart:.0e}" if (part, name) == ("step", "ours") else ""
                times = seconds["Detectron2"] / value
                print(f"| {freeze} | {part} | {name} | {value:.3f} | {times:.2f} | {shown} |",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
