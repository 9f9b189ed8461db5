"""Export a detector as a TorchScript file, which runs without Detectron2."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn
from torch.nn import functional

from robust_backbones.core.errors import UserError, out_of_gpu_memory
from robust_backbones.core.files import atomic
from robust_backbones.detection.inspect.predictor import Predictor, as_array

EXTRA = "robust_backbones.json"  # entry of the file that describes inputs and outputs


def export(predictor: Predictor, path: str | Path, example: Any) -> dict:
    """Trace a detector with Detectron2's `TracingAdapter`, verify the trace and write it to a file.

    The exported model maps one image, `(3, h, w)` float32 in [0, 255] from `Predictor.preprocess`,
    to a tuple of tensors. The entry `robust_backbones.json` of the file lists the names of these
    tensors. To read the entry, pass `_extra_files` to `torch.jit.load`. Import torchvision first,
    because the model uses torchvision's operators. Boxes are in pixels of the resized image. Masks
    are `(N, 1, 28, 28)` probabilities within each box, as in Detectron2's export. The model runs on
    the predictor's device.

    Args:
        predictor: the detector.
        path: file to write, such as `detector.ts`.
        example: image with detections, in any form that the predictor accepts. Outputs are compared
            on this image, a smaller copy, a rotated and cropped copy, and a black image.

    Returns:
        The contents of `robust_backbones.json`, a dictionary with keys `outputs`, `format`,
        `min_size`, `max_size`, `classes` (None if unknown), `device` and `weights_sha256`.

    Raises:
        UserError: the example has no detections, the model cannot be traced, its outputs differ, or
            the file cannot be written. No file is written in these cases.
    """
    image = predictor.preprocess(as_array(example))["image"].to(predictor.model.device)
    adapter = TracingAdapter(predictor.model, image, _inference)
    written = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The warnings are about Python values that become constants. The comparison below
            # detects wrong constants.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(adapter, (image,), check_trace=False)
        facts = _describe(predictor, adapter)
        torch.jit.save(traced, written, _extra_files={EXTRA: json.dumps(facts)})
        written.seek(0)
        read = torch.jit.load(written)
        found = [_compare(adapter, read, other) for other in _test_images(image)]
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
        if out_of_gpu_memory(error):
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"The detector cannot be exported to TorchScript: {text}") from error
    if 0 in found[:2]:
        raise UserError(
            "The detector finds nothing in the example or a smaller copy of it, so the export "
            "cannot be verified. Give an image with large objects of its classes."
        )
    with atomic(path) as temporary:
        temporary.write_bytes(written.getvalue())
    return facts


def _test_images(image: Tensor) -> list[Tensor]:
    """Return the image, and three images that differ in size, content and number of objects."""
    smaller = functional.interpolate(image[None], scale_factor=0.75, mode="bilinear")[0]
    turned = image.transpose(1, 2)[:, :, : max(image.shape[1] // 2, 32)].flip(1)
    return [image, smaller, turned, torch.zeros_like(smaller)]


def _inference(model: nn.Module, image: Tensor) -> list[dict]:
    """Run the detector without scaling its results to the size of an original image."""
    if isinstance(model, GeneralizedRCNN):
        return [{"instances": model.inference([{"image": image}], do_postprocess=False)[0]}]
    return model([{"image": image}])


def _compare(adapter: Any, exported: Any, image: Tensor) -> int:
    """Compare the outputs of detector and export on an image. Return the number of detections.

    Raises:
        UserError: the outputs differ.
    """
    with torch.no_grad():
        expected = adapter(image)
    for name, a, b in zip(_output_names(adapter), expected, exported(image), strict=True):
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4):
            raise UserError(
                f"The exported detector differs from the model in {name} on an image of "
                f"{image.shape[2]} x {image.shape[1]} pixels. It was not written."
            )
    return len(expected[0])


def _output_names(adapter: Any) -> list[str]:
    """Return the names of the exported model's outputs, in order."""
    instances = adapter.outputs_schema.schemas[0].schemas[0]
    return [*instances.keys, "image_size"]


def _describe(predictor: Predictor, adapter: Any) -> dict:
    try:
        classes = list(predictor.classes)
    except UserError:
        classes = None
    cfg = predictor.cfg
    return {
        "outputs": _output_names(adapter),
        "format": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "classes": classes,
        "device": str(predictor.model.device),
        "weights_sha256": predictor.weights_sha256,
    }
