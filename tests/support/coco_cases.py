"""Generated data in COCO's formats that strain an evaluator; and noisy predictions of real data."""

import numpy as np
from pycocotools import mask as coco_mask

SIDE = 160  # pixels; images are square


def categories(count):
    return [{"id": 3 * i + 2, "name": f"class {i}"} for i in range(count)]


def polygon(box, corners=12):
    """An ellipse in a box, as COCO writes polygons."""
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)
    return [points.round(2).flatten().tolist()]


def encoded(box, side=SIDE):
    """The same ellipse as COCO's compressed run lengths."""
    code = coco_mask.merge(coco_mask.frPyObjects(polygon(box), side, side))
    return {"size": code["size"], "counts": code["counts"].decode()}


def runs(code):
    """Compressed run lengths written out as a list, as COCO writes crowds."""
    pixels = coco_mask.decode(code).flatten(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    ends = np.concatenate([[0], edges, [len(pixels)]])
    lengths = np.diff(ends).tolist()
    return {"size": code["size"], "counts": ([0] if pixels[0] else []) + lengths}


def annotation(number, image, category, box, crowd=0, **more):
    code = encoded(box)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": float(coco_mask.area(code)),
        "iscrowd": crowd,
        "segmentation": runs(code) if crowd else polygon(box),
    } | more


def prediction(image, category, box, score, masks=True):
    row = {"image_id": image, "category_id": category, "bbox": list(box), "score": float(score)}
    return row | ({"segmentation": encoded(box)} if masks else {})


def random_box(rng, smallest=4, largest=150):
    side = np.exp(rng.uniform(np.log(smallest), np.log(largest), 2))
    corner = rng.uniform(0, np.maximum(SIDE - side, 1))
    return [round(float(v), 2) for v in (*corner, *np.minimum(side, SIDE - corner))]


def moved(box, rng, amount):
    x, y, w, h = box
    dx, dy, dw, dh = rng.normal(0, amount, 4)
    return [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]


def scene(
    seed,
    images=30,
    classes=5,
    objects=6,
    crowd=0.1,
    noise=0.1,
    copies=2,
    ties=False,
    shuffle=True,
    **more,
):
    """Random objects; each is predicted `copies` times, moved; as many again hit nothing."""
    rng = np.random.default_rng(seed)
    rows, found, cats = [], [], categories(classes)
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 2 * objects + 1)):
            category, box = cats[rng.integers(classes)]["id"], random_box(rng)
            row = annotation(len(rows) + 1, image, category, box, int(rng.random() < crowd), **more)
            rows.append(row)
            for _ in range(copies):
                guess = category if rng.random() < 0.9 else cats[rng.integers(classes)]["id"]
                found.append(prediction(image, guess, moved(box, rng, noise), rng.random()))
                wrong = cats[rng.integers(classes)]["id"]
                found.append(prediction(image, wrong, random_box(rng), rng.random()))
    if ties:
        for row in found:
            row["score"] = round(row["score"], 1)
    if shuffle:
        found = [found[i] for i in rng.permutation(len(found))]
    return truth(rows, images, cats), found


def truth(rows, images, cats):
    sizes = [{"id": i, "width": SIDE, "height": SIDE} for i in range(1, images + 1)]
    return {"images": sizes, "categories": cats, "annotations": rows}


def area_edges():
    """Areas of exactly 32^2 and 96^2, of objects and of detections that match nothing."""
    sides = (31, 32, 33, 95, 96, 97)
    rows, found, cats = [], [], categories(1)
    for image, side in enumerate(sides, 1):
        box = [2, 3, side, side]
        corners = [[2, 3, 2 + side, 3, 2 + side, 3 + side, 2, 3 + side]]
        row = annotation(image, image, cats[0]["id"], box, area=side * side, segmentation=corners)
        rows.append(row)
        square = coco_mask.merge(coco_mask.frPyObjects(corners, SIDE, SIDE))
        square = {"size": square["size"], "counts": square["counts"].decode()}
        for shift, score in ((0, 0.5), (40, 0.7), (1, 0.6)):
            box = [2 + shift, 3, side, side]
            row = prediction(image, cats[0]["id"], box, score)
            found.append(row | ({"segmentation": square} if shift == 0 else {}))
    return truth(rows, len(sides), cats), found


def one_class_lacks(part):
    """A class without objects, or one that is never predicted."""
    scored, found = scene(7)
    lonely = scored["categories"][2]["id"]
    if part == "objects":
        kept = [a for a in scored["annotations"] if a["category_id"] != lonely]
        scored = scored | {"annotations": kept}
    else:
        found = [p for p in found if p["category_id"] != lonely]
    return scored, found


