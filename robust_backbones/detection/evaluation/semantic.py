"""Evaluate a registered dataset with semantic masks, with the metrics of Detectron2."""

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import SemSegEvaluator

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.semantic_masks import IGNORED, mask_of, read_mask
from robust_backbones.detection.evaluation.tables import log_metrics


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's `SemSegEvaluator`, with the mask reader of this project.

    This class differs from Detectron2's class in three points:

    - An index that no class has, or a mask of a different size, is an error. Detectron2 counts
      wrong pixels instead.
    - `reduce_zero_label` is applied, and palettes are read by index.
    - The predictions are not written.

    Args:
        name: name of the registered dataset.
        distributed: whether to gather the counts of all processes. Only the main process returns
            metrics.
    """

    def __init__(self, name: str, distributed: bool = True):
        super().__init__(name, distributed, None)
        # Newer versions of Detectron2 also count boundary pixels if OpenCV is installed.
        self._compute_boundary_iou = False
        self._masks = {item["file_name"]: mask_of(item) for item in DatasetCatalog.get(name)}
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of each pair of a predicted and a true class.

        Args:
            inputs: inputs of the model, with `file_name`.
            outputs: outputs of the model, with logits `sem_seg` `(classes, H, W)`.

        Raises:
            UserError: a mask is invalid, or its size or the number of classes differs from the
                output.
        """
        classes = self._num_classes
        for image, output in zip(inputs, outputs, strict=True):
            logits, mask = output["sem_seg"], self._masks[image["file_name"]]
            truth = read_mask(mask, classes).astype(np.int64)
            if tuple(logits.shape) != (classes, *truth.shape):
                raise UserError(
                    f"{mask.file}: the model returns {tuple(logits.shape)} logits, but the data "
                    f"has {classes} classes and the mask {truth.shape} pixels. Use data with the "
                    "classes of the model."
                )
            found = logits.argmax(dim=0).cpu().numpy()
            truth[truth == IGNORED] = classes
            pairs = np.bincount(
                ((classes + 1) * found + truth).ravel(), minlength=(classes + 1) ** 2
            )
            self._conf_matrix += pairs.reshape(classes + 1, classes + 1)

    def evaluate(self) -> dict:
        """Compute mIoU, fwIoU, mACC and pACC, and IoU and accuracy of each class.

        The metrics of classes without pixels are NaN. If such a class is predicted, it counts in
        mIoU with an IoU of 0.

        Returns:
            Metrics `{"sem_seg": {metric: percent}}`; empty outside the main process.
        """
        with np.errstate(invalid="ignore"):  # no pixel has a label
            found = super().evaluate()
        if not found:
            return {}
        results = {"sem_seg": {name: float(value) for name, value in found["sem_seg"].items()}}
        log_metrics(results)
        return results
