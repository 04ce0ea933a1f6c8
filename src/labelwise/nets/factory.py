"""From the name of a network and its settings to the network, or to the parts of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, cast

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from labelwise.errors import CheckpointError, ConfigError
from labelwise.nets.ghost_norm import has_batch_norm, over_cases
from labelwise.nets.parts import Blueprint, Decoder, Encoder, SegmentationNet, Upsampling, start_from_prior
from labelwise.plugins import Parts
from labelwise.settings import build_settings

# A blueprint is imported when it is asked for.
NETS: Mapping[str, str] = {
    "unet": "labelwise.nets.unet:UNet",
    "vnet": "labelwise.nets.vnet:VNet",
    "residual_unet": "labelwise.nets.residual_unet:ResidualUNet",
    "dynunet": "labelwise.nets.dynunet:DynUNet",
    "dodnet_unet": "labelwise.methods.dodnet.network:DodnetUNet",
    "film_unet": "labelwise.methods.conemos.network:FilmUNet",
    "pipofan": "labelwise.methods.pipo_fan.network:PipoFan",
    "plseg_unet": "labelwise.nets.unet:PLSegUNet",
    "ltuda_unet": "labelwise.nets.unet:LtudaUNet",
    "urpc_unet": "labelwise.methods.urpc.network:UrpcUNet",
    "uxnet": "labelwise.methods.dkuxnet.uxnet:UXNet",
}

Part = TypeVar("Part", bound=nn.Module)


def _is_blueprint(part: Any) -> bool:
    return issubclass(part, Blueprint) and is_dataclass(part.Settings)


PARTS: Parts[type[Blueprint]] = Parts(
    "network",
    "labelwise.networks",
    NETS,
    "a subclass of labelwise.nets.Blueprint with a dataclass Settings",
    _is_blueprint,
)


def net_names() -> tuple[str, ...]:
    """All names that `find_net` knows, ours first."""
    return PARTS.names()


def find_net(name: str) -> type[Blueprint]:
    """The blueprint of a registered network; its `Settings` are the settings of that network.

    Other packages add networks through the entry-point group ``labelwise.networks`` (name = "module:Class").

    Errors
        ConfigError     there is no such network, or it comes from a package that is broken
    """
    return PARTS.find(name)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Description:
    """What a file says of a network."""

    name: str
    settings: dict[str, Any]
    dims: int
    in_channels: int
    num_classes: int


class NetFactory:
    """Builds networks, or parts of them, for images with `dims` axes and `in_channels` modalities.

    Every call returns new, freshly initialised modules. Logits leave every head in float32.

    Arguments
        batch_norm_cases    cases of a batch over which batch norm takes its statistics in training, in the order of
                            the batch; 0: over all. It does not matter to a trained network.

    Errors
        ConfigError     unknown network or setting, a number that makes no network, or cases for a batch norm
                        that the network does not have

    Example
        >>> import torch
        >>> nets = NetFactory("vnet", {"width": 4}, dims=3, in_channels=1, num_classes=2)
        >>> nets.network()(torch.zeros(1, 1, 32, 32, 16)).shape
        torch.Size([1, 2, 32, 32, 16])
        >>> encoder, decoder = nets.encoder(), nets.decoder("nearest")
        >>> signed_distance = nets.head(decoder.channels[-1], 1)
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any] | Any,
        *,
        dims: int,
        in_channels: int,
        num_classes: int,
        batch_norm_cases: int = 0,
    ):
        if dims not in (2, 3):
            raise ConfigError("networks work on images with 2 or 3 axes", found=dims)
        if in_channels < 1 or num_classes < 1:
            raise ConfigError(
                "a network needs at least one input channel and one class",
                found=f"in_channels = {in_channels}, num_classes = {num_classes}",
            )
        blueprint = find_net(name)
        self.name = name
        self.settings = build_settings(blueprint.Settings, settings, f"[net.settings] of {name}")
        self.dims = dims
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.batch_norm_cases = batch_norm_cases
        self._blueprint = blueprint(self.settings, dims, in_channels)
        if batch_norm_cases:
            self._check_batch_norm()

    @property
    def strides(self) -> tuple[int, ...]:
        """What spatial sizes must be divisible by, along each axis."""
        return self._blueprint.strides or (self._blueprint.stride,) * self.dims

    def network(self, num_classes: int | None = None, *, prior: float | None = None) -> SegmentationNet:
        """A whole network: images (B, M, *S) -> logits (B, C, *S); `prior` as in `head`."""
        encoder, decoder = self.encoder(), self.decoder()
        out_channels = self.num_classes if num_classes is None else num_classes
        head = self.head(decoder.channels[-1], out_channels, prior=prior)
        coarser = decoder.channels[:-1] if self._blueprint.deep_supervision else ()
        heads = [self.head(channels, out_channels, prior=prior) for channels in coarser]
        return SegmentationNet(encoder, decoder, head, heads)

    def encoder(self) -> Encoder:
        """Images (B, M, *S) -> features, fine to coarse; `channels` names their widths."""
        return self._normalised(self._blueprint.encoder())

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        """Features -> scales, coarse to fine; the last is the full-resolution embedding.

        `upsampling` is transposed, trilinear or nearest; None takes the one of the settings.
        """
        return self._normalised(self._blueprint.decoder(upsampling))

    def head(self, in_channels: int, out_channels: int, *, prior: float | None = None) -> nn.Module:
        """Embedding (B, in_channels, *S) -> logits (B, out_channels, *S) in float32.

        `prior` is the probability that the sigmoid of a new head gives on average; None leaves the usual bias.
        """
        head = self._normalised(self._blueprint.head(in_channels, out_channels))
        if prior is not None:
            biases = [parameter for name, parameter in head.named_parameters() if name.endswith("bias")]
            start_from_prior(biases[-1], prior)
        return head

    def _normalised(self, part: Part) -> Part:
        return cast(Part, over_cases(part, self.batch_norm_cases)) if self.batch_norm_cases else part

    def _check_batch_norm(self) -> None:
        with torch.device("meta"):  # to look at, without weights
            encoder = self._blueprint.encoder()
        if not has_batch_norm(encoder):
            raise ConfigError(
                f"the network '{self.name}' has no batch norm with these settings",
                found=f"net.batch_norm_cases = {self.batch_norm_cases}",
                do="leave the setting out, or choose a network with batch norm, such as 'vnet'",
            )

    def description(self) -> dict[str, Any]:
        """All that is needed to build the same trained networks again, as plain JSON values."""
        return {
            "name": self.name,
            "settings": asdict(self.settings),
            "dims": self.dims,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> NetFactory:
        """The factory that `description` describes.

        Errors
            CheckpointError     an entry is missing or unknown
        """
        expected = ("name", "settings", "dims", "in_channels", "num_classes")
        if set(description) != set(expected):
            raise CheckpointError(
                "a network cannot be built from this description",
                found=", ".join(sorted(description)),
                expected=", ".join(expected),
            )
        return cls(**vars(build_settings(_Description, description, "a network's description")))
