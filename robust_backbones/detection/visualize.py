"""Pictures of predictions beside the truth."""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer

from robust_backbones.detection.checkpointer import StrictCheckpointer


def truth_and_prediction(
    cfg: CfgNode, dataset: str, count: int, scale: float = 3.0, threshold: float = 0.5
) -> Iterator[np.ndarray]:
    """Draw the first images of a registered data set, annotated and as `MODEL.WEIGHTS` sees them.

    Args:
        cfg: a detector's config; its weights must be those of a whole detector.
        count: images, at most.
        scale: size of the drawing relative to the image.
        threshold: lowest score of a drawn prediction, in [0, 1].

    Yields:
        `(H, 2 W, 3)` uint8 RGB: left the truth, right the predictions.

    Raises:
        UserError: the weights are not those of this whole detector.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (dataset,)  # whose classes the predictor names
    predictor = DefaultPredictor(cfg)
    StrictCheckpointer(predictor.model).load(cfg.MODEL.WEIGHTS)  # the predictor only warns
    items, meta = DatasetCatalog.get(dataset)[:count], MetadataCatalog.get(dataset)
    for item in items:
        image = detection_utils.read_image(item["file_name"], format="RGB")
        with torch.no_grad():
            instances = predictor(image[:, :, ::-1])["instances"].to("cpu")  # it wants BGR
        instances = instances[instances.scores >= threshold]
        left = Visualizer(image, meta, scale).draw_dataset_dict(item).get_image()
        right = Visualizer(image, meta, scale).draw_instance_predictions(instances).get_image()
        yield np.concatenate([left, right], axis=1)
