"""A trained detector as a Python object: images in, Detectron2's predictions out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from PIL import Image

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import check_size, decoding_errors
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.config import load_config, set_device
from robust_backbones.detection.model_weights import local_weights
from robust_backbones.detection.training.trainer import Trainer

# Where a meta architecture's config has the number of classes.
_CLASS_COUNTS = {
    "GeneralizedRCNN": lambda cfg: cfg.MODEL.ROI_HEADS.NUM_CLASSES,
    "RetinaNet": lambda cfg: cfg.MODEL.RETINANET.NUM_CLASSES,
}


def load(
    config_or_checkpoint: str | Path | CfgNode,
    weights: str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> "Predictor":
    """Load a trained detector.

    Args:
        config_or_checkpoint: one of
            - a run folder of `robust-backbones train`: its `config.yaml` and last checkpoint;
            - a checkpoint file (`.pth`, `.pkl`) with the run's `config.yaml` beside it;
            - a config file (`.yaml`), whose `MODEL.WEIGHTS` or `weights` is a whole detector;
            - a `CfgNode`, for configs with keys of other projects.
        weights: path or URL of the detector's weights; None takes what is said above.
        device: such as "cuda:1" or "cpu"; None takes the config's, and the CPU where that is a GPU
            and the machine has none.
        overrides: `KEY VALUE` pairs in one flat list, as on the command line.

    Returns:
        A `Predictor`, in eval mode.

    Raises:
        UserError: something is missing or does not fit, or a tensor of the model did not come from
            the weights.
    """
    cfg = _configuration(config_or_checkpoint, weights, [str(part) for part in overrides])
    _choose_device(cfg, device)
    return Predictor(cfg)


def _configuration(
    source: str | Path | CfgNode, weights: str | Path | None, overrides: list[str]
) -> CfgNode:
    given = [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
    if isinstance(source, CfgNode):
        cfg = source.clone()
        cfg.defrost()
        try:
            cfg.merge_from_list([*overrides, *given])
        except (KeyError, ValueError, AssertionError) as error:
            raise UserError(f"overrides: {' '.join(str(error.args[0]).split())}") from None
        return cfg
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return load_config(path, [*overrides, *given])
    if not path.exists():
        raise UserError(
            f"'{source}' does not exist; give a run folder, a checkpoint with its config.yaml "
            "beside it, or a config file."
        )
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} holds no config.yaml, which a run writes; give the config file, and the "
            "weights beside it."
        )
    if weights is None:
        given = ["MODEL.WEIGHTS", str(_last_checkpoint(path) if path.is_dir() else path)]
    return load_config(folder / "config.yaml", [*overrides, *given])


def _last_checkpoint(folder: Path) -> Path:
    tag = folder / "last_checkpoint"
    if not tag.is_file():
        raise UserError(f"{folder} holds no checkpoint yet; give weights.")
    return folder / tag.read_text(encoding="utf-8").strip()


def _choose_device(cfg: CfgNode, device: str | None) -> None:
    if device is None:
        set_device(cfg, 1)
        return
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"device '{device}' is unknown; give 'cuda', 'cuda:1' or 'cpu'.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}' is not there: no GPU found; give 'cpu' or None.")
    cfg.MODEL.DEVICE = str(device)


class Predictor:
    """What Detectron2's `DefaultPredictor` does, for RGB images, and with strict loading.

    Attributes:
        cfg: the configuration.
        model: the detector, in eval mode.
        weights_sha256: digest of the weight file.
    """

    def __init__(self, cfg: CfgNode):
        """Build and load; see `load`, which gives the config. Raises as it does."""
        self.cfg = cfg.clone()
        path = cfg.MODEL.WEIGHTS
        if not path:
            raise UserError("MODEL.WEIGHTS is empty. Give the checkpoint of a trained detector.")
        local_weights(path)
        self.model = Trainer.build_model(self.cfg).eval()
        checkpointer = StrictCheckpointer(self.model)
        metadata = checkpointer.load(path).get("metadata")
        self.weights_sha256 = checkpointer.sha256
        self._dataset = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, "none")[0]
        saved = metadata.get("classes") if isinstance(metadata, dict) else None
        self._classes = saved or cfg.DATASETS.get("CLASSES")
        if not self._classes and self._dataset in MetadataCatalog.list():
            self._classes = MetadataCatalog.get(self._dataset).get("thing_classes")
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: Any) -> Instances:
        """Detect.

        Args:
            image: `(H, W, 3)` uint8 array in RGB order, [0, 255]; or a path, whose EXIF orientation
                is applied; or a PIL image, which is taken as it is. An array in BGR order, as
                OpenCV reads it, cannot be told from an RGB one: flip it (`image[:, :, ::-1]`). A
                list of images is one batch; images of unequal size are padded in it, as Detectron2
                does, which may change a score in the last digits.

        Returns:
            `{"instances": Instances}` in the coordinates of the image, best score first, exactly as
            Detectron2's predictor; for a list, a list of them.

        Raises:
            UserError: not such an image; names shape or type, and the fix.
        """
        if isinstance(image, (list, tuple)):
            return self._batch([as_array(item) for item in image])
        return self._batch([as_array(image)])[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by `pred_classes`: those that were saved with the weights, else those of
        `DATASETS.CLASSES`, else those of the first of `DATASETS.TEST`.

        Raises:
            UserError: none of these says, or they are not as many as the detector has.
        """
        names = self._classes
        if not names:
            raise UserError(
                f"the weights do not name their classes, and data set '{self._dataset}' is not "
                "known here; set DATASETS.CLASSES, or DATASETS.TEST to a data set that is."
            )
        count = _CLASS_COUNTS.get(self.cfg.MODEL.META_ARCHITECTURE, lambda cfg: len(names))
        if len(names) != count(self.cfg):
            raise UserError(
                f"the detector has {count(self.cfg)} classes, but the weights do not name them, "
                f"and data set '{self._dataset}' has {len(names)}; set DATASETS.CLASSES."
            )
        return tuple(names)

    @property
    def metadata(self) -> Metadata:
        """The classes in the form that Detectron2's `Visualizer` takes. Raises as `classes`."""
        return Metadata().set(thing_classes=list(self.classes))

    def preprocess(self, image: np.ndarray) -> dict:
        """The model's input for one RGB image: resized, `(3, h, w)` float32 in the order of
        `INPUT.FORMAT`, and the size that the predictions are to have."""
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        try:
            resized = self.aug.get_transform(image).apply_image(image)
        except ValueError:  # Pillow: one side would be 0
            raise UserError(
                f"the image is {width} x {height} pixels, too thin to be resized to at most "
                f"INPUT.MAX_SIZE_TEST {self.cfg.INPUT.MAX_SIZE_TEST}."
            ) from None
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}

    def _batch(self, images: list[np.ndarray]) -> list[dict]:
        if not images:
            return []
        with torch.no_grad():
            return self.model([self.preprocess(image) for image in images])


def as_array(image: Any) -> np.ndarray:
    """An image in one of the forms that `Predictor` takes, as `(H, W, 3)` uint8 RGB.

    Raises:
        UserError: not such an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(str(image))
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image is a {type(image).__name__}; give an (H, W, 3) uint8 RGB array, a path or a "
            "PIL image."
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        batch = " A batch is a list of images." if image.ndim == 4 else ""
        raise UserError(f"an image has shape {image.shape}; give (H, W, 3), RGB.{batch}")
    if image.dtype != np.uint8:
        raise UserError(
            f"an image is {image.dtype}; give uint8 values in [0, 255]: multiply values in [0, 1] "
            "by 255, round, and convert."
        )
    return image


def _read(path: str) -> np.ndarray:
    with decoding_errors(path):
        with Image.open(path) as image:
            check_size(image)
        return detection_utils.read_image(path, format="RGB")
