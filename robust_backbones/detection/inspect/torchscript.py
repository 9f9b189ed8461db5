"""A detector as a TorchScript file, which runs without Detectron2."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn
from torch.nn import functional

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.detection.inspect.predictor import as_array

EXTRA = "robust_backbones.json"  # the entry of the file that says what goes in and comes out


def export(predictor: Any, path: str | Path, example: Any) -> dict:
    """Trace the detector with Detectron2's `TracingAdapter`, compare, and write it to `path`.

    The file takes one image, `(3, h, w)` float32 in [0, 255], as `Predictor.preprocess` makes it,
    and returns a tuple of tensors whose names are in the entry `robust_backbones.json` (pass
    `_extra_files` to `torch.jit.load`, after `import torchvision`, whose operators are used). Boxes
    are in pixels of the resized image; masks are those of Mask R-CNN, `(N, 1, 28, 28)`
    probabilities within each box, as in Detectron2's own export. It runs on the device that the
    predictor is on.

    Args:
        predictor: a `Predictor`.
        path: the file to write, such as `detector.ts`.
        example: an image, as the predictor takes it, in which the detector finds something. It is
            traced; the outputs are compared on it, on smaller and mirrored forms of it that have
            other sizes, and on a black image.

    Returns:
        What the entry holds: `outputs`, `format`, `min_size`, `max_size`, `classes` (None if
        unknown here), `device`, `weights_sha256`.

    Raises:
        UserError: nothing is found in the example, this model cannot be traced, its outputs differ
            from the model's own, or the file cannot be written. Nothing is written then.
    """
    from detectron2.export import TracingAdapter

    image = predictor.preprocess(as_array(example))["image"].to(predictor.model.device)
    adapter = TracingAdapter(predictor.model, image, _inference)
    written = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Of Python values that become constants; whether that matters is compared below.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(adapter, (image,), check_trace=False)
        facts = _facts(predictor, adapter)
        torch.jit.save(traced, written, _extra_files={EXTRA: json.dumps(facts)})
        written.seek(0)
        read = torch.jit.load(written)
        found = [_compare(adapter, read, other) for other in _others(image)]
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"this detector cannot be exported to TorchScript: {text}") from error
    if 0 in found[:2]:
        raise UserError(
            "the detector finds nothing in the example or a smaller form of it, so the export "
            "cannot be compared; give an image with large objects of its classes."
        )
    with atomic(path) as temporary:
        temporary.write_bytes(written.getvalue())
    return facts


def _others(image: Tensor) -> list[Tensor]:
    """The image, and images of other sizes, contents and numbers of objects."""
    smaller = functional.interpolate(image[None], scale_factor=0.75, mode="bilinear")[0]
    turned = image.transpose(1, 2)[:, :, : max(image.shape[1] // 2, 32)].flip(1)
    return [image, smaller, turned, torch.zeros_like(smaller)]


def _inference(model: nn.Module, image: Tensor) -> list[dict]:
    """The detector without resizing its results to an original image, which it knows nothing of."""
    if isinstance(model, GeneralizedRCNN):
        return [{"instances": model.inference([{"image": image}], do_postprocess=False)[0]}]
    return model([{"image": image}])


def _compare(adapter: Any, exported: Any, image: Tensor) -> int:
    """The number of objects found.

    Raises:
        UserError: the two differ.
    """
    with torch.no_grad():
        expected = adapter(image)
    for name, a, b in zip(_names(adapter), expected, exported(image), strict=True):
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4):
            raise UserError(
                f"the exported detector differs from the model in {name} on an image of "
                f"{image.shape[2]} x {image.shape[1]} pixels; it was not written."
            )
    return len(expected[0])


def _names(adapter: Any) -> list[str]:
    """The names of the flat outputs, from the schema that says how to put them together again."""
    instances = adapter.outputs_schema.schemas[0].schemas[0]
    return [*instances.keys, "image_size"]


def _facts(predictor: Any, adapter: Any) -> dict:
    try:
        classes = list(predictor.classes)
    except UserError:
        classes = None
    cfg = predictor.cfg
    return {
        "outputs": _names(adapter),
        "format": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "classes": classes,
        "device": str(predictor.model.device),
        "weights_sha256": predictor.weights_sha256,
    }
