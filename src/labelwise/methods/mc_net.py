"""MC-Net and MC-Net+: decoders that differ only in how they enlarge teach each other what they are sure of.

Paper      MC-Net: Wu, Xu, Ge, Cai & Zhang, MICCAI 2021, https://arxiv.org/abs/2103.02911 (two decoders)
           MC-Net+: Wu, Ge, Zhang, Xu, Zhang, Xia & Cai, Medical Image Analysis 2022,
           https://arxiv.org/abs/2109.09960 (three decoders)
Spec       docs/methods/mc_net.md: where paper and official code differ, and what we follow

    decoders 1, 2 (and 3): transposed convolutions; linear interpolation; (nearest neighbours)
    for every batch (x, y, A):
        f = encoder(x)                                   once, for all decoders
        z^d = head_d(decoder_d(f));   p^d = softmax(z^d);   s^d = softmax(z^d / T)
        minimise  1/2 sum over d of supervised(p^d, y, A) + w(t) sum over a != b of mean (p^a - s^b)^2

In partly annotated cases s is restricted to the classes that y and A leave open.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.teachers import Consistency, Part
from labelwise.losses.agreement import mutual_consistency, mutual_region, summed_supervision
from labelwise.losses.partial import AbsentDice
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.nets.parts import Decoder, SegmentationNet, Upsampling
from labelwise.types import Batch, Progress

Upsamplings = Annotated[tuple[Upsampling, ...], Field(min_length=2)]


# The published training in 2D: per voxel a twentieth of what the settings for LA give four classes.
ACDC = {
    "consistency_weight": 0.1,
    "ramp_fraction": 1.0,
    "ramp_interval": 0.005,
    "channel_reduction": "mean",
    "use_ce": False,
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MCNetConfig(Consistency, AbsentDice):
    consistency_weight: NonNegativeFloat = 1.0
    ramp_fraction: NonNegativeFloat = 0.4
    ramp_interval: Part = 0.01  # 150 of 15000 steps
    counts_from_one: ClassVar[bool] = True
    upsamplings: Upsamplings = (
        "transposed",
        "trilinear",
    )  # one decoder for each; trilinear is bilinear in 2D
    temperature: PositiveFloat = 0.1  # T
    supervised_weight: NonNegativeFloat = 0.5
    use_ce: bool | None = None  # cross-entropy beside the Dice; None: with more than one structure
    detach_targets: bool = False  # no gradient through s
    consistency_on: Literal["all", "open"] = "all"  # complete cases too, or only what labels leave open
    channel_reduction: Literal["half_sum", "mean"] = "half_sum"  # equal for two classes
    pair_reduction: Literal["sum", "mean"] = "sum"  # over the ordered pairs (a, b)
    inference_head: Literal["first", "mean"] = "first"  # the first decoder, or the mean of all softmax maps


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MCNetPlusConfig(MCNetConfig):
    upsamplings: Upsamplings = ("transposed", "trilinear", "nearest")


class SharedEncoder(nn.Module):
    """One encoder, and a decoder with a head of its own for each kind of upsampling."""

    def __init__(self, nets: NetFactory, upsamplings: tuple[Upsampling, ...]):
        super().__init__()
        self.encoder = nets.encoder()
        decoders = [nets.decoder(upsampling) for upsampling in upsamplings]
        self.decoders = nn.ModuleList(decoders)
        self.heads = nn.ModuleList(nets.head(each.channels[-1], nets.num_classes) for each in decoders)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> the logits (B, C, *S) of each decoder."""
        features = self.encoder(images)
        return [head(decoder(features)[-1]) for decoder, head in zip(self.decoders, self.heads, strict=True)]

    def first(self) -> SegmentationNet:
        """The encoder with the first decoder: an ordinary network, which shares its weights with this one."""
        return SegmentationNet(self.encoder, cast(Decoder, self.decoders[0]), self.heads[0])


class MeanOfDecoders(nn.Module):
    """Scores: the mean of the probabilities of all decoders."""

    def __init__(self, network: SharedEncoder):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) in float32."""
        return torch.stack([logits.float().softmax(dim=1) for logits in self.network(images)]).mean(dim=0)


class MutualDecoders(Method):
    """What the two methods have in common, which is everything but the number of decoders."""

    Config: ClassVar[type[MCNetConfig]]
    presets: ClassVar[Presets] = {"acdc": ACDC}

    def __init__(self, nets: NetFactory, config: MCNetConfig):
        super().__init__()
        self.config = config
        self.use_ce = nets.num_classes > 2 if config.use_ce is None else config.use_ce
        self.network = SharedEncoder(nets, config.upsamplings)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        outputs = self.network(batch.images)
        supervised = summed_supervision(
            outputs,
            batch.labels,
            batch.annotated,
            use_ce=self.use_ce,
            absent=self.config.absent_dice,
        )
        return {
            "supervised": self.config.supervised_weight * supervised,
            "consistency": self.config.weight(progress) * self.consistency(outputs, batch),
        }

    def consistency(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        """Squared distance of each decoder's probabilities to the sharpened ones of each other decoder."""
        if self.config.consistency_on == "open" and not batch.unlabelled_rows:
            return torch.stack([logits.sum() for logits in outputs]).sum() * 0
        where, possible = mutual_region(
            batch.labels, batch.annotated, self.config.consistency_on, batch.valid
        )
        return mutual_consistency(
            outputs,
            where,
            possible,
            temperature=self.config.temperature,
            detach_targets=self.config.detach_targets,
            channel_reduction=self.config.channel_reduction,
            pair_reduction=self.config.pair_reduction,
        )

    def predictor(self) -> nn.Module:
        if self.config.inference_head == "mean":
            return MeanOfDecoders(self.network)
        return Softmax(self.network.first())


class MCNet(MutualDecoders):
    card = Card(
        title="MC-Net",
        paper="https://arxiv.org/abs/2103.02911",
        idea="Two decoders on one encoder, with different upsampling, follow each other's sharpened predictions.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = MCNetConfig


class MCNetPlus(MutualDecoders):
    card = Card(
        title="MC-Net+",
        paper="https://arxiv.org/abs/2109.09960",
        idea="Three decoders on one encoder, with different upsampling, follow each other's sharpened predictions.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = MCNetPlusConfig
