"""Run a trained detector on images, with the same output as Detectron2's `DefaultPredictor`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from PIL import Image
from torch.nn.functional import interpolate

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding, from_pillow
from robust_backbones.core.paths import expand
from robust_backbones.detection import semantic_attack
from robust_backbones.detection.attack import pgd
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.config import load_config, merge_overrides, num_classes
from robust_backbones.detection.data.mapper import decoding_of, read_image
from robust_backbones.detection.model_weights import local_weights
from robust_backbones.detection.run_checks import set_device
from robust_backbones.detection.semantic_attack import network_logits
from robust_backbones.detection.training.trainer import Trainer

ATTACKED_SCORE = 0.5  # detections with at least this score are the ground truth of an attack


def load(
    config_or_checkpoint: str | Path | CfgNode,
    weights: str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> "Predictor":
    """Load a trained detector.

    Args:
        config_or_checkpoint: source of the detector, which is one of
            - a run folder of `robust-backbones train`, with `config.yaml` and a checkpoint;
            - a checkpoint (`.pth`, `.pkl`) in a folder with the run's `config.yaml`;
            - a config file (`.yaml`), with a whole detector in `MODEL.WEIGHTS` or `weights`;
            - a `CfgNode`, for configs with keys of other projects.
        weights: path or URL of the detector's weights; None for the checkpoint or `MODEL.WEIGHTS`
            above. For a run folder, None means the last checkpoint.
        device: device such as "cuda:1" or "cpu"; None for the config's device, or for the CPU if
            there is no GPU.
        overrides: `KEY VALUE` pairs in a flat list, as on the command line.

    Returns:
        A `Predictor` in eval mode.

    Raises:
        UserError: a file is missing or does not fit, or a tensor of the model was not loaded from
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
        merge_overrides(cfg, [*overrides, *given])
        return cfg
    path = Path(expand(source))
    if path.suffix in (".yaml", ".yml"):
        return load_config(path, [*overrides, *given])
    if not path.exists():
        raise UserError(
            f"'{source}' does not exist. Give a run folder, a checkpoint in a folder with "
            "config.yaml, or a config file."
        )
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} contains no config.yaml from a run. Give the config file, and the weights "
            "as the second argument."
        )
    if weights is None:
        given = ["MODEL.WEIGHTS", str(_last_checkpoint(path) if path.is_dir() else path)]
    return load_config(folder / "config.yaml", [*overrides, *given])


def _last_checkpoint(folder: Path) -> Path:
    tag = folder / "last_checkpoint"
    if not tag.is_file():
        raise UserError(f"{folder} contains no checkpoint. Give weights.")
    return folder / tag.read_text(encoding="utf-8").strip()


def _choose_device(cfg: CfgNode, device: str | None) -> None:
    if device is None:
        set_device(cfg, 1)
        return
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"device '{device}' is unknown. Use 'cuda', 'cuda:1' or 'cpu'.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}': no CUDA GPU found. Use 'cpu' or None.")
    cfg.MODEL.DEVICE = str(device)


