"""The 3D UX-Net: an encoder of large depth-wise kernels and a residual decoder, in 3D as published and in 2D.

    s1..s4 = volumetric ConvNeXt of the image: 1, 2, 4, 8 times the width at strides 2, 4, 8, 16
    e1 = r(image),  e2..e5 = r(s1)..r(s4)                   r: two 3x3x3 convolutions and a shortcut
    d3..d0 = r(up(coarser) with e4..e1),  embedding = r(d0)

A block of the encoder mixes channels by its normalisation only: both 1x1x1 convolutions work on each channel for
itself. Instance and layer norms need no batch: a case gives the same in any company.

Source
    Lee et al., ICLR 2023, https://arxiv.org/abs/2209.15076: 53,005,922 parameters for one input channel, two
    classes and width 48.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, cast

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.nets.parts import Blueprint, Decoder, Encoder, Head, Interpolate, Upsampling, brick

BLOCKS = 2  # in each of the four stages of the ConvNeXt
EXPANSION = 4
FIRST_SCALE = 1e-6  # of what a block adds to its input
SLOPE = 0.01  # of the leaky ReLU


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UXNetSettings:
    width: Annotated[int, Field(ge=1)] = 48  # channels at full resolution; doubles at every scale
    upsampling: Upsampling = "transposed"


class UXNet(Blueprint):
    """Builds the parts of a 3D UX-Net."""

    Settings = UXNetSettings

    def __init__(self, settings: UXNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        self.channels = tuple(settings.width * 2**level for level in range(5))

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.channels) - 1))

    def encoder(self) -> UXEncoder:
        return UXEncoder(self.dims, self.in_channels, self.channels)

    def decoder(self, upsampling: Upsampling | None = None) -> UXDecoder:
        return UXDecoder(self.dims, self.channels, upsampling or self.settings.upsampling)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels)


class UXEncoder(Encoder):
    """A ConvNeXt, and a residual block on the image and on each of its maps."""

    def __init__(self, dims: int, in_channels: int, channels: Sequence[int]):
        inputs = (in_channels, *channels[:-1])
        blocks = [ResidualBlock(dims, before, after) for before, after in zip(inputs, channels, strict=True)]
        super().__init__(blocks, channels)
        self.volumetric = VolumetricConvNeXt(dims, in_channels, channels[:-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> features (B, channels[i], *S / 2**i), fine to coarse.

        Errors
            ConfigError     a spatial size is not divisible by the stride, or too small for the norm
        """
        self._check(images.shape[2:])
        maps = [images, *self.volumetric(images)]
        return [stage(x) for stage, x in zip(self.stages, maps, strict=True)]


class UXDecoder(Decoder):
    """Residual blocks on the way up, and a last one, `refine`, between the finest scale and the embedding."""

    def __init__(self, dims: int, channels: Sequence[int], upsampling: Upsampling):
        pairs = list(pairwise(channels[::-1]))
        super().__init__([UXUpStage(dims, *pair, upsampling) for pair in pairs], channels[-2::-1])
        self.refine: nn.Module = ResidualBlock(dims, channels[0], channels[0])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder's features -> scales, coarse to fine; the last is the embedding (B, channels[-1], *S)."""
        *coarser, finest = super().forward(features)
        return [*coarser, self.refine(finest)]


class UXUpStage(nn.Module):
    """Enlarge and halve the channels, join with the skip (skip last), a residual block."""

    def __init__(self, dims: int, coarse: int, fine: int, upsampling: Upsampling):
        super().__init__()
        if upsampling == "transposed":
            self.up = brick("transposed", dims)(coarse, fine, 2, stride=2, bias=False)
        else:
            enlarge = Interpolate(dims, linear=upsampling == "trilinear", align_corners=True)
            self.up = nn.Sequential(brick("convolution", dims)(coarse, fine, 1, bias=False), enlarge)
        self.block = ResidualBlock(dims, 2 * fine, fine)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Features of the coarser scale, and of the encoder at the finer one -> features of the finer scale."""
        return cast(Tensor, self.block(torch.cat([self.up(coarse), skip], dim=1)))


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions without bias, instance norms, and a shortcut (1x1x1 where the channels change)."""

    def __init__(self, dims: int, before: int, after: int):
        super().__init__()
        convolution, norm = brick("convolution", dims), brick("instance", dims)
        self.convolutions = nn.Sequential(
            convolution(before, after, 3, padding=1, bias=False),
            norm(after),
            nn.LeakyReLU(SLOPE, inplace=True),
            convolution(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(convolution(before, after, 1, bias=False), norm(after))

    def forward(self, features: Tensor) -> Tensor:
        """(B, before, *S) -> (B, after, *S)."""
        return F.leaky_relu(self.convolutions(features) + self.shortcut(features), SLOPE)


class VolumetricConvNeXt(nn.Module):
    """Stages of `blocks` blocks; each begins by halving the size, and its output is normalised when it leaves.

    Shapes
        forward     (B, M, *S) -> [(B, channels[i], *S / 2**(i + 1))], fine to coarse
    """

    def __init__(self, dims: int, in_channels: int, channels: Sequence[int], blocks: int = BLOCKS):
        super().__init__()
        convolution = brick("convolution", dims)
        self.down = nn.ModuleList(
            [
                nn.Sequential(
                    convolution(in_channels, channels[0], 7, stride=2, padding=3), ChannelNorm(channels[0])
                )
            ]
        )
        for fine, coarse in pairwise(channels):
            self.down.append(nn.Sequential(ChannelNorm(fine), convolution(fine, coarse, 2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(UXBlock(dims, width) for _ in range(blocks))) for width in channels
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        x = images
        for down, stage, norm in zip(self.down, self.stages, self.norms, strict=True):
            x = stage(down(x))
            maps.append(norm(x))
        return maps


class UXBlock(nn.Module):
    """x + scale * contract(gelu(expand(norm(depthwise(x))))); both 1x1x1 convolutions keep channels apart."""

    def __init__(self, dims: int, width: int):
        super().__init__()
        convolution = brick("convolution", dims)
        self.depthwise = convolution(width, width, 7, padding=3, groups=width)
        self.norm = ChannelNorm(width)
        self.expand = convolution(width, EXPANSION * width, 1, groups=width)
        self.contract = convolution(EXPANSION * width, width, 1, groups=width)
        self.scale = nn.Parameter(torch.full((width,), FIRST_SCALE))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, *S) -> (B, width, *S)."""
        inner = F.gelu(self.expand(self.norm(self.depthwise(features))))
        scale = self.scale.view(-1, *(1 for _ in features.shape[2:]))
        return features + scale * cast(Tensor, self.contract(inner))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, *S) -> (B, width, *S)."""
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)
