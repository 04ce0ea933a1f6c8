"""What every segmentation network consists of: an encoder, a decoder, and the bricks of both.

Networks are composed, not inherited: a method that needs two decoders, another head or the features in
between asks `labelwise.nets.factory` for the parts and puts them together itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from math import gcd
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.errors import ConfigError

Norm = Literal["batch", "instance", "group"]
Upsampling = Literal["transposed", "trilinear", "nearest"]

GROUPS = 16  # of group normalisation

_BRICKS: dict[int, dict[str, type[nn.Module]]] = {
    2: {
        "convolution": nn.Conv2d,
        "transposed": nn.ConvTranspose2d,
        "pooling": nn.MaxPool2d,
        "mean_pooling": nn.AvgPool2d,
        "dropout": nn.Dropout2d,
        "batch": nn.BatchNorm2d,
        "instance": nn.InstanceNorm2d,
    },
    3: {
        "convolution": nn.Conv3d,
        "transposed": nn.ConvTranspose3d,
        "pooling": nn.MaxPool3d,
        "mean_pooling": nn.AvgPool3d,
        "dropout": nn.Dropout3d,
        "batch": nn.BatchNorm3d,
        "instance": nn.InstanceNorm3d,
    },
}


def brick(name: str, dims: int) -> type[Any]:
    """The layer class of `torch.nn` for images with `dims` axes: ``brick("pooling", 2)`` is MaxPool2d."""
    return _BRICKS[dims][name]


def normalisation(norm: Norm, dims: int, channels: int, *, affine: bool = False) -> nn.Module:
    """Batch or group normalisation with a learned scale and offset; instance normalisation has them if `affine`."""
    if norm == "group":
        return nn.GroupNorm(gcd(GROUPS, channels), channels)
    if norm == "instance":
        return cast(nn.Module, brick(norm, dims)(channels, affine=affine))
    return cast(nn.Module, brick(norm, dims)(channels))


class Interpolate(nn.Module):
    """`factor` times the size along each axis, by linear interpolation or by repeating voxels."""

    def __init__(
        self, dims: int, *, linear: bool, align_corners: bool = False, factor: Sequence[int] | int = 2
    ):
        super().__init__()
        self.factor = float(factor) if isinstance(factor, int) else tuple(map(float, factor))
        self.mode = {2: "bilinear", 3: "trilinear"}[dims] if linear else "nearest"
        self.align_corners = align_corners if linear else None

    def extra_repr(self) -> str:
        return f"mode={self.mode}, align_corners={self.align_corners}"

    def forward(self, features: Tensor) -> Tensor:
        return F.interpolate(
            features, scale_factor=self.factor, mode=self.mode, align_corners=self.align_corners
        )


class Encoder(nn.Module):
    """Stages one after the other; every stage after the first shrinks the image.

    `channels` are those of the stages' outputs, fine to coarse. Spatial sizes must be divisible by `strides`, one for
    each axis; None: every stage after the first halves all of them.
    """

    def __init__(
        self, stages: Iterable[nn.Module], channels: Sequence[int], *, strides: Sequence[int] | None = None
    ):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)
        self.strides = None if strides is None else tuple(strides)
        # An instance norm of a single voxel is undefined.
        kinds = (brick("instance", 2), brick("instance", 3))
        self._needs_two_voxels = any(isinstance(module, kinds) for module in self.modules())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> features (B, channels[i], *S / stride up to i), fine to coarse.

        Errors
            ConfigError     a spatial size is not divisible by the stride, or too small for the norm
        """
        self._check(images.shape[2:])
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def _check(self, size: torch.Size) -> None:
        strides = self.strides or (2 ** (len(self.channels) - 1),) * len(size)
        if any(length % stride for length, stride in zip(size, strides, strict=True)):
            raise ConfigError(
                "the network cannot shrink images of this size often enough",
                found=" x ".join(map(str, size)),
                expected=f"lengths divisible by {' x '.join(map(str, strides))}",
                do="choose another patch size",
            )
        if self._needs_two_voxels and tuple(size) == strides:
            raise ConfigError(
                "images of this size shrink to a single voxel, which instance normalisation cannot take",
                found=" x ".join(map(str, size)),
                expected=f"a length of at least {2 * strides[0]} along one axis",
                do="choose a larger patch size, or another norm",
            )


