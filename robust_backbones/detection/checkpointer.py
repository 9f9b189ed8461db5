"""Loading that stops where Detectron2 only warns, and saving that leaves no half-written file."""

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch.optim.swa_utils import AveragedModel

from robust_backbones.checkpoint.io import load_file, save_file
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, sha256
from robust_backbones.detection.backbone import body
from robust_backbones.zoo import PIXEL_MEAN, PIXEL_STD


class StrictCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that raises unless every required tensor came from the file.

    `load(path)`, for evaluation and resuming, requires the whole model. A fresh start through
    `resume_or_load` requires the backbone's body only: neck and heads may be new.

    Attributes:
        sha256: digest of the file that was loaded last; None before.
        classes: names, in the order of their numbers, of the data at hand; saved with the model,
            and a whole detector that was saved with others is refused. None for unknown.
        average: averaged weights, which are then what is saved as `model`; those that training
            goes on with are saved beside them.
    """

    sha256: str | None = None
    classes: list[str] | None = None
    average: AveragedModel | None = None

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load `path` into the model and the checkpointables (all of them if None).

        Raises:
            UserError: not a checkpoint, tensors missing or misshapen, or made for another input.
        """
        if not path:
            logging.getLogger(__name__).warning(
                'MODEL.WEIGHTS is "": the model starts from random weights.'
            )
        # Detectron2 passes [] at a fresh start. A C4 detector has the last stage in its head.
        fresh = ("backbone." + body(self.model.backbone)[0], "roi_heads.res5.")
        self._required = ("",) if checkpointables is None else fresh
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict:
        """As Detectron2's, but no pickle is executed and checksums are looked at."""
        self.sha256 = sha256(filename)
        loaded = load_file(filename)
        if not isinstance(loaded, dict):
            raise UserError(
                f"{filename} holds a {type(loaded).__name__}, not a dictionary of tensors."
            )
        if filename.endswith(".pkl") and not {"model", "__author__"} <= loaded.keys():
            weights = {k: v for k, v in loaded.get("blobs", loaded).items() if "_momentum" not in k}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        loaded = loaded if "model" in loaded else {"model": loaded}
        model = loaded["model"]
        if not isinstance(model, dict) or not all(hasattr(v, "shape") for v in model.values()):
            raise UserError(f"{filename}: its 'model' is no dictionary of tensors.")
        # Newer Detectron2: FILE?matching_heuristics=True.
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
            except (TypeError, ValueError, AttributeError) as error:  # of another making
                raise UserError(f"the weights' metadata are damaged ({error}).") from None
        if self.checkpointables and self._required == ("",):  # training goes on
            self._take_average(checkpoint)
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], c2_conversion=caffe2
            )
        # Detectron2's own list of missing keys is not enough: FrozenBN fills in statistics that a
        # file lacks with 0 and 1, and says nothing.
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
            part, needed = ("model", "a whole detector") if whole else ("backbone", "a backbone")
            fix = f"{needed} of this config is needed."
            if isinstance(metadata, dict) and not whole and metadata.get("arch"):
                fix += f" The weights say that they are of a {metadata['arch']}."
            if any("layer1." in name for name in given) and not whole:
                fix = "this is a classifier: robust-backbones convert makes a backbone of it."
            raise UserError(
                f"{len(absent)} tensors of the {part} did not come from the weights: {shown}; {fix}"
            )
        return super()._load_model(checkpoint)

    def _take_average(self, checkpoint: dict) -> None:
        """Put the averaged weights where they belong; training has others."""
        training = checkpoint.pop("training_model", None)
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint["model"])
            self.average.n_averaged.fill_(checkpoint.get("averaged", 0))
        checkpoint["model"] = training or checkpoint["model"]

    def _check_input(self, metadata: dict) -> None:
        """A converted file says what its network was fed with and that its strides are
        torchvision's; the model must agree."""
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
                        f"the weights need {key} {needed}; robust backbones are built for "
                        f"ImageNet's {found} only, so these weights cannot be used."
                    )
                raise _contradiction(key, found, needed)
        if metadata.get("stride_in_1x1", False) != self._stride_in_1x1():
            raise _contradiction(
                "MODEL.RESNETS.STRIDE_IN_1X1", self._stride_in_1x1(), not self._stride_in_1x1()
            )

    def _check_classes(self, saved: list[str] | None) -> None:
        """A detector of other classes, or of the same in another order, would name them wrongly."""
        if saved is None or self.classes is None:
            return
        if self._required == ("",) and saved != self.classes:
            raise UserError(
                f"the detector was trained on {len(saved)} classes, {', '.join(saved[:8])}, …; the "
                f"data have {len(self.classes)}, {', '.join(self.classes[:8])}, …: they must be "
                "the same, in the same order (DATASETS.CLASSES)."
            )

    def _stride_in_1x1(self) -> bool:
        """Whether a 1x1 convolution of the backbone has a stride."""
        blocks = body(self.model.backbone)[1].modules()
        return any(isinstance(b, BottleneckBlock) and b.conv1.stride != (1, 1) for b in blocks)

    def save(self, name: str, tag: bool = True, **kwargs: Any) -> None:
        """Save model and checkpointables as `<save_dir>/<name>.pth`, whole or not at all.

        Args:
            tag: resuming starts from it.
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
        contents |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        save_file(contents | kwargs, path)
        if tag:
            self.tag_last_checkpoint(os.path.basename(path))

    def _metadata(self) -> dict:
        """What the detector is fed with, for whoever takes its backbone out again."""
        mean, std = self.model.pixel_mean.flatten(), self.model.pixel_std.flatten()
        return {
            "channel_order": self.model.input_format,
            "mean": [round(value / 255, 6) for value in mean.tolist()],
            "std": [round(value / 255, 6) for value in std.tolist()],
            "stride_in_1x1": self._stride_in_1x1(),
            **({} if self.classes is None else {"classes": self.classes}),
        }

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file a resume starts from."""
        with atomic(os.path.join(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename)


def _contradiction(key: str, found: object, needed: object) -> UserError:
    return UserError(f"{key} is {found}, but the weights need {needed}; set {key} to that.")
