"""Separate the image tower of a CLIP from its text tower, in files of open_clip and OpenAI.

The tensors of a ViT are under open_clip's names, which timm can rename. All other image towers of
open_clip are timm networks under timm's names.
"""

import re

from torch import Tensor

from robust_backbones.core.errors import UserError

TEXT = "part of the text tower"
PROJECTION = "projection to the embeddings of images and texts, not a classifier"
_TOWER = re.compile(r"((?:.*\.)?)visual\.(?:class_embedding$|trunk\.)")
_TRUNK = "visual.trunk."
_PROJECTION = re.compile(r"visual\.(proj$|head\.)")
_TEXT = re.compile(
    r"(transformer|token_embedding|positional_embedding|ln_final|text\w*|logit_\w+|attn_mask"
    r"|input_resolution|context_length|vocab_size)(\.|$)"
)
_ALONE = {"class_embedding", "positional_embedding", "ln_pre.weight", "ln_post.weight"}


def image_tower(
    state: dict[str, Tensor], source: object
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Extract the image tower of a CLIP, without the projection after its features.

    Args:
        state: `{key: tensor}` of a whole CLIP, or of its image tower alone.
        source: name of the file in error messages.

    Returns:
        Tensors of the image tower and `{key: reason why it is dropped}`, or None if the file is
        not a CLIP.

    Raises:
        UserError: a key is in neither of the towers.
    """
    if state.keys() >= _ALONE:
        state = {f"visual.{key}": tensor for key, tensor in state.items()}
    towers = [found[1] for key in state if (found := _TOWER.match(key))]
    if not towers:
        return None
    tensors, dropped = {}, {}
    for key, tensor in state.items():
        name = key.removeprefix(towers[0])
        if _TEXT.match(name):
            dropped[key] = TEXT
        elif _PROJECTION.match(name):
            dropped[key] = PROJECTION
        elif name.startswith("visual."):
            tensors[name.removeprefix(_TRUNK)] = tensor
        else:
            raise UserError(
                f"{source}: '{key}' is neither in the image tower nor in the text tower of a "
                "CLIP model. Save only the state_dict of the CLIP model."
            )
    return tensors, dropped
