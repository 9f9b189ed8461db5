"""Use robust weights in a LazyConfig of Detectron2."""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from robust_backbones.checkpoint.io import load_file
from robust_backbones.core.errors import UserError
from robust_backbones.detection.model_weights import local_weights


def use_weights(cfg: DictConfig, weights: str) -> None:
    """Set the initial weights of a LazyConfig, and the input that they require.

    Sets `train.init_checkpoint` to the weights. In the whole config, sets `image_format` of data
    mappers and `input_format` to RGB, `pixel_mean` and `pixel_std` to the statistics of the
    weights, and `stride_in_1x1` to false. Depth and width of the network are not changed: strict
    loading compares them with the weights.

    Args:
        cfg: output of `LazyConfig.load`, or a part of it such as a model, changed in place.
        weights: published model such as `robust://resnet50_l2_eps3`, or a file written by
            `robust-backbones convert`.

    Raises:
        UserError: the weights could not be fetched, do not record the input that they require, or
            `cfg` has no `pixel_mean`.
    """
    contents = load_file(local_weights(weights))
    metadata = contents.get("metadata") if isinstance(contents, dict) else None
    if not isinstance(metadata, dict) or not {"channel_order", "mean", "std"} <= metadata.keys():
        raise UserError(
            f"{weights} has no record of its input. Convert it with robust-backbones convert."
        )
    order = metadata["channel_order"]
    needed = {
        "image_format": order,
        "input_format": order,
        "pixel_mean": [round(255 * value, 3) for value in metadata["mean"]],
        "pixel_std": [round(255 * value, 3) for value in metadata["std"]],
        "stride_in_1x1": metadata.get("stride_in_1x1", False),
    }
    if "pixel_mean" not in _set_all(cfg, needed):
        raise UserError("The config has no pixel_mean. Give a config with a Detectron2 detector.")
    if "train" in cfg:
        cfg.train.init_checkpoint = weights


def _set_all(node: Any, needed: dict) -> set[str]:
    """Set the keys of `needed` wherever they exist, and return the keys that were found."""
    found = set()
    if isinstance(node, DictConfig):
        for key in [str(key) for key in node.keys()]:
            if key in needed:
                node[key] = needed[key]
                found.add(key)
            elif not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
                found |= _set_all(node[key], needed)
    elif isinstance(node, ListConfig):
        for item in node:
            found |= _set_all(item, needed)
    return found
