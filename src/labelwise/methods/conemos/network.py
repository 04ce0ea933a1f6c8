"""A U-Net in which a condition can act on every convolution: the network of CoNeMOS, in 3D and 2D.

Each scale has two units of convolution, normalisation, ReLU and, last, FiLM: a factor and an offset per channel
that come from outside. Without them the network is an ordinary U-Net. `conditioned` computes them.

Source
    Billot et al., MIDL 2024, https://proceedings.mlr.press/v250/billot24a.html: four scales, widths 16 to 128.
    With batch norm, trilinear upsampling, one input channel and one class: 1,326,705 parameters.
    FiLM: Perez et al., AAAI 2018, https://arxiv.org/abs/1709.07871.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from typing import Annotated, Literal, NamedTuple, cast

import torch
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


class Modulation(NamedTuple):
    """What FiLM does to the channels of one unit: (N, channels) each; both 0 change nothing."""

    scale: Tensor  # gamma, added to 1
    shift: Tensor  # beta


Modulations = Sequence[Modulation | None]  # one per unit, in the order of the forward pass; None: no FiLM


def modulate(features: Tensor, modulation: Modulation | None) -> Tensor:
    """FiLM: (1 + gamma) * features + beta, one gamma and one beta for each case and channel.

    Shapes
        features    (N, channels, *S)  float
        returns     (N, channels, *S)  in the precision of the features
    """
    if modulation is None:
        return features
    shape = (*modulation.scale.shape, *(1 for _ in features.shape[2:]))
    scale, shift = (part.view(shape) for part in modulation)
    return torch.addcmul(shift.to(features.dtype), (1 + scale).to(features.dtype), features)


class FilmEncoder(Encoder):
    """An encoder whose units can be modulated; `unit_channels` are the widths of the units, in their order."""

    def __init__(self, stages: Sequence[_Stage], channels: Sequence[int]):
        super().__init__(stages, channels)
        self.unit_channels = _unit_channels(stages)

    def forward(self, images: Tensor, modulations: Modulations | None = None) -> list[Tensor]:
        """Images (N, M, *S) -> features (N, channels[i], *S / 2**i), fine to coarse; errors as for `Encoder`."""
        self._check(images.shape[2:])
        film = _in_order(modulations)
        features = []
        x = images
        for stage in self.stages:
            x = stage(x, film)
            features.append(x)
        return features


class FilmDecoder(Decoder):
    """A decoder whose units can be modulated; `unit_channels` are the widths of the units, in their order."""

    def __init__(self, stages: Sequence[_UpStage], channels: Sequence[int]):
        super().__init__(stages, channels)
        self.unit_channels = _unit_channels(stage.units for stage in stages)

    def forward(self, features: Sequence[Tensor], modulations: Modulations | None = None) -> list[Tensor]:
        """Encoder's features -> scales, coarse to fine; the last is the embedding (N, channels[-1], *S)."""
        film = _in_order(modulations)
        scales = []
        x = features[-1]
        for stage, skip in zip(self.stages, reversed(features[:-1]), strict=True):
            x = stage(x, skip, film)
            scales.append(x)
        return scales


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FilmUNetSettings:
    width: Annotated[int, Field(ge=1)] = 16  # channels at full resolution; doubles at every scale
    depth: Annotated[int, Field(ge=2, le=8)] = 4  # number of scales
    norm: Norm | Literal["none"] = "instance"
    upsampling: Upsampling = "nearest"


class FilmUNet(Blueprint):
    """Builds the parts of a U-Net that can be conditioned."""

    Settings = FilmUNetSettings

    def __init__(self, settings: FilmUNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        self.channels = tuple(settings.width * 2**level for level in range(settings.depth))

    @property
    def stride(self) -> int:
        return int(2 ** (self.settings.depth - 1))

    def encoder(self) -> FilmEncoder:
        stages = [_Stage(nn.Identity(), self._units(self.in_channels, self.channels[0]))]
        for fine, coarse in pairwise(self.channels):
            stages.append(_Stage(brick("pooling", self.dims)(2), self._units(fine, coarse)))
        return FilmEncoder(stages, self.channels).apply(self._initialise)

    def decoder(self, upsampling: Upsampling | None = None) -> FilmDecoder:
        channels = self.channels[::-1]
        stages = []
        for coarse, fine in pairwise(channels):
            up, enlarged = self._up(coarse, fine, upsampling or self.settings.upsampling)
            stages.append(_UpStage(up, _Stage(nn.Identity(), self._units(fine + enlarged, fine))))
        return FilmDecoder(stages, channels[1:]).apply(self._initialise)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels).apply(self._initialise)

    def _up(self, coarse: int, fine: int, upsampling: Upsampling) -> tuple[nn.Module, int]:
        """The layer that doubles the size, and the number of channels that leave it."""
        if upsampling == "nearest":
            return Interpolate(self.dims, linear=False), coarse
        if upsampling == "transposed":
            return brick("transposed", self.dims)(coarse, fine, 2, stride=2), fine
        fewer = brick("convolution", self.dims)(coarse, fine, 1)
        return nn.Sequential(fewer, Interpolate(self.dims, linear=True, align_corners=True)), fine

    def _units(self, before: int, after: int) -> list[nn.Sequential]:
        return [self._unit(before, after), self._unit(after, after)]

    def _unit(self, before: int, after: int) -> nn.Sequential:
        convolution = brick("convolution", self.dims)(before, after, 3, padding=1)
        norm = self.settings.norm
        middle = [] if norm == "none" else [normalisation(norm, self.dims, after)]
        return nn.Sequential(convolution, *middle, nn.ReLU(inplace=True))

    def _initialise(self, module: nn.Module) -> None:
        """The initialisation of both published codes."""
        if isinstance(module, brick("convolution", self.dims)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class _Stage(nn.Module):
    """Change of scale, then the units, each followed by FiLM."""

    def __init__(self, entrance: nn.Module, units: Sequence[nn.Sequential]):
        super().__init__()
        self.entrance = entrance
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor, film: Iterator[Modulation | None]) -> Tensor:
        x = self.entrance(x)
        for unit in self.units:
            x = modulate(unit(x), next(film))
        return x


class _UpStage(nn.Module):
    """Enlarge, join with the skip (skip first), then the units."""

    def __init__(self, up: nn.Module, units: _Stage):
        super().__init__()
        self.up = up
        self.units = units

    def forward(self, coarse: Tensor, skip: Tensor, film: Iterator[Modulation | None]) -> Tensor:
        return cast(Tensor, self.units(torch.cat([skip, self.up(coarse)], dim=1), film))


def _unit_channels(stages: Iterable[_Stage]) -> tuple[int, ...]:
    units = (cast(nn.Sequential, unit) for stage in stages for unit in stage.units)
    return tuple(cast(nn.Conv3d, unit[0]).out_channels for unit in units)


def _in_order(modulations: Modulations | None) -> Iterator[Modulation | None]:
    return repeat(None) if modulations is None else iter(modulations)