def images_lack(part):
    """Every third image has no object, or no detection."""
    scored, found = scene(8)
    if part == "objects":
        kept = [a for a in scored["annotations"] if a["image_id"] % 3]
        scored = scored | {"annotations": kept}
    else:
        found = [p for p in found if p["image_id"] % 3]
    return scored, found


def all_crowds():
    scored, found = scene(9, crowd=1.0)
    return scored, found


def degenerate():
    """Boxes without width or height, on both sides, and masks without a pixel."""
    scored, found = scene(10, images=6)
    for rows in (scored["annotations"], found):
        for row in rows[::5]:
            row["bbox"][2] = 0
        for row in rows[::7]:
            row["bbox"][2:] = [0, 0]
    empty = coco_mask.encode(np.zeros((SIDE, SIDE), np.uint8, order="F"))
    for row in found[::5]:
        row["segmentation"] = {"size": empty["size"], "counts": empty["counts"].decode()}
    return scored, found


def same_place():
    """Objects that lie upon one another, and detections that fit several of them equally."""
    cats, rows, found = categories(2), [], []
    for image in (1, 2, 3):
        for crowd in (0, 0, 1, 0):
            rows.append(annotation(len(rows) + 1, image, 2, [10, 10, 50, 40], crowd))
        for score in (0.5, 0.5, 0.9, 0.1, 0.5):
            found.append(prediction(image, 2, [10, 10, 50, 40], score))
    return truth(rows, 3, cats), found


def duplicates():
    """One box predicted often, with equal and unequal scores."""
    scored, found = scene(11, copies=1)
    return scored, [dict(p, score=p["score"] / n) for p in found for n in (1, 1, 2)]


def big_ids():
    scored, found = scene(12, images=5)
    for row in scored["images"]:
        row["id"] += 10**12
    for row in (*scored["annotations"], *found):
        row["image_id"] += 10**12
    for row in scored["annotations"]:
        row["id"] += 9 * 10**11
    return scored, found


# Name -> function without arguments that returns (annotation file's contents, predictions).
CASES = {
    "plain": lambda: scene(0, crowd=0),
    "crowds": lambda: scene(1, crowd=0.4),
    "only crowds": all_crowds,
    "exact": lambda: scene(2, noise=0.0, copies=1),
    "far off": lambda: scene(3, noise=0.5),
    "ties": lambda: scene(4, ties=True),
    "ties, in order": lambda: scene(4, ties=True, shuffle=False),
    "ignore flags": lambda: scene(5, ignore=1),
    "over 100 detections": lambda: scene(6, images=3, classes=2, objects=40, copies=4, ties=True),
    "no object of a class": lambda: one_class_lacks("objects"),
    "no detection of a class": lambda: one_class_lacks("detections"),
    "images without objects": lambda: images_lack("objects"),
    "images without detections": lambda: images_lack("detections"),
    "areas at the edges": area_edges,
    "degenerate": degenerate,
    "same place": same_place,
    "duplicates": duplicates,
    "large ids": big_ids,
    "one detection": lambda: (scene(13)[0], scene(13)[1][:1]),
    "no object at all": lambda: (scene(14)[0] | {"annotations": []}, scene(14)[1]),
}


def noisy(contents, seed=0, per_object=2):
    """Predictions made from annotations: moved boxes and masks, wrong classes, inventions."""
    rng = np.random.default_rng(seed)
    sizes = {row["id"]: (row["height"], row["width"]) for row in contents["images"]}
    cats = [row["id"] for row in contents["categories"]]
    found = []
    for row in contents["annotations"]:
        h, w = sizes[row["image_id"]]
        part = row["segmentation"]
        if isinstance(part, dict):
            part = coco_mask.frPyObjects(part, h, w) if isinstance(part["counts"], list) else part
        else:
            part = coco_mask.merge(coco_mask.frPyObjects(part, h, w))
        pixels = coco_mask.decode(part)
        for _ in range(per_object):
            reach = np.maximum(1, np.array(row["bbox"][2:]) * 0.15)
            dx, dy = rng.normal(0, reach)
            shifted = np.roll(pixels, (int(dy), int(dx)), axis=(0, 1))
            code = coco_mask.encode(np.asfortranarray(shifted))
            x, y, bw, bh = row["bbox"]
            category = row["category_id"] if rng.random() < 0.85 else cats[rng.integers(len(cats))]
            found.append(
                {
                    "image_id": row["image_id"],
                    "category_id": category,
                    "bbox": [x + dx, y + dy, bw * rng.uniform(0.8, 1.2), bh],
                    "score": round(rng.random(), 2),
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
    return [found[i] for i in rng.permutation(len(found))]
