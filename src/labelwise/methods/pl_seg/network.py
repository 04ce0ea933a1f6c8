"""The U-Net of the PLS4MIS benchmark of partially supervised methods, in 3D and 2D.

Four scales with two 3x3 convolutions each, batch norm, leaky ReLU; before it is enlarged a 1x1 convolution halves
the channels of the coarser scale; long skips are concatenated. The two coarsest scales drop values out between
their convolutions, in the encoder as in the decoder.

Source
    Li et al., PL-Seg, Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885: 1,326,977
    parameters for one input channel and 17 classes, and 1,330,836 with a head on each of its four scales.
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

DROPOUT_PER_SCALE = 0.1  # from the third scale on: 0, 0, 0.1, 0.2
LARGEST_DROPOUT = 0.5


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PLSegUNetSettings:
    width: Annotated[int, Field(ge=1)] = 16  # channels at full resolution; doubles at every scale
    depth: Annotated[int, Field(ge=2, le=8)] = 4  # number of scales
    norm: Norm = "batch"
    dropout_scale: Annotated[float, Field(ge=0, lt=2)] = 1.0  # times the published rates; 0 switches it off
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class PLSegUNet(Blueprint):
    """Builds the parts of the benchmark's U-Net."""

    Settings = PLSegUNetSettings

    def __init__(self, settings: PLSegUNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        self.channels = tuple(settings.width * 2**level for level in range(settings.depth))
        self.dropout = tuple(
            settings.dropout_scale * min(DROPOUT_PER_SCALE * max(level - 1, 0), LARGEST_DROPOUT)
            for level in range(settings.depth)
        )

    @property
    def stride(self) -> int:
        return int(2 ** (self.settings.depth - 1))

    def encoder(self) -> Encoder:
        stages = [self._stage(self.in_channels, self.channels[0], self.dropout[0])]
        for (fine, coarse), rate in zip(pairwise(self.channels), self.dropout[1:], strict=True):
            stages.append(nn.Sequential(brick("pooling", self.dims)(2), *self._stage(fine, coarse, rate)))
        return Encoder(stages, self.channels).apply(self._initialise)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        channels = self.channels[::-1]
        stages = [
            UpStage(
                self._up(coarse, fine, upsampling or self.settings.upsampling),
                self._stage(2 * fine, fine, rate),
            )
            for (coarse, fine), rate in zip(pairwise(channels), self.dropout[-2::-1], strict=True)
        ]
        return Decoder(stages, channels[1:]).apply(self._initialise)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels).apply(self._initialise)

    def _up(self, coarse: int, fine: int, upsampling: Upsampling) -> nn.Module:
        if upsampling == "transposed":
            return cast(nn.Module, brick("transposed", self.dims)(coarse, fine, 2, stride=2))
        reduce = brick("convolution", self.dims)(coarse, fine, 1)
        enlarge = Interpolate(self.dims, linear=upsampling == "trilinear", align_corners=True)
        return nn.Sequential(reduce, enlarge)

    def _stage(self, before: int, after: int, dropout: float) -> nn.Sequential:
        first, second = self._unit(before, after), self._unit(after, after)
        return nn.Sequential(*first, nn.Dropout(dropout), *second)

    def _unit(self, before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            brick("convolution", self.dims)(before, after, 3, padding=1),
            normalisation(self.settings.norm, self.dims, after),
            nn.LeakyReLU(inplace=True),
        )

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (brick("convolution", self.dims), brick("transposed", self.dims))):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
