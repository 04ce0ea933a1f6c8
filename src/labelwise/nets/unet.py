"""Plain U-Nets: two of the semi-supervised benchmarks (BraTS tables in 3D, ACDC tables in 2D), and two of papers.

All have two 3x3 convolutions at each scale, maximum pooling, and long skips that are concatenated. They differ in
widths, normalisation, activation, dropout, upsampling and initialisation: a `Form` holds those differences.

    unet        five scales; in 3D instance norm, in 2D batch norm and dropout inside the stages
    ltuda_unet  five scales, the coarsest no wider than the one before it; every stage of the decoder leaves with the
                width of the next finer scale, so that the interpolation needs no convolution of its own
    plseg_unet  four scales; the two coarsest drop values out between their convolutions, in encoder and decoder

Source
    unet        Luo, SSL4MIS, https://github.com/HiLab-git/SSL4MIS: 5,884,050 parameters in 3D (one input channel, two
                classes), 1,813,764 in 2D (one input channel, four classes)
    ltuda_unet  Jiang et al., Medical Image Analysis 2025 (LTUDA), https://arxiv.org/abs/2409.03228: 13,394,372
                parameters in 2D for one input channel and four structures
    plseg_unet  Li et al., PL-Seg, Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885: 1,326,977
                parameters for one input channel and 17 classes, and 1,330,836 with a head on each of its four scales
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from itertools import pairwise
from typing import Annotated, Literal, cast

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
    """What makes one published U-Net differ from the others."""

    encoder: tuple[int, ...]  # channels of the scales, as multiples of the width, fine to coarse
    decoder: tuple[int, ...]  # the same, coarse to fine
    norm: Norm
    negative_slope: float = 0.0  # of the leaky ReLU; 0 is a plain ReLU
    # Rates between the two convolutions of each stage; None: there is no dropout.
    encoder_dropout: tuple[float | None, ...] = ()  # fine to coarse
    decoder_dropout: tuple[float | None, ...] = ()  # coarse to fine
    outer_dropout: float | None = None  # after the coarsest encoder stage and after the last decoder stage
    reduced: bool = False  # a 1x1 convolution brings the channels to those of the skip before interpolation
    align_corners: bool = True  # of linear interpolation
    head_kernel: int = 1
    weights: Literal["torch", "kaiming", "xavier"] = "torch"  # how the convolutions start


_DOUBLING = (1, 2, 4, 8, 16)
FORMS = {
    2: Form(
        encoder=_DOUBLING,
        decoder=_DOUBLING[-2::-1],
        norm="batch",
        negative_slope=0.01,
        encoder_dropout=(0.05, 0.1, 0.2, 0.3, 0.5),
        outer_dropout=0.0,
        reduced=True,
        head_kernel=3,
    ),
    3: Form(
        encoder=_DOUBLING,
        decoder=_DOUBLING[-2::-1],
        norm="instance",
        outer_dropout=0.3,
        align_corners=False,
        weights="kaiming",
    ),
}
LTUDA = Form(encoder=(1, 2, 4, 8, 8), decoder=(4, 2, 1, 1), norm="batch")


def _plseg(depth: int) -> Form:
    widths = tuple(2**level for level in range(depth))
    dropout = tuple(min(0.1 * max(level - 1, 0), 0.5) for level in range(depth))  # 0, 0, 0.1, 0.2
    return Form(
        encoder=widths,
        decoder=widths[-2::-1],
        norm="batch",
        negative_slope=0.01,
        encoder_dropout=dropout,
        decoder_dropout=dropout[-2::-1],
        reduced=True,
        weights="xavier",
    )


class PlainUNet(Blueprint):
    """Builds the parts of a U-Net of any form."""

    def __init__(
        self,
        form: Form,
        dims: int,
        in_channels: int,
        *,
        width: int,
        norm: Norm | None,
        upsampling: Upsampling,
        dropout_scale: float = 1.0,
    ):
        self.form = form
        self.dims = dims
        self.in_channels = in_channels
        self.norm: Norm = norm or form.norm
        self.upsampling: Upsampling = upsampling
        self.dropout_scale = dropout_scale
        self.encoder_channels = tuple(width * factor for factor in form.encoder)
        self.decoder_channels = tuple(width * factor for factor in form.decoder)

    @property
    def stride(self) -> int:
        return int(2 ** len(self.decoder_channels))

    def encoder(self) -> Encoder:
        rates = self.form.encoder_dropout or (None,) * len(self.encoder_channels)
        stages = [self._stage(self.in_channels, self.encoder_channels[0], rates[0])]
        for (fine, coarse), rate in zip(pairwise(self.encoder_channels), rates[1:], strict=True):
            stages.append(nn.Sequential(brick("pooling", self.dims)(2), *self._stage(fine, coarse, rate)))
        stages[-1].extend(self._dropout(self.form.outer_dropout))
        return Encoder(stages, self.encoder_channels).apply(self._initialise)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        rates = self.form.decoder_dropout or (None,) * len(self.decoder_channels)
        before = (self.encoder_channels[-1], *self.decoder_channels[:-1])
        skips = self.encoder_channels[-2::-1]
        stages = []
        for coarse, skip, after, rate in zip(before, skips, self.decoder_channels, rates, strict=True):
            up, enlarged = self._up(coarse, skip, upsampling or self.upsampling)
            stages.append(UpStage(up, self._stage(skip + enlarged, after, rate)))
        cast(nn.Sequential, stages[-1].convolutions).extend(self._dropout(self.form.outer_dropout))
        return Decoder(stages, self.decoder_channels).apply(self._initialise)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels, self.form.head_kernel).apply(self._initialise)

    def _up(self, coarse: int, skip: int, upsampling: Upsampling) -> tuple[nn.Module, int]:
        """The layer that doubles the size, and the number of channels that leave it."""
        if upsampling == "transposed":
            return brick("transposed", self.dims)(coarse, skip, 2, stride=2), skip
        linear = upsampling == "trilinear"
        enlarge = Interpolate(self.dims, linear=linear, align_corners=self.form.align_corners)
        if not self.form.reduced:
            return enlarge, coarse
        return nn.Sequential(brick("convolution", self.dims)(coarse, skip, 1), enlarge), skip

    def _stage(self, before: int, after: int, dropout: float | None) -> nn.Sequential:
        first, second = self._unit(before, after), self._unit(after, after)
        return nn.Sequential(*first, *self._dropout(dropout), *second)

    def _unit(self, before: int, after: int) -> nn.Sequential:
        slope = self.form.negative_slope
        return nn.Sequential(
            brick("convolution", self.dims)(before, after, 3, padding=1),
            normalisation(self.norm, self.dims, after),
            nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True),
        )

    def _dropout(self, rate: float | None) -> Sequence[nn.Module]:
        return [] if rate is None else [nn.Dropout(rate * self.dropout_scale)]

    def _initialise(self, module: nn.Module) -> None:
        convolution, transposed = brick("convolution", self.dims), brick("transposed", self.dims)
        if self.form.weights == "kaiming" and isinstance(module, convolution):
            nn.init.kaiming_normal_(module.weight)
        if self.form.weights == "xavier" and isinstance(module, (convolution, transposed)):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UNetSettings:
    width: Width = 16  # channels at full resolution; doubles at every scale
    norm: Norm | None = None  # None: batch in 2D, instance in 3D, as published
    dropout_scale: DropoutScale = 1.0  # times the published rates; 0 switches dropout off
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class UNet(PlainUNet):
    """Builds the parts of the U-Nets of the benchmarks."""

    Settings = UNetSettings

    def __init__(self, settings: UNetSettings, dims: int, in_channels: int):
        super().__init__(FORMS[dims], dims, in_channels, **vars(settings))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LtudaUNetSettings:
    width: Width = 64  # channels at full resolution
    norm: Norm = "batch"
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class LtudaUNet(PlainUNet):
    """Builds the parts of the U-Net of LTUDA, published in 2D."""

    Settings = LtudaUNetSettings

    def __init__(self, settings: LtudaUNetSettings, dims: int, in_channels: int):
        super().__init__(LTUDA, dims, in_channels, **vars(settings))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PLSegUNetSettings:
    width: Width = 16  # channels at full resolution; doubles at every scale
    depth: Annotated[int, Field(ge=2, le=8)] = 4  # number of scales
    norm: Norm = "batch"
    dropout_scale: DropoutScale = 1.0  # times the published rates; 0 switches it off
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class PLSegUNet(PlainUNet):
    """Builds the parts of the U-Net of the PLS4MIS benchmark of partially supervised methods."""

    Settings = PLSegUNetSettings

    def __init__(self, settings: PLSegUNetSettings, dims: int, in_channels: int):
        settled = {name: value for name, value in vars(settings).items() if name != "depth"}
        super().__init__(_plseg(settings.depth), dims, in_channels, **settled)
