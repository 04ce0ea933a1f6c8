"""The trunk of DoDNet: a residual U-Net with weight-standardised convolutions, in 3D and 2D.

Five scales of pre-activation units (group normalisation, ReLU, convolution), long skips that are added. The
convolutions have no bias; their weights are brought to mean 0 and variance 1 per filter before each use.

Source
    Zhang et al., CVPR 2021, https://arxiv.org/abs/2011.10217. With the 16 structures of its port to WORD, controller
    included: 17.33 million parameters.
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
    Upsampling,
    brick,
    normalisation,
)

WIDENING = (1, 2, 4, 8, 8)  # channels of the scales, as multiples of the width, fine to coarse
UNITS = (1, 2, 2, 2, 2)  # residual units of the encoder, fine to coarse
SMALLEST_VARIANCE = 1e-12  # added to the variance of a filter


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DodnetUNetSettings:
    # Channels at full resolution. A 1x1 filter of a single channel has no variance, hence at least 2.
    width: Annotated[int, Field(ge=2)] = 32
    weight_standardisation: bool = True
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


def standardised(weight: Tensor) -> Tensor:
    """Each output filter with mean 0 and unbiased variance 1 over its inputs and its kernel.

    Shapes
        weight      (out, in, *kernel), in float32 also under autocast
        returns     the same, in the same memory layout

    Source
        Qiao et al., 2019, https://arxiv.org/abs/1903.10520
    """
    axes = tuple(range(1, weight.ndim))
    # In two passes: torch.var_mean takes ten times as long on a CPU.
    centred = weight - weight.mean(dim=axes, keepdim=True)
    variance = centred.square().sum(dim=axes, keepdim=True) / (weight[0].numel() - 1)
    return centred * (variance + SMALLEST_VARIANCE).rsqrt()


# The weights are standardised at every call, also in evaluation: that costs little beside the convolution, and a
# stored copy would have to follow every change of the weights.


class StandardisedConv2d(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self._conv_forward(input, standardised(self.weight), self.bias))


class StandardisedConv3d(nn.Conv3d):
    """A convolution with standardised weights."""

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self._conv_forward(input, standardised(self.weight), self.bias))


class DodnetUNet(Blueprint):
    """Builds the parts of the trunk of DoDNet."""

    Settings = DodnetUNetSettings

    def __init__(self, settings: DodnetUNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        self.channels = tuple(settings.width * widening for widening in WIDENING)

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.channels) - 1))

    def encoder(self) -> Encoder:
        first, coarsest = self.channels[0], self.channels[-1]
        stem = self._convolution(self.in_channels, first, 3)
        stages = [nn.Sequential(stem, *self._units(first, first, UNITS[0], stride=1))]
        for (fine, coarse), count in zip(pairwise(self.channels), UNITS[1:], strict=True):
            stages.append(self._units(fine, coarse, count, stride=2))
        stages[-1].append(self._activated(coarsest, self._convolution(coarsest, coarsest, 1)))
        return Encoder(stages, self.channels)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        before = self.channels[-2::-1]  # those of the skips, and of what is added to them
        after = (*before[1:], before[-1])
        stages = [
            _UpStage(self._up(channels, upsampling or self.settings.upsampling), self._unit(channels, fewer))
            for channels, fewer in zip(before, after, strict=True)
        ]
        return Decoder(stages, after)

    def head(self, in_channels: int, out_channels: int) -> nn.Module:
        """Normalisation, ReLU and a plain 1x1 convolution: what leaves a pre-activation unit is not yet activated."""
        return self._activated(in_channels, Head(self.dims, in_channels, out_channels))

    def _units(self, before: int, after: int, count: int, stride: int) -> nn.Sequential:
        first = self._unit(before, after, stride)
        return nn.Sequential(first, *(self._unit(after, after) for _ in range(count - 1)))

    def _unit(self, before: int, after: int, stride: int = 1) -> nn.Module:
        residual = nn.Sequential(
            *self._activated(before, self._convolution(before, after, 3, stride)),
            *self._activated(after, self._convolution(after, after, 3)),
        )
        if before == after and stride == 1:
            return _ResidualUnit(residual, nn.Identity())
        return _ResidualUnit(residual, self._activated(before, self._convolution(before, after, 1, stride)))

    def _activated(self, channels: int, convolution: nn.Module) -> nn.Sequential:
        """Pre-activation: normalise, ReLU, convolve."""
        return nn.Sequential(normalisation("group", self.dims, channels), nn.ReLU(inplace=True), convolution)

    def _convolution(self, before: int, after: int, kernel: int, stride: int = 1) -> nn.Module:
        kinds: dict[int, type[nn.Module]] = {2: StandardisedConv2d, 3: StandardisedConv3d}
        plain = brick("convolution", self.dims)
        kind = kinds[self.dims] if self.settings.weight_standardisation else plain
        return cast(nn.Module, kind(before, after, kernel, stride, padding=kernel // 2, bias=False))

    def _up(self, channels: int, upsampling: Upsampling) -> nn.Module:
        if upsampling == "transposed":
            return cast(nn.Module, brick("transposed", self.dims)(channels, channels, 2, stride=2))
        return Interpolate(self.dims, linear=upsampling == "trilinear")


class _ResidualUnit(nn.Module):
    """The sum of two paths."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.residual(features) + self.shortcut(features))


class _UpStage(nn.Module):
    """Enlarge, add the skip, one residual unit."""

    def __init__(self, up: nn.Module, unit: nn.Module):
        super().__init__()
        self.up = up
        self.unit = unit

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return cast(Tensor, self.unit(self.up(coarse) + skip))
