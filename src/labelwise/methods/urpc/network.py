"""The U-Net of URPC: that of the benchmark, with dropout of whole channels after every stage of the decoder.

The parts come from `labelwise.nets.unet`, whose own dropout is switched off. In 3D that is the published network; in
2D it is the benchmark's 2D U-Net with the same dropout.

Source
    Luo et al., MICCAI 2021 (URPC), https://arxiv.org/abs/2012.07042: 5,884,504 parameters in 3D for one input
    channel and two classes, with a head on each of the decoder's four scales.
"""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from labelwise.nets.parts import Blueprint, Decoder, Encoder, Head, Norm, Upsampling, UpStage, brick
from labelwise.nets.unet import UNet, UNetSettings

DROPOUT = (0.5, 0.3, 0.2, 0.1)  # after the stages of the decoder, coarse to fine


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UrpcUNetSettings:
    width: Annotated[int, Field(ge=1)] = 16  # channels at full resolution; doubles at every scale
    norm: Norm = "instance"
    dropout_scale: Annotated[float, Field(ge=0, lt=2)] = 1.0  # times the published rates; 0 switches it off
    upsampling: Upsampling = "trilinear"  # bilinear in 2D


class UrpcUNet(Blueprint):
    """Builds the parts of the U-Net of URPC."""

    Settings = UrpcUNetSettings

    def __init__(self, settings: UrpcUNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        inner = UNetSettings(
            width=settings.width, norm=settings.norm, dropout_scale=0.0, upsampling=settings.upsampling
        )
        self.unet = UNet(inner, dims, in_channels)

    @property
    def stride(self) -> int:
        return self.unet.stride

    def encoder(self) -> Encoder:
        return self.unet.encoder()

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        decoder = self.unet.decoder(upsampling)
        for stage, rate in zip(decoder.stages, DROPOUT, strict=True):
            # Behind the convolutions: a dropped scale feeds the next stage as well as its own head.
            dropout = brick("dropout", self.dims)(rate * self.settings.dropout_scale)
            cast(nn.Sequential, cast(UpStage, stage).convolutions).append(dropout)
        return decoder

    def head(self, in_channels: int, out_channels: int) -> Head:
        return self.unet.head(in_channels, out_channels)