class Predictor:
    """Detectron2's `DefaultPredictor` for RGB images, with strict loading.

    For an image, semantic segmentation returns `{"sem_seg": logits}`, `(classes, H, W)`.

    Attributes:
        cfg: configuration.
        model: detector in eval mode.
        weights_sha256: SHA-256 of the weight file.
        decoding: settings of the image decoder.
    """

    def __init__(self, cfg: CfgNode):
        """Build the detector of a config and load its weights. For errors, see `load`."""
        self.cfg, self.decoding = cfg.clone(), decoding_of(cfg)
        path = cfg.MODEL.WEIGHTS
        if not path:
            raise UserError("MODEL.WEIGHTS is empty. Give the checkpoint of a trained detector.")
        local_weights(path)
        self.model = Trainer.build_model(self.cfg).eval()
        checkpointer = StrictCheckpointer(self.model)
        checkpointer.use_input(cfg)
        metadata = checkpointer.load(path).get("metadata")
        self.weights_sha256 = checkpointer.sha256
        self._dataset = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, "none")[0]
        saved = metadata.get("classes") if isinstance(metadata, dict) else None
        self._classes = saved or cfg.DATASETS.get("CLASSES")
        if not self._classes and self._dataset in MetadataCatalog.list():
            self._classes = MetadataCatalog.get(self._dataset).get("thing_classes")
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: Any) -> Instances:
        """Detect objects.

        Args:
            image: image, or a list of images that form one batch. An image is a uint8 RGB array
                `(H, W, 3)` in [0, 255], a PIL image or a path. The EXIF orientation of files is
                applied. The orientation of PIL images is ignored. OpenCV reads images as BGR, which
                this method cannot detect. Convert such arrays to RGB with `image[:, :, ::-1]`.
                Images of unequal size are padded, as in Detectron2, which may change the last
                digits of scores.

        Returns:
            Predictions `{"instances": Instances}` in the coordinates of the image, in order of
            descending score. They equal the output of Detectron2's predictor. For a list of images,
            the method returns a list of such dictionaries.

        Raises:
            UserError: an image has a different type, shape or dtype, or cannot be read.
        """
        if isinstance(image, (list, tuple)):
            return self._batch([as_array(item, self.decoding) for item in image])
        return self._batch([as_array(image, self.decoding)])[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `pred_classes`.

        The names come from the weights, from `DATASETS.CLASSES`, or from the config's first
        dataset.

        Raises:
            UserError: there are no class names, or their number differs from the detector's number
                of classes.
        """
        names = self._classes
        if not names:
            raise UserError(
                f"The weights contain no class names, and dataset '{self._dataset}' is not "
                "registered. Set DATASETS.CLASSES, or DATASETS.TEST to a registered dataset."
            )
        found = num_classes(self.cfg)
        if found and len(names) != found[1]:
            raise UserError(
                f"The detector has {found[1]} classes, but the weights contain no class names, and "
                f"dataset '{self._dataset}' has {len(names)}. Set DATASETS.CLASSES."
            )
        return tuple(names)

    @property
    def metadata(self) -> Metadata:
        """Metadata with class names for Detectron2's `Visualizer`. For errors, see `classes`."""
        return Metadata().set(thing_classes=list(self.classes))

    def attack(
        self, image: Any, *, eps: float, steps: int = 10, seed: int = 0, **options: Any
    ) -> dict:
        """Perturb an image by PGD so that the model loses its own predictions.

        The detections with a score of at least 0.5, or the predicted classes of all pixels, are the
        ground truth of the attack. For annotated images, use `pgd`.

        Args:
            image: image, as for a prediction.
            eps: perturbation radius for pixels in [0, 1], such as 4/255 (L-infinity).
            steps: number of gradient steps.
            seed: seed for the random start.
            options: further arguments of `pgd`, such as `constraint="l2"` or `loss`.

        Returns:
            Input of the model as from `preprocess`, with the attacked image. Detect objects in it
            with `predictor.model([attacked])`.

        Raises:
            UserError: the image or an argument is invalid.
        """
        array = as_array(image, self.decoding)
        item, output = self.preprocess(array), self._batch([array])[0]
        if "sem_seg" in output:
            with torch.no_grad():
                (logits,) = network_logits(self.model, [item["image"].to(self.model.device)])
            item["sem_seg"] = logits.argmax(dim=0)
            attack: Any = semantic_attack.pgd
        else:
            found = output["instances"]
            confident = found[found.scores >= ATTACKED_SCORE]
            item["instances"] = as_truth(confident, item["image"].shape[1:])
            attack = pgd
        generator = torch.Generator(str(self.model.device)).manual_seed(seed)
        bound: dict[str, Any] = {"constraint": "linf", "generator": generator, **options}
        [item["image"]] = attack(self.model, [item], eps=eps, steps=steps, **bound)
        return item

    def preprocess(self, image: np.ndarray) -> dict:
        """Resize an RGB image for the model.

        Returns:
            Model input, a dictionary. `image` is `(3, h, w)` float32 in [0, 255], with channels in
            the order of `INPUT.FORMAT`. `height` and `width` are the size of the original image, to
            which predictions are scaled.
        """
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        try:
            resized = self.aug.get_transform(image).apply_image(image)
        except ValueError:  # Pillow rejects a size of 0 pixels
            raise UserError(
                f"An image of {width} x {height} pixels is too thin to be resized to at most "
                f"INPUT.MAX_SIZE_TEST {self.cfg.INPUT.MAX_SIZE_TEST}."
            ) from None
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}

    def _batch(self, images: list[np.ndarray]) -> list[dict]:
        if not images:
            return []
        with torch.no_grad():
            return self.model([self.preprocess(image) for image in images])


def as_truth(found: Instances, size: Sequence[int]) -> Instances:
    """Return detections as ground truth of a resized image.

    Args:
        found: detections, in the coordinates of `found.image_size`.
        size: height and width of the resized image, in pixels.
    """
    height, width = size
    truth = Instances((height, width))
    truth.gt_boxes, truth.gt_classes = found.pred_boxes.clone(), found.pred_classes
    truth.gt_boxes.scale(width / found.image_size[1], height / found.image_size[0])
    if found.has("pred_masks"):
        masks = found.pred_masks[:, None].float()
        truth.gt_masks = BitMasks(interpolate(masks, (height, width))[:, 0] > 0)
    return truth


def as_array(image: Any, decoding: Decoding | None = None) -> np.ndarray:
    """Convert any image that `Predictor` accepts to `(H, W, 3)` uint8 RGB.

    Args:
        image: image, as for `Predictor`.
        decoding: settings of the decoder.

    Raises:
        UserError: the image has a different type, shape or dtype, or cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(str(image), decoding)
    if isinstance(image, Image.Image):
        return np.asarray(from_pillow(image, decoding))
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image is a {type(image).__name__}. Give an (H, W, 3) uint8 RGB array, a path or a "
            "PIL image."
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        batch = " A batch is a list of images." if image.ndim == 4 else ""
        raise UserError(f"an image has shape {image.shape}. Give (H, W, 3), RGB.{batch}")
    if image.dtype != np.uint8:
        raise UserError(
            f"an image has dtype {image.dtype}. Give uint8 in [0, 255]: multiply values in [0, 1] "
            "by 255, round, and convert."
        )
    return image
