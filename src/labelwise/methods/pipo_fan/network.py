"""The pyramid-in pyramid-out network in 3D and 2D: the image enters the encoder at every scale.

Whatever way a value takes to a scale, it passes the same number of convolutions: the image at half, quarter and
eighth size goes through the stem that all sizes share, and then through the residual blocks that the other way
has passed. `residual_chain` gives a method the blocks that do the same behind the decoder.

Source
    Fang & Yan, IEEE TMI 39(11), 2020, https://arxiv.org/abs/2001.00208, with the sizes of its 3D form:
    1,256,214 parameters for one input channel, 17 classes and width 16, with the outputs and the weighting of scales
    of the method `pipo_fan`, and with 6,320 that no forward pass uses (1x1 convolutions beside identity shortcuts),
    which do not exist here.
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

_HALVE = {2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PipoFanSettings:
    width: Annotated[int, Field(ge=1)] = 16  # channels at full resolution; 64 in the 2D network of the paper
    depth: Annotated[int, Field(ge=3, le=8)] = 4  # number of scales; 5 in the 2D network of the paper
    norm: Norm = "batch"
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class PipoFan(Blueprint):
    """Builds the parts of a pyramid-in pyramid-out network."""

    Settings = PipoFanSettings

    def __init__(self, settings: PipoFanSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        levels = range(settings.depth)
        # Width 16: 16, 32, 64, 64 in the encoder; 32, 16, 16 in the decoder, coarse to fine.
        self.channels = tuple(settings.width * 2 ** min(level, settings.depth - 2) for level in levels)
        self.decoder_channels = (*self.channels[-3::-1], settings.width)

    @property
    def stride(self) -> int:
        return int(2 ** (self.settings.depth - 1))

    def encoder(self) -> Encoder:
        return _PyramidEncoder(
            stem=self._stem(),
            stages=[self._residual(2 * fine, coarse) for fine, coarse in pairwise(self.channels)],
            channels=self.channels,
            chains=[self._chain(self.channels[:level]) for level in range(1, self.settings.depth)],
            dims=self.dims,
        )

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        coarse = (self.channels[-1], *self.decoder_channels[:-1])
        stages = [
            UpStage(
                self._up(below, upsampling or self.settings.upsampling), self._residual(skip + below, out)
            )
            for below, skip, out in zip(coarse, self.channels[-2::-1], self.decoder_channels, strict=True)
        ]
        return Decoder(stages, self.decoder_channels)

    def head(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(
            *_activated(in_channels, self.dims, self.settings.norm),
            Head(self.dims, in_channels, out_channels),
        )

    def _stem(self) -> nn.Sequential:
        convolution, width = brick("convolution", self.dims), self.settings.width
        return nn.Sequential(
            convolution(self.in_channels, width, 3, padding=1),
            *_activated(width, self.dims, self.settings.norm),
            convolution(width, width, 3, padding=1),
        )

    def _up(self, channels: int, upsampling: Upsampling) -> nn.Module:
        if upsampling == "transposed":
            return cast(nn.Module, brick("transposed", self.dims)(channels, channels, 2, stride=2))
        return Interpolate(self.dims, linear=upsampling == "trilinear", align_corners=True)

    def _residual(self, before: int, after: int) -> Residual:
        return Residual(before, after, self.dims, self.settings.norm)

    def _chain(self, channels: Sequence[int]) -> nn.Sequential:
        return residual_chain(channels, self.dims, self.settings.norm)


class Residual(nn.Module):
    """Two 3x3 convolutions, each after normalisation and ReLU, beside a shortcut.

    The shortcut is the identity, or normalisation, ReLU and a 1x1 convolution where the number of channels changes.

    Shapes
        forward     (B, before, *S) -> (B, after, *S)
    """

    def __init__(self, before: int, after: int, dims: int, norm: Norm):
        super().__init__()
        convolution = brick("convolution", dims)
        self.convolutions = nn.Sequential(
            *_activated(before, dims, norm),
            convolution(before, after, 3, padding=1),
            *_activated(after, dims, norm),
            convolution(after, after, 3, padding=1),
        )
        self.shortcut = nn.Sequential()
        if before != after:
            self.shortcut.extend([*_activated(before, dims, norm), convolution(before, after, 1)])

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.convolutions(features) + self.shortcut(features))


def residual_chain(channels: Sequence[int], dims: int, norm: Norm) -> nn.Sequential:
    """Residual blocks from each number of channels to the next: one fewer than `channels` has entries."""
    return nn.Sequential(*(Residual(before, after, dims, norm) for before, after in pairwise(channels)))


class _PyramidEncoder(Encoder):
    """An encoder whose every stage also takes the image, at the stage's own size.

    `chains[k]` brings the stem's output for the image of the k-th coarser size to the depth that the finer features
    have when both meet.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        chains: Sequence[nn.Module],
        dims: int,
    ):
        super().__init__([stem, *stages], channels)
        self.chains = nn.ModuleList(chains)
        self.pooling = brick("pooling", dims)(2)
        self.halve = _HALVE[dims]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> features (B, channels[i], *S / 2**i), fine to coarse.

        Errors
            ConfigError     a spatial size is not divisible by the stride, or too small for the norm
        """
        self._check(images.shape[2:])
        stem, *stages = self.stages
        features = [stem(images)]
        for stage, chain in zip(stages, self.chains, strict=True):
            images = self.halve(images, 2)
            features.append(stage(torch.cat([self.pooling(features[-1]), chain(stem(images))], dim=1)))
        return features


def _activated(channels: int, dims: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    return normalisation(norm, dims, channels), nn.ReLU(inplace=True)