class Decoder(nn.Module):
    """Stages that take the coarser features and the encoder's features of their own scale.

    `channels` are those of the scales it returns, coarse to fine.
    """

    def __init__(self, stages: Iterable[nn.Module], channels: Sequence[int]):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder's features -> scales, coarse to fine; the last is the embedding (B, channels[-1], *S)."""
        scales = []
        x = features[-1]
        for stage, skip in zip(self.stages, reversed(features[:-1]), strict=True):
            x = stage(x, skip)
            scales.append(x)
        return scales


class UpStage(nn.Module):
    """A stage of a decoder: enlarge, join with the skip (skip first), convolve."""

    def __init__(self, up: nn.Module, convolutions: nn.Module):
        super().__init__()
        self.up = up
        self.convolutions = convolutions

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Features of the coarser scale, and of the encoder at the finer one -> features of the finer scale."""
        return cast(Tensor, self.convolutions(torch.cat([skip, self.up(coarse)], dim=1)))


class SegmentationNet(nn.Module):
    """Encoder, decoder and head in a row.

    `coarse_heads` belong to the scales before the last, coarse to fine: only `at_all_scales` asks them, to train by.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, head: nn.Module, coarse_heads: Iterable[nn.Module] = ()
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.coarse_heads = nn.ModuleList(coarse_heads)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, M, *S) -> logits (B, C, *S), float32."""
        return cast(Tensor, self.head(self.decoder(self.encoder(images))[-1]))

    def with_features(self, images: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Images (B, M, *S) -> logits (B, C, *S), and the decoder's map `level` scales above its last: (B, F, *S)."""
        scales = self.decoder(self.encoder(images))
        features: Tensor = scales[-1 - level]
        if features.shape[2:] != images.shape[2:]:
            mode = {4: "bilinear", 5: "trilinear"}[features.ndim]
            features = F.interpolate(features, images.shape[2:], mode=mode, align_corners=False)
        return self.head(scales[-1]), features

    def at_all_scales(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> logits (B, C, *S), then those of coarser scales, finest first, if it has such heads."""
        scales = self.decoder(self.encoder(images))
        finest: Tensor = self.head(scales[-1])
        coarser = [head(scale) for head, scale in zip(self.coarse_heads, scales[:-1], strict=False)]
        return [finest, *reversed(coarser)]


class Blueprint(ABC):
    """How one kind of network builds its parts; subclasses are listed in `labelwise.nets.factory.NETS`."""

    Settings: ClassVar[type[Any]]  # frozen dataclass, defaults = the published network

    @abstractmethod
    def __init__(self, settings: Any, dims: int, in_channels: int): ...

    @property
    @abstractmethod
    def stride(self) -> int:
        """Spatial sizes must be divisible by this, unless `strides` says more."""

    @property
    def strides(self) -> tuple[int, ...] | None:
        """What the size must be divisible by along each axis; None: `stride` along all of them."""
        return None

    @abstractmethod
    def encoder(self) -> Encoder:
        """A new encoder."""

    @abstractmethod
    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        """A new decoder for the encoder's features; `upsampling` None means the settings' own."""

    @abstractmethod
    def head(self, in_channels: int, out_channels: int) -> nn.Module:
        """A new head: the layer from the embedding to logits."""

    @property
    def deep_supervision(self) -> bool:
        """Whether a whole network also has heads at its coarser scales, to train by."""
        return False


class Head(nn.Module):
    """One convolution whose result leaves in float32, whatever the precision before it.

    Shapes
        forward     (B, in_channels, *S) -> (B, out_channels, *S)
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__()
        convolution = brick("convolution", dims)
        self.convolution = convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, embedding: Tensor) -> Tensor:
        return cast(Tensor, self.convolution(embedding)).float()


def start_from_prior(bias: Tensor, probability: float) -> None:
    """Make a sigmoid of this bias begin with the given probability, in place.

    A structure covers one voxel in a hundred. Maps that begin at one half spend the first hundreds of steps on
    unlearning that, and come out of it saturated.

    Source
        Lin et al., ICCV 2017 (focal loss, section 4.1), https://arxiv.org/abs/1708.02002.
    """
    nn.init.constant_(bias, math.log(probability / (1 - probability)))
