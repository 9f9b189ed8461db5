"""Time COCO's box and mask metrics: pycocotools, faster-coco-eval, hotcoco, and ours.

python benchmarks/coco_evaluation.py --images 5000 --detections 36000 --repeats 3

The generated data have the size of COCO's val2017: 80 classes, as many objects as detections, masks
as polygons of 30 points, crowds as run-length encodings. All implementations start from the same
Python lists, take turns, and return the precision array and the 12 metrics. The table has the
fastest run of each. CPU seconds are the sum over all threads; only hotcoco uses several.
`difference` is the largest difference from pycocotools, over the 12 metrics and over the 3.9
million entries of the precision array. Implementations that are not installed or compiled are
skipped: faster-coco-eval and Detectron2's C++ code are optional.
"""

import contextlib
import copy
import gc
import importlib.util
import io
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hotcoco  # noqa: E402
import numpy as np  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

from robust_backbones.core.cli import Parser  # noqa: E402  isort: skip
from robust_backbones.detection.data.coco_annotations import parse_coco  # noqa: E402  isort: skip
from robust_backbones.detection.evaluation import coco_scores  # noqa: E402  isort: skip
from detectron2.evaluation.fast_eval_api import COCOeval_opt  # noqa: E402

HEIGHT, WIDTH, CLASSES = 480, 640, 80
DROPPED = {"bbox": "segmentation", "segm": "bbox"}  # key removed per task, as in Detectron2


def polygon(box: list[float], rng) -> list[list[float]]:
    """An irregular ellipse of 30 points inside a box."""
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    radius = 0.5 - 0.15 * rng.random(30)
    points = [x + w * (0.5 + radius * np.cos(angles)), y + h * (0.5 + radius * np.sin(angles))]
    return [np.stack(points, axis=1).round(1).flatten().tolist()]


def run_lengths(box: list[float], rng) -> dict:
    code = coco_mask.merge(coco_mask.frPyObjects(polygon(box, rng), HEIGHT, WIDTH))
    return {"size": code["size"], "counts": code["counts"].decode()}


def generate(images: int, detections: int, seed: int = 0) -> tuple[dict, list[dict]]:
    """Generate annotations and predictions, three quarters of them near an object."""
    rng = np.random.default_rng(seed)
    rows, found = [], []
    for number in range(1, detections + 1):
        image = int(rng.integers(1, images + 1))
        extent = np.minimum(
            np.exp(rng.uniform(np.log(12), np.log(400), 2)), [WIDTH - 1, HEIGHT - 1]
        )
        corner = rng.uniform(0, [WIDTH - extent[0], HEIGHT - extent[1]])
        box = [float(v) for v in np.round([*corner, *extent], 2)]
        # Three classes per image, so that objects compete for detections.
        category = int((image * 7 + rng.integers(3)) % CLASSES) + 1
        crowd = int(rng.random() < 0.01)
        shape = run_lengths(box, rng) if crowd else polygon(box, rng)
        code = shape if crowd else coco_mask.merge(coco_mask.frPyObjects(shape, HEIGHT, WIDTH))
        rows.append(
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": float(coco_mask.area(code)),
                "iscrowd": crowd,
                "segmentation": shape,
            }
        )
        if rng.random() < 0.25:  # away from the object
            box = [box[1], box[0], *box[2:]]
        moved = rng.normal(0, 0.08, 4)
        box = [
            float(box[0] + moved[0] * box[2]),
            float(box[1] + moved[1] * box[3]),
            float(box[2] * np.exp(moved[2])),
            float(box[3] * np.exp(moved[3])),
        ]
        if rng.random() < 0.1:
            category = int(rng.integers(1, CLASSES + 1))
        found.append(
            {
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "score": round(float(rng.random()), 3),
                "segmentation": run_lengths(box, rng),
            }
        )
    contents = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
        "annotations": rows,
    }
    return contents, found


