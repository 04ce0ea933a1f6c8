"""URPC: the scales of one network must agree with their mean, each where it does not deviate too much.

Paper      Luo, Liao, Chen, Song, Chen, Zhang, Chen, Wang & Zhang, MICCAI 2021, https://arxiv.org/abs/2012.07042
Spec       docs/methods/urpc.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        z_s = enlarge(head_s(scale s of the decoder)),   p_s = softmax(z_s)                  s = 1 (fine) .. S
        m   = mean of p_s over s, restricted to the classes that y and A leave open
        D_s = sum over classes of m ln(m / p_s);         w_s = exp(-D_s)        how far the scale is from the mean
        L_s = mean of w_s (m - p_s)^2 / mean of w_s  +  mean of D_s             voxels that are left open, no stop
        minimise  mean over s of supervised(p_s, y, A)  +  w(t) * mean over s of L_s
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import select_rows
from labelwise.components.teachers import Consistency, Part
from labelwise.losses.agreement import mean_log_probability
from labelwise.losses.partial import (
    AbsentDice,
    dice_with_background,
    marginal_cross_entropy,
    open_voxels,
    possible_classes,
)
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.types import Batch, Progress

SMALLEST_MASS = 1e-3  # of the mean over all classes that are left open: below it the mean is no opinion


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UrpcConfig(Consistency, AbsentDice):
    ramp_interval: Part = 0.01  # 150 of 15000 steps
    scales: PositiveInt = 4  # S: so many of the decoder's finest scales get a head
    classifier: Literal["finest", "mean"] = "finest"  # the finest scale decides, or the mean of all


class Urpc(Method):
    card = Card(
        title="URPC",
        paper="https://arxiv.org/abs/2012.07042",
        idea="The scales of one network agree with their mean, less where a scale is far from it.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = UrpcConfig
    presets: ClassVar[Presets] = {"acdc": {"ramp_interval": 0.005}, "la2018": {"ramp_fraction": 0.4}}
    classifiers = ("finest", "mean")

    def __init__(self, nets: NetFactory, config: UrpcConfig):
        super().__init__()
        self.config = config
        self.network = Pyramid(nets, config.scales)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        scales = self.network.scales(batch.images)
        return {
            "supervised": self.supervised(scales, batch),
            "consistency": self.config.weight(progress) * self.consistency(scales, batch),
        }

    def supervised(self, scales: Sequence[Tensor], batch: Batch) -> Tensor:
        """Half of cross-entropy and Dice over all classes, as the mean over the scales."""
        rows = [number for number, row in enumerate(batch.annotated_rows) if any(row[1:])]
        if not rows:
            return scales[-1].sum() * 0
        labels, annotated = select_rows(batch.labels, rows), select_rows(batch.annotated, rows)
        losses = [
            marginal_cross_entropy(logits, labels, annotated)
            + dice_with_background(
                logits, labels, annotated, squared=True, pooling="batch", absent=self.config.absent_dice
            )
            for logits in (select_rows(scale, rows) for scale in scales)
        ]
        return torch.stack(losses).mean() / 2

    def consistency(self, scales: Sequence[Tensor], batch: Batch) -> Tensor:
        """The pyramid consistency of the unlabelled cases; 0 if there is none."""
        rows = batch.unlabelled_rows
        if not rows:
            return scales[-1].sum() * 0
        labels, annotated = select_rows(batch.labels, rows), select_rows(batch.annotated, rows)
        inside = select_rows(batch.inside, rows)
        return pyramid_consistency([select_rows(scale, rows) for scale in scales], labels, annotated, inside)

    def predictor(self) -> nn.Module:
        return Softmax(self.network) if self.config.classifier == "finest" else MeanOfScales(self.network)


class Pyramid(nn.Module):
    """A network with a head on each of the decoder's finest scales.

    Shapes
        forward     images (B, M, *S) -> logits (B, C, *S) of the finest scale, float32
    """

    def __init__(self, nets: NetFactory, scales: int):
        super().__init__()
        self.encoder = nets.encoder()
        self.decoder = nets.decoder()
        self.mode = {2: "bilinear", 3: "trilinear"}[nets.dims]
        self.heads = nn.ModuleList(
            nets.head(channels, nets.num_classes) for channels in self.decoder.channels[-scales:]
        )

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.heads[-1](self.decoder(self.encoder(images))[-1]))

    def scales(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> logits (B, C, *S) of each scale at full size, coarse to fine, float32."""
        features = self.decoder(self.encoder(images))[-len(self.heads) :]
        return [
            F.interpolate(head(scale), images.shape[2:], mode=self.mode, align_corners=False)
            for head, scale in zip(self.heads, features, strict=True)
        ]


class MeanOfScales(nn.Module):
    """Scores of all scales together; images (B, M, *S) -> (B, C, *S) probabilities in float32."""

    def __init__(self, network: Pyramid):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        scales = self.network.scales(images)
        return mean_log_probability(logits.log_softmax(dim=1) for logits in scales).exp()


def pyramid_consistency(
    scales: Sequence[Tensor], labels: Tensor, annotated: Tensor, inside: Tensor | None = None
) -> Tensor:
    """Distance of each scale from the mean of all, less where it deviates, plus the deviation itself.

    Gradients flow through everything: through the mean, the scales and their weights. All is computed from
    log-probabilities, so that a probability that vanishes gives a large number, not an infinite one.

    Shapes
        scales      S x (B, C, *S)  logits
        labels      (B, *S)         int64 in [0, C) or IGNORE
        annotated   (B, C)          bool
        inside      (B, *S)         bool, `Batch.inside`; None: everywhere
        returns     ()              mean over the scales; 0 with a zero gradient if no voxel is left open
    """
    stacked = torch.cat(list(scales)).log_softmax(dim=1).view(len(scales), *scales[0].shape)
    possible = possible_classes(labels, annotated)
    mean = (stacked.logsumexp(dim=0) - math.log(len(scales))).masked_fill(~possible, -torch.inf)
    mass = mean.logsumexp(dim=1, keepdim=True)  # log of what the mean gives to all possible classes
    mean = mean - mass
    probability = mean.exp()
    where = open_voxels(labels, annotated, inside) & (mass.squeeze(1) >= math.log(SMALLEST_MASS))
    # ln(m / p) is read where m can be positive only; elsewhere it would be infinite, times zero.
    gap = torch.where(possible, mean - stacked, 0)
    divergence = (probability * gap).sum(dim=2).clamp_min(0)
    weight = (-divergence).exp() * where
    distance = (probability - stacked.exp()).square().mean(dim=2)
    # (3, S): means over the open voxels, of what is 0 elsewhere.
    parts = (distance * weight, weight, divergence * where)
    sums = torch.stack([part.flatten(1).sum(dim=1) for part in parts])
    means = sums / where.sum().clamp_min(1)
    return (means[0] / (means[1] + 1e-8) + means[2]).mean()
