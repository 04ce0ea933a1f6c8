"""The two U-Nets of the semi-supervised benchmarks: one in 3D (BraTS tables), one in 2D (ACDC tables).

Both have five scales with two 3x3 convolutions each and long skips that are concatenated. They differ in
normalisation, activation, dropout, upsampling and initialisation; `FORMS` holds those differences.

Source
    Luo, SSL4MIS, https://github.com/HiLab-git/SSL4MIS: 5,884,050 parameters in 3D (one input channel, two
    classes), 1,813,764 in 2D (one input channel, four classes).
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
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

Width = Annotated[int, Field(ge=1)]
DropoutScale = Annotated[float, Field(ge=0, lt=2)]


@plain_dataclass(frozen=True)
class Form:
    """What makes one published U-Net differ from the other."""

    norm: Norm
    negative_slope: float  # of the leaky ReLU; 0 is a plain ReLU
    inner_dropout: tuple[float, ...]  # between the two convolutions of each encoder stage, fine to coarse
    outer_dropout: float  # after the coarsest encoder stage and after the last decoder stage
    reduced: bool  # a 1x1 convolution halves the channels before interpolation
    align_corners: bool  # of linear interpolation
    head_kernel: int
    kaiming: bool  # Kaiming initialisation of the convolutions instead of PyTorch's


FORMS = {
    2: Form(
        norm="batch",
        negative_slope=0.01,
        inner_dropout=(0.05, 0.1, 0.2, 0.3, 0.5),
        outer_dropout=0.0,
        reduced=True,
        align_corners=True,
        head_kernel=3,
        kaiming=False,
    ),
    3: Form(
        norm="instance",
        negative_slope=0.0,
        inner_dropout=(0.0, 0.0, 0.0, 0.0, 0.0),
        outer_dropout=0.3,
        reduced=False,
        align_corners=False,
        head_kernel=1,
        kaiming=True,
    ),
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UNetSettings:
    width: Width = 16  # channels at full resolution; doubles at every scale
    norm: Norm | None = None  # None: batch in 2D, instance in 3D, as published
    dropout_scale: DropoutScale = 1.0  # times the published rates; 0 switches dropout off
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class UNet(Blueprint):
    """Builds the parts of a U-Net."""

    Settings = UNetSettings

    def __init__(self, settings: UNetSettings, dims: int, in_channels: int):
        self.dims = dims
        self.in_channels = in_channels
        self.form = FORMS[dims]
        self.norm: Norm = settings.norm or self.form.norm
        self.upsampling: Upsampling = settings.upsampling
        self.dropout_scale = settings.dropout_scale
        self.channels = tuple(settings.width * 2**level for level in range(len(self.form.inner_dropout)))

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.channels) - 1))

    def encoder(self) -> Encoder:
        stages = [self._stage(self.in_channels, self.channels[0], self.form.inner_dropout[0])]
        for (fine, coarse), rate in zip(pairwise(self.channels), self.form.inner_dropout[1:], strict=True):
            stages.append(nn.Sequential(brick("pooling", self.dims)(2), *self._stage(fine, coarse, rate)))
        stages[-1].append(self._dropout(self.form.outer_dropout))
        return Encoder(stages, self.channels).apply(self._initialise)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        channels = self.channels[::-1]
        stages = []
        for coarse, fine in pairwise(channels):
            up, enlarged = self._up(coarse, fine, upsampling or self.upsampling)
            stages.append(UpStage(up, self._stage(fine + enlarged, fine)))
        cast(nn.Sequential, stages[-1].convolutions).append(self._dropout(self.form.outer_dropout))
        return Decoder(stages, channels[1:]).apply(self._initialise)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels, self.form.head_kernel).apply(self._initialise)

    def _up(self, coarse: int, fine: int, upsampling: Upsampling) -> tuple[nn.Module, int]:
        """The layer that doubles the size, and the number of channels that leave it."""
        if upsampling == "transposed":
            return brick("transposed", self.dims)(coarse, fine, 2, stride=2), fine
        linear = upsampling == "trilinear"
        enlarge = Interpolate(self.dims, linear=linear, align_corners=self.form.align_corners)
        if not self.form.reduced:
            return enlarge, coarse
        return nn.Sequential(brick("convolution", self.dims)(coarse, fine, 1), enlarge), fine

    def _stage(self, before: int, after: int, dropout: float = 0.0) -> nn.Sequential:
        first, second = self._unit(before, after), self._unit(after, after)
        return nn.Sequential(*first, *([self._dropout(dropout)] if dropout else []), *second)

    def _unit(self, before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            brick("convolution", self.dims)(before, after, 3, padding=1),
            normalisation(self.norm, self.dims, after),
            nn.LeakyReLU(self.form.negative_slope, inplace=True),
        )

    def _dropout(self, rate: float) -> nn.Module:
        return nn.Dropout(rate * self.dropout_scale)

    def _initialise(self, module: nn.Module) -> None:
        if self.form.kaiming and isinstance(module, brick("convolution", self.dims)):
            nn.init.kaiming_normal_(module.weight)
