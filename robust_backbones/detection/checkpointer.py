"""Load and save checkpoints of detectors.

Loading raises errors where Detectron2 only warns. Saving is atomic.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torch.optim.swa_utils import AveragedModel

from robust_backbones.archs import TIMM
from robust_backbones.checkpoint.containers import find_state
from robust_backbones.checkpoint.formats import TIMM_BODY
from robust_backbones.checkpoint.io import load_file, save_file
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import atomic, sha256
from robust_backbones.core.input_statistics import ASSUMED
from robust_backbones.detection.backbone import body, same_pixels
from robust_backbones.detection.timm_backbone import TimmNetwork
from robust_backbones.finite import check_weights


class StrictCheckpointer(DetectionCheckpointer):
    """A `DetectionCheckpointer` that raises an error if the file lacks tensors of the model.

    `load(path)` requires all tensors of the model. Evaluations and resumed runs use it. In a new
    run, `resume_or_load` requires only the tensors of the pretrained network. The FPN and the heads
    may start from random weights.

    Attributes:
        sha256: SHA-256 digest of the last loaded file; None before the first load.
        input_format: channel order of the images, `INPUT.FORMAT`. None for the `input_format` of
            the model, which Detectron2's `SemanticSegmentor` does not have.
        image_range: `INPUT.IMAGE_RANGE`, saved with the model if it is not empty; None if unknown.
            A detector that was saved with a different range is rejected.
        classes: class names of the data, in order, saved with the model; None if unknown. A
            detector that was saved with different classes is rejected.
        statistics: source of the model's input statistics, saved with the model if they were
            assumed; None if unknown.
        average: averaged weights, or None. They are saved as `model`, and the weights being trained
            as `training_model`.
    """

    sha256: str | None = None
    _file = ""
    input_format: str | None = None
    image_range: list[float] | None = None
    classes: list[str] | None = None
    statistics: str | None = None
    average: AveragedModel | None = None

    def use_input(self, cfg: CfgNode) -> None:
        """Take the channel order and the range of the images from a config."""
        self.input_format = cfg.INPUT.FORMAT
        self.image_range = list(cfg.INPUT.get("IMAGE_RANGE") or [])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a checkpoint into the model and the checkpointables.

        Args:
            path: file, URL or `robust://` path; empty for random weights.
            checkpointables: names of the checkpointables to load; None for all.

        Raises:
            UserError: the file is not a checkpoint, tensors are missing or have a different shape,
                or the network in the file requires a different input or has different classes.
        """
        if not path:
            logging.getLogger(__name__).warning(
                "MODEL.WEIGHTS is empty. The model starts from random weights."
            )
        # Detectron2 passes [] in a new run.
        self._required = ("",) if checkpointables is None else _pretrained(self.model)
        # Newer versions of Detectron2 do not reset this after an error, and then never load again.
        self._parsed_url_during_load = None
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict:
        """Load a file as Detectron2 does, but verify checksums and never execute a pickle."""
        self.sha256, self._file = sha256(filename), filename
        loaded: Any = load_file(filename)
        if not isinstance(loaded, dict):
            raise UserError(
                f"{filename} contains a {type(loaded).__name__}, not a dictionary of tensors."
            )
        if filename.endswith(".pkl") and not {"model", "__author__"} <= loaded.keys():
            weights = {k: v for k, v in loaded.get("blobs", loaded).items() if "_momentum" not in k}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if "model" not in loaded:
            loaded = {"model": find_state(loaded, filename)[0]}
        model = loaded["model"]
        if not isinstance(model, dict) or not all(hasattr(v, "shape") for v in model.values()):
            raise UserError(f"{filename}: 'model' is not a dictionary of tensors.")
        # Newer versions of Detectron2 accept the path FILE?matching_heuristics=True.
        query = getattr(getattr(self, "_parsed_url_during_load", None), "query", "")
        if "matching_heuristics=True" in query:
            loaded["matching_heuristics"] = True
        return loaded

    def _load_model(self, checkpoint: dict) -> Any:
        if isinstance(metadata := checkpoint.get("metadata"), dict):
            check_input(self.model, metadata, self.input_format)
            self._check_classes(metadata.get("classes"))
            self._check_range(metadata.get("image_range"))
        if self.checkpointables and self._required == ("",):  # the run resumes
            self._take_average(checkpoint)
        _name_as_in(self.model, checkpoint)
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], c2_conversion=caffe2
            )
        # Detectron2's list of missing keys is incomplete: FrozenBN silently replaces missing
        # statistics with 0 and 1.
        given = {name: tuple(tensor.shape) for name, tensor in checkpoint["model"].items()}
        absent = [
            name
            for name, tensor in self.model.state_dict().items()
            if name.startswith(self._required)
            and not name.endswith("num_batches_tracked")
            and given.get(name) != tuple(tensor.shape)
        ]
        if absent:
            shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if absent[3:] else "")
            these = counted(len(absent), "tensor is missing or has", "tensors are missing or have")
            raise UserError(
                f"{self._file}: {self._misfit(absent, given, metadata)}. {these} a different "
                f"shape: {shown}."
            )
        return super()._load_model(checkpoint)

    def _misfit(self, absent: list[str], given: dict[str, tuple], metadata: Any) -> str:
        """Return why tensors of the model are not in the file, and the fix.

        Args:
            absent: names of the tensors.
            given: shapes of the tensors in the file, by name.
            metadata: metadata of the file; None if it has none.
        """
        if self._required == ("",):
            return (
                "the weights do not fit the detector of this config. Give a trained detector, such "
                "as OUTPUT_DIR/model_final.pth"
            )
        own = {name.partition(TIMM_BODY)[2] for name in absent}  # timm's names
        if own & given.keys() or any("layer1." in name for name in given):
            return (
                "the weights are a classifier. Convert them: robust-backbones convert "
                f"{self._file} backbone.pth"
            )
        arch = metadata.get("arch") if isinstance(metadata, dict) else None
        network = f" of a {arch}" if arch else ""
        return (
            f"the weights{network} do not fit the backbone of this config. Give complete "
            "weights of the network MODEL.ROBUST.ARCH"
        )

    def _take_average(self, checkpoint: dict) -> None:
        """Load the averaged weights, and make the training weights the `model` of `checkpoint`."""
        training = checkpoint.pop("training_model", None)
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint["model"])
            self.average.n_averaged.fill_(checkpoint.get("averaged", 0))
        checkpoint["model"] = training or checkpoint["model"]

    def _check_classes(self, saved: Any) -> None:
        """Reject a detector if its class names or their order differ from the data."""
        if saved is None or isinstance(saved, int) or self.classes is None:
            return  # classifiers have their number of classes
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise _invalid("classes", saved, "a list of names")
        if self._required == ("",) and saved != self.classes:
            raise UserError(
                f"The detector was trained on {len(saved)} classes ({_shown(saved)}), but the "
                f"data have {len(self.classes)} ({_shown(self.classes)}). They "
                "must be the same, in the same order (DATASETS.CLASSES)."
            )

    def _check_range(self, saved: Any) -> None:
        """Reject a detector if images with more than 8 bits are scaled differently now."""
        if saved is None or self.image_range is None or self._required != ("",):
            return
        if not _are_numbers(saved):
            raise _invalid("image_range", saved, "two numbers")
        if list(saved) != self.image_range:
            raise _contradiction("INPUT.IMAGE_RANGE", self.image_range, list(saved))

    def save(self, name: str, tag: bool = True, **kwargs: Any) -> None:
        """Save the model and the checkpointables atomically as `<save_dir>/<name>.pth`.

        Args:
            name: file name without suffix.
            tag: whether a resumed run starts from this file.
            kwargs: further entries of the file.

        Raises:
            UserError: the weights contain NaN or infinity.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        contents = {"model": self.model.state_dict(), "metadata": self._metadata()}
        if self.average is not None:
            contents |= {
                "model": self.average.module.state_dict(),
                "training_model": contents["model"],
                "averaged": int(self.average.n_averaged),
            }
        path = os.path.join(self.save_dir, f"{name}.pth")
        for part in {"model", "training_model"} & contents.keys():
            check_weights(contents[part], path)
        contents |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        self.logger.info("Saving checkpoint to %s", path)
        save_file(contents | kwargs, path)
        if tag:
            self.tag_last_checkpoint(os.path.basename(path))

    def _metadata(self) -> dict:
        """Return input format, image range, strides and classes of the detector.

        Later conversions and checks use them.
        """
        order = self.input_format or _attribute(self.model, "input_format")
        assumed = ASSUMED if self.statistics == ASSUMED else None
        found = {
            "channel_order": order,
            "image_range": self.image_range or None,
            "classes": self.classes,
            "statistics": assumed,
        }
        for name in ("mean", "std"):
            pixels = _pixels(self.model, name)
            found[name] = pixels and [round(value / 255, 6) for value in pixels]
        found["arch"] = next(
            (part.arch for part in self.model.modules() if isinstance(part, TimmNetwork)), None
        )
        known = {key: value for key, value in found.items() if value is not None}
        return known | {"stride_in_1x1": _stride_in_1x1(self.model)}

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record the name of the file from which a resumed run starts."""
        with atomic(os.path.join(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename)


def check_input(model: nn.Module, metadata: dict, input_format: str | None = None) -> None:
    """Check that a model gets the images and has the strides that its weights require.

    Values that are absent in the metadata or the model are not checked.

    Args:
        model: detector. The attributes `input_format`, `pixel_mean` and `pixel_std` of the first
            module with them are checked.
        metadata: metadata of the weights. They are untrusted: another program may have written
            them.
        input_format: channel order of the images, "RGB" or "BGR"; None if the model states it.

    Raises:
        UserError: the model contradicts the metadata, or the metadata are invalid.
    """
    order = input_format or _attribute(model, "input_format")
    needed = metadata.get("channel_order", order)
    if order and order != needed:
        raise _contradiction("INPUT.FORMAT", order, needed)
    for name in ("mean", "std"):
        found, stated = _pixels(model, name), metadata.get(name)
        if found is None or stated is None:
            continue
        key = f"MODEL.PIXEL_{name.upper()}"
        # Assumed statistics contradict only Detectron2's defaults, which are for BGR images.
        default = get_cfg().MODEL[key.removeprefix("MODEL.")]
        if metadata.get("statistics") == ASSUMED and not same_pixels(found, default):
            continue
        if not _are_numbers(stated) or len(stated) != len(found):
            raise _invalid(name, stated, f"{len(found)} numbers")
        needed = [round(255 * value, 3) for value in stated]
        if not same_pixels(needed, found):
            raise _contradiction(key, found, needed)
    stride = _stride_in_1x1(model)
    if metadata.get("stride_in_1x1", False) != stride:
        raise _contradiction("MODEL.RESNETS.STRIDE_IN_1X1", stride, not stride)


def _guarded(load_model: Callable) -> Callable:
    """Return `DetectionCheckpointer._load_model` with a check of the model's input, if recorded."""

    @functools.wraps(load_model)
    def load(self: DetectionCheckpointer, checkpoint: dict) -> Any:
        metadata = checkpoint.get("metadata")
        strict = isinstance(self, StrictCheckpointer)
        if not strict and isinstance(metadata, dict) and "channel_order" in metadata:
            check_input(self.model, metadata)
        _name_as_in(self.model, checkpoint)
        return load_model(self, checkpoint)

    return load


# Detectron2's own checkpointer, which LazyConfig projects use, would load weights for RGB images
# into a model for BGR images.
DetectionCheckpointer._load_model = _guarded(DetectionCheckpointer._load_model)


def _name_as_in(model: nn.Module, checkpoint: dict) -> None:
    """Name the tensors of a converted timm network as in a detector, in place.

    Detectron2 matches names by their ends. `norm.weight` of a network would also match the FPN.
    """
    metadata = checkpoint.get("metadata")
    arch = metadata.get("arch") if isinstance(metadata, dict) else None
    if str(arch).startswith(TIMM) and checkpoint.pop("matching_heuristics", False):
        prefix = _pretrained(model)[0]
        checkpoint["model"] = {prefix + name: t for name, t in checkpoint["model"].items()}


def _pretrained(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the tensors that must come from the pretrained weights.

    Raises:
        UserError: the model has no backbone.
    """
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            # In C4 detectors, the last stage is part of the head.
            head = name.rpartition("backbone")[0] + "roi_heads.res5."
            return f"{name}.{body(module)[0]}", head
    raise UserError(
        f"The model {type(model).__name__} has no Detectron2 backbone. Strict loading requires "
        "one. Load the weights with Detectron2's DetectionCheckpointer."
    )


def _attribute(model: nn.Module, name: str) -> Any:
    """Return the attribute of the first module that has it, or None."""
    return next((getattr(part, name) for part in model.modules() if hasattr(part, name)), None)


def _pixels(model: nn.Module, name: str) -> list[float] | None:
    """Return the mean or the standard deviation of the model for pixels in [0, 255]."""
    buffer = _attribute(model, f"pixel_{name}")
    return None if buffer is None else [round(value, 3) for value in buffer.flatten().tolist()]


def _stride_in_1x1(model: nn.Module) -> bool:
    """Return whether a bottleneck block has its stride in the first 1x1 convolution."""
    blocks = (part for part in model.modules() if isinstance(part, BottleneckBlock))
    return any(block.conv1.stride != (1, 1) for block in blocks)


def _are_numbers(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(v, (int, float)) for v in values)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if names[8:] else "")


def _invalid(key: str, found: object, needed: str) -> UserError:
    return UserError(
        f"The metadata of the weights are invalid: {key} is {found!r:.80}. It must be {needed}."
    )


def _contradiction(key: str, found: object, needed: object) -> UserError:
    return UserError(f"{key} is {found}, but the weights require {needed}. Set {key} to {needed}.")
