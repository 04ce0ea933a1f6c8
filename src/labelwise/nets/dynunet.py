"""MONAI's DynUNet, the U-Net in the manner of nnU-Net, in 2D and 3D.

MONAI is an extra of this package, and takes seconds to import: it is asked for when such a network is built.

Source
    Isensee et al., Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z;
    `monai.networks.nets.DynUNet` with its defaults: instance normalisation with a learned scale, leaky ReLU.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError
from labelwise.nets.parts import Blueprint, Decoder, Encoder, Head, Upsampling
from labelwise.plugins import import_extra

# nnU-Net stops doubling at 512 channels in 2D and 320 in 3D when it starts with 32.
LARGEST_WIDENING = {2: 16, 3: 10}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DynUNetSettings:
    width: Annotated[int, Field(ge=1)] = (
        32  # channels at full resolution; doubles at every scale up to a limit
    )
    depth: Annotated[int, Field(ge=3, le=8)] = (
        5  # number of scales; sizes must be divisible by 2 ** (depth - 1)
    )


class DynUNet(Blueprint):
    """Takes a MONAI DynUNet apart into encoder, decoder and head."""

    Settings = DynUNetSettings

    def __init__(self, settings: DynUNetSettings, dims: int, in_channels: int):
        self.settings = settings
        self.dims = dims
        self.in_channels = in_channels
        widest = settings.width * LARGEST_WIDENING[dims]
        self.channels = tuple(min(settings.width * 2**level, widest) for level in range(settings.depth))

    @property
    def stride(self) -> int:
        return int(2 ** (self.settings.depth - 1))

    def encoder(self) -> Encoder:
        whole = self._whole()
        return Encoder([whole.input_block, *whole.downsamples, whole.bottleneck], self.channels)

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        if upsampling not in (None, "transposed"):
            raise ConfigError(
                "the decoder of a dynunet has transposed convolutions only",
                found=f"upsampling '{upsampling}'",
                do="choose the network 'vnet' or 'unet'",
            )
        return Decoder(self._whole().upsamples, self.channels[-2::-1])

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(self.dims, in_channels, out_channels).apply(_monai().initialize_weights)

    def _whole(self) -> Any:
        strides = (1, *(2 for _ in self.channels[1:]))
        return _monai()(
            spatial_dims=self.dims,
            in_channels=self.in_channels,
            out_channels=1,
            kernel_size=(3,) * len(strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=self.channels,
        )


def _monai() -> Any:
    """The class of MONAI."""
    why = "the network 'dynunet' is that of MONAI"
    return import_extra("monai.networks.nets.dynunet", "monai", why).DynUNet
