"""The plain U-Net of LTUDA, in 2D as published and in 3D.

Five scales with two 3x3 convolutions each, batch norm and ReLU; maximum pooling, linear interpolation, long skips
that are concatenated. The coarsest scale is no wider than the one before it, and every stage of the decoder leaves
with the width of the next finer scale, so that the interpolation needs no convolution of its own.

Source
    Jiang et al., Medical Image Analysis 2025 (LTUDA), https://arxiv.org/abs/2409.03228: 13,394,372 parameters in
    2D for one input channel, four structures and width 64.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

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

ENCODER_WIDTHS = (1, 2, 4, 8, 8)  # times the width, fine to coarse
DECODER_WIDTHS = (4, 2, 1, 1)  # times the width, coarse to fine

Width = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LtudaUNetSettings:
    width: Width = 64  # channels at full resolution
    norm: Norm = "batch"
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class LtudaUNet(Blueprint):
    """Builds the parts of the U-Net of LTUDA."""

    Settings = LtudaUNetSettings

    def __init__(self, settings: LtudaUNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        self.encoder_channels = tuple(settings.width * factor for factor in ENCODER_WIDTHS)
        self.decoder_channels = tuple(settings.width * factor for factor in DECODER_WIDTHS)

    @property
    def stride(self) -> int:
        return int(2 ** (len(ENCODER_WIDTHS) - 1))

    def encoder(self) -> Encoder:
        stages = [self._stage(self.in_channels, self.encoder_channels[0])]
        for fine, coarse in pairwise(self.encoder_channels):
            stages.append(nn.Sequential(brick("pooling", self.dims)(2), *self._stage(fine, coarse)))
        return Encoder(stages, self.encoder_channels)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        before = (self.encoder_channels[-1], *self.decoder_channels[:-1])
        skips = self.encoder_channels[-2::-1]
        stages = [
            UpStage(
                self._up(coarse, upsampling or self.settings.upsampling), self._stage(skip + coarse, after)
            )
            for coarse, skip, after in zip(before, skips, self.decoder_channels, strict=True)
        ]
        return Decoder(stages, self.decoder_channels)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels)

    def _up(self, channels: int, upsampling: Upsampling) -> nn.Module:
        if upsampling == "transposed":
            return cast(nn.Module, brick("transposed", self.dims)(channels, channels, 2, stride=2))
        return Interpolate(self.dims, linear=upsampling == "trilinear", align_corners=True)

    def _stage(self, before: int, after: int) -> nn.Sequential:
        return nn.Sequential(*self._unit(before, after), *self._unit(after, after))

    def _unit(self, before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            brick("convolution", self.dims)(before, after, 3, padding=1),
            normalisation(self.settings.norm, self.dims, after),
            nn.ReLU(inplace=True),
        )
