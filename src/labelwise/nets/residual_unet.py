"""A U-Net with a residual encoder, whose strides and kernels follow the spacing of the data.

Every level of the encoder is a row of residual blocks; the first block of a level shrinks the image by the level's
stride, which may differ between axes: thick slices stay as they are until their plane is as coarse. The decoder
is light: one transposed convolution and one convolution for each level.

Source
    Isensee et al., MICCAI 2024 (nnU-Net revisited), https://arxiv.org/abs/2404.09556: residual encoders;
    He et al., ECCV 2016: the shortcut is a mean over the stride and a 1x1 convolution where channels change.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.errors import ConfigError
from labelwise.nets.parts import (
    Blueprint,
    Decoder,
    Encoder,
    Head,
    Interpolate,
    Norm,
    Upsampling,
    UpStage,
    brick,
    normalisation,
)

Positive = Annotated[int, Field(ge=1)]
PerAxis = tuple[Positive, ...]

NEGATIVE_SLOPE = 0.01  # of the leaky ReLU


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ResidualUNetSettings:
    # channels at full resolution; they double at every level
    width: Positive = 16
    # no level has more channels than this; None: 512 in 2D, 320 in 3D
    max_width: Positive | None = None
    # residual blocks of each level of the encoder, fine to coarse
    blocks: tuple[Positive, ...] = (1, 2, 2, 2, 2)
    # convolutions of each level of the decoder
    decoder_convolutions: Positive = 1
    # for each level one number per axis; the first is 1 everywhere. None: 2 along every axis
    strides: tuple[PerAxis, ...] | None = None
    # for each level one odd number per axis; None: 3 along every axis
    kernels: tuple[PerAxis, ...] | None = None
    norm: Norm = "instance"
    upsampling: Upsampling = "transposed"
    # heads at the coarser scales of the decoder, which `supervised` and the self-training methods train as well
    deep_supervision: bool = False
    # a convolution before the blocks of the first level, as in nnU-Net, for whose public encoders it is needed
    stem: bool = False


class ResidualUNet(Blueprint):
    """Builds the parts of a residual U-Net."""

    Settings = ResidualUNetSettings

    def __init__(self, settings: ResidualUNetSettings, dims: int, in_channels: int):
        self.settings, self.dims, self.in_channels = settings, dims, in_channels
        levels = len(settings.blocks)
        self.level_strides = settings.strides or ((1,) * dims, *((2,) * dims for _ in range(levels - 1)))
        self.kernels = settings.kernels or ((3,) * dims,) * levels
        self._check(levels)
        most = settings.max_width or {2: 512, 3: 320}[dims]
        self.channels = tuple(min(settings.width * 2**level, most) for level in range(levels))

    @property
    def strides(self) -> tuple[int, ...]:
        """By how much the encoder shrinks the image along each axis."""
        return tuple(prod(axis) for axis in zip(*self.level_strides, strict=True))

    @property
    def stride(self) -> int:
        return max(self.strides)

    @property
    def deep_supervision(self) -> bool:
        return self.settings.deep_supervision

    def encoder(self) -> Encoder:
        stem = [self._unit(0, self.in_channels, self.channels[0])] if self.settings.stem else []
        before = (self.channels[0] if stem else self.in_channels, *self.channels)
        stages = []
        for level, count in enumerate(self.settings.blocks):
            first = self._block(level, before[level], self.level_strides[level])
            same = (self._block(level, self.channels[level], (1,) * self.dims) for _ in range(count - 1))
            stages.append(nn.Sequential(*(stem if level == 0 else []), first, *same))
        return Encoder(stages, self.channels, strides=self.strides).apply(self._initialise)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        stages = []
        for level in reversed(range(len(self.channels) - 1)):
            up = self._up(level, upsampling or self.settings.upsampling)
            fine = self.channels[level]
            widths = (2 * fine, *(fine for _ in range(self.settings.decoder_convolutions)))
            parts = [self._unit(level, *pair) for pair in pairwise(widths)]
            stages.append(UpStage(up, nn.Sequential(*parts)))
        return Decoder(stages, self.channels[-2::-1]).apply(self._initialise)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels)

    def _up(self, level: int, upsampling: Upsampling) -> nn.Module:
        coarse, fine, stride = self.channels[level + 1], self.channels[level], self.level_strides[level + 1]
        if upsampling == "transposed":
            return cast(nn.Module, brick("transposed", self.dims)(coarse, fine, stride, stride=stride))
        enlarge = Interpolate(self.dims, linear=upsampling == "trilinear", factor=stride)
        return nn.Sequential(brick("convolution", self.dims)(coarse, fine, 1), enlarge)

    def _block(self, level: int, before: int, stride: PerAxis) -> nn.Module:
        after = self.channels[level]
        first = self._unit(level, before, after, stride)
        second = nn.Sequential(*list(self._unit(level, after, after))[:2])  # the activation follows the sum
        shortcut: list[nn.Module] = []
        if prod(stride) > 1:
            shortcut.append(brick("mean_pooling", self.dims)(stride, stride))
        if before != after:
            shortcut.append(brick("convolution", self.dims)(before, after, 1, bias=False))
            shortcut.append(self._norm(after))
        return ResidualBlock(nn.Sequential(first, second), nn.Sequential(*shortcut))

    def _unit(self, level: int, before: int, after: int, stride: PerAxis | None = None) -> nn.Sequential:
        kernel = self.kernels[level]
        padding = tuple(length // 2 for length in kernel)
        convolution = brick("convolution", self.dims)
        return nn.Sequential(
            convolution(
                before, after, kernel, stride=stride or (1,) * self.dims, padding=padding, bias=False
            ),
            self._norm(after),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        )

    def _norm(self, channels: int) -> nn.Module:
        return normalisation(self.settings.norm, self.dims, channels, affine=True)

    def _initialise(self, module: nn.Module) -> None:
        kinds = (brick("convolution", self.dims), brick("transposed", self.dims))
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _check(self, levels: int) -> None:
        for name, table in (("strides", self.level_strides), ("kernels", self.kernels)):
            if len(table) != levels or any(len(row) != self.dims for row in table):
                raise ConfigError(
                    f"net.settings.{name} must have one row for each level and one number for each axis",
                    found=f"{[list(row) for row in table]}",
                    expected=f"{levels} rows (as many as net.settings.blocks) of {self.dims} numbers",
                )
        if prod(self.level_strides[0]) != 1:
            raise ConfigError(
                "the first level of a residual_unet keeps the size of the image",
                found=f"net.settings.strides[0] = {list(self.level_strides[0])}",
                expected=f"{[1] * self.dims}",
            )
        if any(length % 2 == 0 for row in self.kernels for length in row):
            raise ConfigError("kernels must have odd lengths", found=f"{[list(row) for row in self.kernels]}")


class ResidualBlock(nn.Module):
    """The activation of what two convolutions add to the shortcut."""

    def __init__(self, convolutions: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.convolutions = convolutions
        self.shortcut = shortcut
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the level before -> features of this level."""
        return cast(Tensor, self.activation(self.convolutions(features) + self.shortcut(features)))
