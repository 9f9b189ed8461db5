"""Networks of published models that timm lacks. Importing this module registers them in timm.

`*_cvst` are the networks of Singh et al. 2023, with convolutions as the first layers, under the
tensor names of their files. `xcit_*_12_p16_224` are sizes of XCiT of Debenedetti et al. 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d, PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn

from robust_backbones.core.input_statistics import PRESETS


class ConvStem(nn.Module):
    """First layers of a network: 3x3 convolutions, each with LayerNorm and GELU.

    Args:
        widths: number of output channels of each convolution.
        strides: stride of each convolution.
        projection: number of output channels of a 1x1 convolution at the end; None: no such
            convolution.
    """

    def __init__(
        self, widths: tuple[int, ...], strides: tuple[int, ...], projection: int | None = None
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for before, width, stride in zip((3, *widths), widths, strides, strict=False):
            convolution = nn.Conv2d(before, width, 3, stride, padding=1)
            layers += [convolution, LayerNorm2d(width, eps=1e-6), nn.GELU()]
        if projection is not None:
            layers.append(nn.Conv2d(widths[-1], projection, 1))
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(N, 3, H, W)` to features at the stride of all layers together."""
        return self.stem(x)


class _ConvStemNeXt(ConvNeXt):
    def __init__(self, *args: Any, widths: tuple[int, ...], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_module("stem", ConvStem(widths, (2, 2, 1)))


class _ConvPatchEmbed(PatchEmbed):
    """Map patches of 16x16 pixels to vectors by convolutions of stride 2."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        stem = ConvStem((48, 96, 192, 384), (2, 2, 2, 2), kwargs["embed_dim"])
        self.register_module("proj", stem)


@dataclass(frozen=True)
class _Network:
    """A network to register.

    Attributes:
        build: function that builds the network. Its arguments are timm's.
        first: name of the first convolution.
        last: name of the last layer.
        statistics: preset of the input statistics of the published weights.
    """

    build: Callable[..., nn.Module]
    first: str
    last: str
    statistics: str


def _convnext(blocks: int, width: int, widths: tuple[int, ...]) -> _Network:
    sizes: dict[str, Any] = {
        "depths": (3, 3, blocks, 3),
        "dims": tuple(width << stage for stage in range(4)),
    }
    build = partial(_ConvStemNeXt, **sizes, widths=widths)
    return _Network(build, "stem.stem.0", "head.fc", "none")


def _vit(width: int, heads: int, statistics: str) -> _Network:
    sizes: dict[str, Any] = {"embed_dim": width, "depth": 12, "num_heads": heads}
    build = partial(VisionTransformer, **sizes, embed_layer=_ConvPatchEmbed)
    return _Network(build, "patch_embed.proj.stem.0", "head", statistics)


def _xcit(width: int, heads: int) -> _Network:
    sizes: dict[str, Any] = {"embed_dim": width, "depth": 12, "num_heads": heads}
    build = partial(Xcit, **sizes, eta=1.0, tokens_norm=True)
    return _Network(build, "patch_embed.proj.0.0", "head", "none")


_NETWORKS = {
    "convnext_tiny_cvst": _convnext(9, 96, (48, 96)),
    "convnext_small_cvst": _convnext(27, 96, (48, 96)),
    "convnext_base_cvst": _convnext(27, 128, (64, 96, 128)),
    "convnext_large_cvst": _convnext(27, 192, (96, 144, 192)),
    "vit_small_cvst": _vit(384, 6, "imagenet"),
    "vit_base_cvst": _vit(768, 12, "none"),
    "xcit_medium_12_p16_224": _xcit(512, 8),
    "xcit_large_12_p16_224": _xcit(768, 16),
}
default_cfgs = generate_default_cfgs(  # `register_model` reads this name
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "interpolation": "bicubic",
            "mean": PRESETS[row.statistics].mean,
            "std": PRESETS[row.statistics].std,
            "first_conv": row.first,
            "classifier": row.last,
        }
        for name, row in _NETWORKS.items()
    }
)


def _register(name: str, row: _Network) -> None:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(row.build, name, pretrained, **options)

    build.__name__ = name
    register_model(build)


for _name, _row in _NETWORKS.items():
    _register(_name, _row)