def pycocotools_scores(contents, found, task, evaluator=COCOeval):
    """Evaluate with pycocotools or another evaluator with the same interface."""
    truth = COCO()
    truth.dataset = contents
    truth.createIndex()
    engine = evaluator(truth, truth.loadRes(found), task)
    engine.evaluate(), engine.accumulate(), engine.summarize()
    return engine.stats, engine.eval["precision"]


def faster_coco_eval_scores(contents, found, task):
    import faster_coco_eval  # optional, not a dependency of the project

    truth = faster_coco_eval.COCO(contents)
    engine = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(found), task)
    engine.evaluate(), engine.accumulate(), engine.summarize()
    return engine.stats[:12], engine.eval["precision"]


def hotcoco_scores(contents, found, task):
    truth = hotcoco.COCO(contents)
    engine = hotcoco.COCOeval(truth, truth.load_res(found), task)
    engine.evaluate(), engine.accumulate(), engine.summarize()
    return engine.stats, engine.eval["precision"]


def ours(contents, found, task):
    """Evaluate with all our checks. Our function does not return the precision array."""
    metrics = coco_scores.score(parse_coco(contents, "benchmark"), found, task)
    return np.nan_to_num(list(metrics.values())[:12], nan=-100) / 100, None


IMPLEMENTATIONS = {
    "pycocotools": pycocotools_scores,
    "detectron2": partial(pycocotools_scores, evaluator=COCOeval_opt),
    "faster-coco-eval": faster_coco_eval_scores,
    "hotcoco": hotcoco_scores,
    "ours": ours,
}
if COCOeval_opt is COCOeval:  # `compat` replaced it because it is not compiled
    del IMPLEMENTATIONS["detectron2"]
if importlib.util.find_spec("faster_coco_eval") is None:
    del IMPLEMENTATIONS["faster-coco-eval"]


def measure(contents, found, task, repeats):
    """Returns the fastest `(wall, CPU)` seconds and the scores, by implementation."""
    seconds, answers = {name: [] for name in IMPLEMENTATIONS}, {}
    rows = [{k: v for k, v in row.items() if k != DROPPED[task]} for row in found]
    for _ in range(repeats):
        for name, scores in IMPLEMENTATIONS.items():
            own = copy.deepcopy((contents, rows))  # some implementations modify their input
            gc.collect(), gc.freeze()  # keeps garbage collection out of the timing
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.perf_counter(), time.process_time()
                answers[name] = scores(*own, task)
                seconds[name].append(
                    (time.perf_counter() - start[0], time.process_time() - start[1])
                )
    fastest = {name: tuple(map(min, zip(*runs, strict=True))) for name, runs in seconds.items()}
    return fastest, answers


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--images", type=int, default=5000, help="number of images")
    p.add_argument(
        "--detections", type=int, default=36000, help="number of detections, and of objects"
    )
    p.add_argument("--repeats", type=int, default=3, help="timed runs per implementation")
    args = p.parse_args(argv)
    packages = [
        f"{name} {version(name)}" for name in IMPLEMENTATIONS if name not in ("ours", "detectron2")
    ]
    print(f"{', '.join(packages)}; {args.images} images, {args.detections} detections")
    contents, found = generate(args.images, args.detections)
    print(
        "| task | implementation | wall s | speedup | CPU s | CPU speedup "
        "| difference: metrics, array |"
    )
    print("|---|---|---|---|---|---|---|")
    for task in DROPPED:
        seconds, answers = measure(contents, found, task, args.repeats)
        base = seconds["pycocotools"]
        stats, precision = answers["pycocotools"]
        for name, (wall, cpu) in seconds.items():
            numbers = np.abs(np.asarray(answers[name][0]) - stats).max()
            array = answers[name][1]
            arrays = "" if array is None else f", {np.abs(array - precision).max():.0e}"
            print(
                f"| {task} | {name} | {wall:.2f} | {base[0] / wall:.1f} | {cpu:.2f} | "
                f"{base[1] / cpu:.1f} | {numbers:.0e}{arrays} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
