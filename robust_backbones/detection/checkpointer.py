"""Load and save checkpoints of detectors.

Loading raises errors where Detectron2 only warns. Saving is atomic.
"""

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch.optim.swa_utils import AveragedModel

from robust_backbones.checkpoint.containers import find_state
from robust_backbones.checkpoint.io import load_file, save_file
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, sha256
from robust_backbones.detection.backbone import body
from robust_backbones.finite import check_weights
from robust_backbones.zoo import PIXEL_MEAN, PIXEL_STD


class StrictCheckpointer(DetectionCheckpointer):
    """A `DetectionCheckpointer` that raises an error if the file lacks tensors of the model.

    `load(path)` requires all tensors of the model. Evaluations and resumed runs use it. In a new
    run, `resume_or_load` requires only the tensors of the pretrained network. The FPN and the heads
    may start from random weights.

    Attributes:
        sha256: SHA-256 digest of the last loaded file; None before the first load.
        classes: class names of the data, in order, saved with the model; None if unknown. A
            detector that was saved with other classes is rejected.
        average: averaged weights, or None. They are saved as `model`, and the weights being trained
            as `training_model`.
    """

    sha256: str | None = None
    classes: list[str] | None = None
    average: AveragedModel | None = None

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a checkpoint into the model and the checkpointables.

        Args:
            path: file, URL or `robust://` path; empty for random weights.
            checkpointables: names of the checkpointables to load; None for all.

        Raises:
            UserError: the file is not a checkpoint, tensors are missing or have another shape, or
                the network in the file requires another input or has other classes.
        """
        if not path:
            logging.getLogger(__name__).warning(
                "MODEL.WEIGHTS is empty. The model starts from random weights."
            )
        # Detectron2 passes [] in a new run. In C4 detectors, the last stage is part of the head.
        fresh = ("backbone." + body(self.model.backbone)[0], "roi_heads.res5.")
        self._required = ("",) if checkpointables is None else fresh
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict:
        """Load a file as Detectron2 does, but verify checksums and never execute a pickle."""
        self.sha256 = sha256(filename)
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
            try:
                self._check_input(metadata)
                self._check_classes(metadata.get("classes"))
            except UserError:
                raise
            except (TypeError, ValueError, AttributeError) as error:
                # Metadata that another program wrote can have any types.
                raise UserError(f"The metadata of the weights are invalid ({error}).") from None
        if self.checkpointables and self._required == ("",):  # the run resumes
            self._take_average(checkpoint)
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
            shown = ", ".join(absent[:6]) + (f" and {len(absent) - 6} more" if absent[6:] else "")
            whole = self._required == ("",)
            part, needed = ("model", "whole detector") if whole else ("backbone", "backbone")
            fix = f"Give the weights of a {needed} of this config"
            if isinstance(metadata, dict) and not whole and metadata.get("arch"):
                fix += f" (these are a {metadata['arch']})"
            if any("layer1." in name for name in given) and not whole:
                fix = "The weights are a classifier. Convert them with robust-backbones convert"
            raise UserError(
                f"{fix}. {len(absent)} tensors of the {part} did not come from the file: {shown}."
            )
        return super()._load_model(checkpoint)

    def _take_average(self, checkpoint: dict) -> None:
        """Load the averaged weights, and make the training weights the `model` of `checkpoint`."""
        training = checkpoint.pop("training_model", None)
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint["model"])
            self.average.n_averaged.fill_(checkpoint.get("averaged", 0))
        checkpoint["model"] = training or checkpoint["model"]

    def _check_input(self, metadata: dict) -> None:
        """Check that the input format and the strides in the metadata agree with the model."""
        order = metadata.get("channel_order", self.model.input_format)
        if order != self.model.input_format:
            raise _contradiction("INPUT.FORMAT", self.model.input_format, order)
        for name, buffer in (("mean", self.model.pixel_mean), ("std", self.model.pixel_std)):
            if name not in metadata:
                continue
            needed = [round(255 * value, 3) for value in metadata[name]]
            found = [round(value, 3) for value in buffer.flatten().tolist()]
            if any(abs(a - b) > 0.01 for a, b in zip(needed, found, strict=True)):
                key = f"MODEL.PIXEL_{name.upper()}"
                if needed not in (PIXEL_MEAN, PIXEL_STD):
                    raise UserError(
                        f"The weights require {key} {needed}, but only ImageNet's {found} is "
                        "supported."
                    )
                raise _contradiction(key, found, needed)
        if metadata.get("stride_in_1x1", False) != self._stride_in_1x1():
            raise _contradiction(
                "MODEL.RESNETS.STRIDE_IN_1X1", self._stride_in_1x1(), not self._stride_in_1x1()
            )

    def _check_classes(self, saved: list[str] | None) -> None:
        """Reject a detector if its class names or their order differ from the data."""
        if saved is None or self.classes is None:
            return
        if self._required == ("",) and saved != self.classes:
            raise UserError(
                f"The detector was trained on {len(saved)} classes ({', '.join(saved[:8])}, …), "
                f"but the data have {len(self.classes)} ({', '.join(self.classes[:8])}, …). They "
                "must be the same, in the same order (DATASETS.CLASSES)."
            )

    def _stride_in_1x1(self) -> bool:
        """Return whether a bottleneck block has its stride in the first 1x1 convolution."""
        blocks = body(self.model.backbone)[1].modules()
        return any(isinstance(b, BottleneckBlock) and b.conv1.stride != (1, 1) for b in blocks)

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
        """Return input format, strides and classes of the detector.

        Later conversions and checks use them.
        """
        mean, std = self.model.pixel_mean.flatten(), self.model.pixel_std.flatten()
        return {
            "channel_order": self.model.input_format,
            "mean": [round(value / 255, 6) for value in mean.tolist()],
            "std": [round(value / 255, 6) for value in std.tolist()],
            "stride_in_1x1": self._stride_in_1x1(),
            **({} if self.classes is None else {"classes": self.classes}),
        }

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record the name of the file from which a resumed run starts."""
        with atomic(os.path.join(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename)


def _contradiction(key: str, found: object, needed: object) -> UserError:
    return UserError(f"{key} is {found}, but the weights require {needed}. Set {key} to {needed}.")
