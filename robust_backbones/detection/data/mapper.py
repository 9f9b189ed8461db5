"""Read the images of detection datasets, for training, evaluation and prediction."""

import copy
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding, decode, decoding_errors
from robust_backbones.detection.data.semantic_masks import mask_of, read_mask


def decoding_of(cfg: CfgNode) -> Decoding:
    """Return the settings of the image decoder.

    Raises:
        UserError: `INPUT.IMAGE_RANGE` is invalid.
    """
    # Configs of other projects do not have the key.
    return Decoding(cfg.INPUT.get("IMAGE_RANGE"), option="INPUT.IMAGE_RANGE [MIN,MAX]")


def read_image(
    path: str | Path, decoding: Decoding | None = None, channels: str = "RGB"
) -> np.ndarray:
    """Read an image file, like Detectron2's function of the same name.

    Unlike Detectron2's function, it applies the orientation of TIFF images only once. Images with
    more than 8 bits per channel are scaled by `decoding` or are an error.

    Args:
        path: path or URL of the image, as Detectron2's `PathManager` accepts it.
        decoding: settings of the decoder.
        channels: format of the result, as in `INPUT.FORMAT`.

    Returns:
        Image `(H, W, C)`, uint8 in [0, 255], except for the format YUV-BT.601.

    Raises:
        UserError: the image cannot be read.
    """
    with decoding_errors(path), PathManager.open(str(path), "rb") as file:
        return detection_utils.convert_PIL_to_numpy(decode(file, path, decoding), channels)


def check_image_size(item: dict, image: np.ndarray) -> None:
    """Compare the size of an image with its dataset dictionary. Add the size if it is missing.

    Raises:
        UserError: the sizes differ.
    """
    height, width = image.shape[:2]
    wanted = item.setdefault("width", width), item.setdefault("height", height)
    if wanted != (width, height):
        raise UserError(
            f"{item['file_name']}: the image has {width} x {height} pixels, but its annotations "
            f"are for {wanted[0]} x {wanted[1]}. Correct the annotations, or replace the image."
        )


SEGMENTOR = "SemanticSegmentor"  # meta architecture of semantic segmentation


def semantic_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return the augmentations for semantic segmentation: resize, crop, flip.

    Unlike in Detectron2's mapper, the crop follows the resize, so that all crops have the same
    size. Detectron2's DeepLab project has the same order and the same key
    `INPUT.CROP.SINGLE_CATEGORY_MAX_AREA`.
    """
    resize, *flip = detection_utils.build_augmentation(cfg, is_train=True)
    if not cfg.INPUT.CROP.ENABLED:
        return [resize, *flip]
    crop = T.RandomCrop_CategoryAreaConstraint(
        cfg.INPUT.CROP.TYPE,
        cfg.INPUT.CROP.SIZE,
        cfg.INPUT.CROP.get("SINGLE_CATEGORY_MAX_AREA", 1.0),
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
    return [resize, crop, *flip]


class ImageMapper(DatasetMapper):
    """Detectron2's mapper with the image decoder and the mask reader of this project."""

    def __init__(self, cfg: CfgNode, is_train: bool, **changes: object):
        """Create the mapper of a configuration.

        Args:
            cfg: configuration.
            is_train: whether the mapper keeps the annotations.
            changes: arguments of `DatasetMapper` that replace the configuration's.
        """
        semantic = cfg.MODEL.META_ARCHITECTURE == SEGMENTOR
        if semantic and is_train:
            changes = {"augmentations": semantic_augmentations(cfg)} | changes
        super().__init__(cfg, is_train, **changes)
        self._decoding = decoding_of(cfg)
        self._classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES if semantic else None

    def __call__(self, item: dict) -> dict:
        """Map a dataset dictionary to a model input.

        Raises:
            UserError: the image or its mask cannot be read, their sizes differ, or the mask has an
                index that no class has.
        """
        item = copy.deepcopy(item)
        image = read_image(item["file_name"], self._decoding, self.image_format)
        check_image_size(item, image)
        segmentation = None
        if "sem_seg_file_name" in item:
            mask = mask_of(item)
            del item["sem_seg_file_name"]
            segmentation = read_mask(mask, self._classes)
            if segmentation.shape != image.shape[:2]:
                height, width = segmentation.shape
                raise UserError(
                    f"mask {mask.file} has {width} x {height} pixels, but {item['file_name']} has "
                    f"{image.shape[1]} x {image.shape[0]}. Replace one of them."
                )
        augmented = T.AugInput(image, sem_seg=segmentation)
        changes = self.augmentations(augmented)
        image, shape = augmented.image, augmented.image.shape[:2]
        item["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if segmentation is not None:
            item["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                item, shape, changes, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            item.pop("annotations", None)
        elif "annotations" in item:
            self._transform_annotations(item, changes, shape)
        return item
