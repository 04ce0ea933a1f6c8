"""The V-Net of the left-atrium benchmark, in 3D and 2D.

Not the original V-Net: 3x3x3 kernels, ReLU, no residual sums within a stage, long skips that are added.

Source
    Yu et al., MICCAI 2019 (UA-MT), https://arxiv.org/abs/1907.07034, and the benchmarks that followed it:
    9,448,866 parameters for one input channel, two classes and width 16.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.nets.parts import (
    Blueprint,
    Decoder,
    Encoder,
    Head,
    Interpolate,
    Norm,
    Upsampling,
    brick,
    normalisation,
)

ENCODER_UNITS = (1, 2, 3, 3, 3)  # convolutions per stage, fine to coarse
DECODER_UNITS = (3, 3, 2, 1)  # coarse to fine

Width = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class VNetSettings:
    width: Width = 16  # channels at full resolution; doubles at every scale
    norm: Norm = "batch"
    dropout: Rate = 0.5  # of whole channels, after the encoder and after the decoder
    upsampling: Upsampling = "transposed"


class VNet(Blueprint):
    """Builds the parts of a V-Net."""

    Settings = VNetSettings

    def __init__(self, settings: VNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        self.channels = tuple(settings.width * 2**level for level in range(len(ENCODER_UNITS)))

    @property
    def stride(self) -> int:
        return int(2 ** (len(ENCODER_UNITS) - 1))

    def encoder(self) -> Encoder:
        stages = [self._convolutions(self.in_channels, self.channels[0], ENCODER_UNITS[0])]
        for (fine, coarse), count in zip(pairwise(self.channels), ENCODER_UNITS[1:], strict=True):
            down = self._unit(brick("convolution", self.dims)(fine, coarse, 2, stride=2), coarse)
            stages.append(nn.Sequential(*down, *self._convolutions(coarse, coarse, count)))
        stages[-1].append(self._dropout())
        return Encoder(stages, self.channels)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        channels = self.channels[::-1]
        stages = [
            _UpStage(
                self._up(coarse, fine, upsampling or self.settings.upsampling),
                self._convolutions(fine, fine, count),
            )
            for (coarse, fine), count in zip(pairwise(channels), DECODER_UNITS, strict=True)
        ]
        stages[-1].convolutions.append(self._dropout())
        return Decoder(stages, channels[1:])

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels)

    def _up(self, coarse: int, fine: int, upsampling: Upsampling) -> nn.Sequential:
        if upsampling == "transposed":
            return self._unit(brick("transposed", self.dims)(coarse, fine, 2, stride=2), fine)
        enlarge = Interpolate(self.dims, linear=upsampling == "trilinear", align_corners=True)
        return nn.Sequential(enlarge, *self._convolutions(coarse, fine, 1))

    def _convolutions(self, before: int, after: int, count: int) -> nn.Sequential:
        convolution = brick("convolution", self.dims)
        inputs = (before, *(after for _ in range(count - 1)))
        units = (self._unit(convolution(channels, after, 3, padding=1), after) for channels in inputs)
        return nn.Sequential(*(layer for unit in units for layer in unit))

    def _unit(self, convolution: nn.Module, channels: int) -> nn.Sequential:
        return nn.Sequential(
            convolution, normalisation(self.settings.norm, self.dims, channels), nn.ReLU(inplace=True)
        )

    def _dropout(self) -> nn.Module:
        return cast(nn.Module, brick("dropout", self.dims)(self.settings.dropout))


class _UpStage(nn.Module):
    """Enlarge, add the skip, convolve."""

    def __init__(self, up: nn.Sequential, convolutions: nn.Sequential):
        super().__init__()
        self.up = up
        self.convolutions = convolutions

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return cast(Tensor, self.convolutions(self.up(coarse) + skip))
