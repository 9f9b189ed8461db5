"""Time a training step and the inference of a detector: plain Detectron2 against ours.

python benchmarks/detector_speed.py --arch resnet50 --size 320 --batch 2 --repeats 5 --threads 1
python benchmarks/detector_speed.py --size 800 1216 --device cuda --precision float32 float16

Both use the same config, weights, images and boxes, and take turns in one process. `Detectron2` is
its own backbone builder and SimpleTrainer (AMPTrainer for float16). `ours` is the robust builder
and our training step. `difference` is the largest difference of a weight after one step, relative
to the largest change of a weight in that step.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import timing  # noqa: E402
import torch  # noqa: E402

from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.detection.step_speed import configured, measure  # noqa: E402


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
