"""Marginal and exclusion loss: un-annotated organs may hide in the background, but not in another organ.

Paper      Shi, Xiao, Chen & Zhou, Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868
Spec       docs/methods/marginal_exclusion.md: where paper and official code differ, and what we follow

    for every batch (x, y, A) of cases with annotated organs A:
        p = softmax(network(x))
        q_0 = p_0 + sum of p_c over the organs c not in A             un-annotated organs hide in the background
        E_c = where any organ is labelled   for c not in A            ... but not where another organ is known
        E_c = where c is not labelled       for c in A
        minimise  -log q_y + mean over the organs c in A of (1 - Dice(p_c, y_c))
                  + w * mean over the organs of Dice(p_c, E_c)        partly annotated cases only
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.partial import (
    dice_loss,
    full_precision,
    masked_mean,
    over_space,
    overlap_sums,
    possible_classes,
    supervised,
)
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import IGNORE, Batch, Progress

Channels = Literal["all_fg", "unannotated"]
Kind = Literal["dice", "cross_entropy"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MarginalExclusionConfig:
    exclusion_weight: NonNegativeFloat = 2.0  # w
    exclusion_kind: Kind = "dice"
    exclusion_channels: Channels = "all_fg"  # every organ, or those that nobody annotated
    absent_dice: Literal["skip", "include"] = "skip"  # Dice of annotated organs without a voxel in the patch


class MarginalExclusion(Method):
    card = Card(
        title="Marginal and exclusion loss",
        paper="https://arxiv.org/abs/2007.03868",
        idea="Un-annotated structures may hide in the background, but not where another structure is labelled.",
        learns_from=frozenset({"full", "partial"}),
    )
    Config = MarginalExclusionConfig

    def __init__(self, nets: NetFactory, config: MarginalExclusionConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.network(batch.images)
        half = supervised(logits, batch.labels, batch.annotated, absent=self.config.absent_dice)
        exclusion = exclusion_loss(
            logits,
            batch.labels,
            batch.annotated,
            kind=self.config.exclusion_kind,
            channels=self.config.exclusion_channels,
        )
        # Cross-entropy plus Dice, not their mean: the weight of the exclusion refers to their sum.
        return {"supervised": 2 * half, "exclusion": self.config.exclusion_weight * exclusion}

    def predictor(self) -> nn.Module:
        return Softmax(self.network)


def exclusion_loss(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    kind: Kind = "dice",
    channels: Channels = "all_fg",
    smooth: float = 1e-5,
) -> Tensor:
    """Overlap of each organ's probability with the region E where the labels exclude that organ.

    An organ that is not annotated is excluded where another one is labelled; an annotated organ everywhere but
    in its own label.

        dice            mean over organs of  (2 sum p E + smooth) / (sum p + sum E + smooth), the Dice to be lowered
        cross_entropy   mean over organs and labelled voxels of  E ln(1 + p)

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        channels    "all_fg": all organs of a partly annotated case; "unannotated": those that are not annotated
        returns     ()          mean over the organs, then over the cases with an annotated organ, where complete
                                cases count as 0, and so does an organ that is excluded nowhere; 0 with a zero
                                gradient if there is no partly annotated case

    Source
        Shi et al., Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868 (exclusion loss).

    Example
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> labels = torch.tensor([[0, 1]])  # the spleen cannot be in the second voxel: 2 (1/3) / (2/3 + 1)
        >>> exclusion_loss(logits, labels, liver_only, channels="unannotated")
        tensor(0.4000)
    """
    probabilities = full_precision(logits).softmax(dim=1)[:, 1:]
    organs = over_space(annotated, labels.ndim - 1)[:, 1:]
    labelled = (labels != IGNORE) & organs.any(dim=1)
    asked = labelled.unsqueeze(1) if channels == "all_fg" else labelled.unsqueeze(1) & ~organs
    excluded = ~possible_classes(labels, annotated)[:, 1:] & asked

    per_organ = _overlap(probabilities, excluded, asked, kind, smooth)
    counted = asked.flatten(2).any(dim=2).expand_as(per_organ)
    per_case = (per_organ * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    supervised = labelled.flatten(1).any(dim=1)
    incomplete = (labelled & ~organs.all(dim=1)).flatten(1).any(dim=1)
    return masked_mean(torch.where(incomplete, per_case, 0), supervised)


def _overlap(probabilities: Tensor, excluded: Tensor, asked: Tensor, kind: Kind, smooth: float) -> Tensor:
    """(B, K): what each organ costs; 0 where it is excluded nowhere."""
    if kind == "cross_entropy":
        count = asked.flatten(2).sum(dim=2).clamp_min(1)
        return (probabilities.log1p() * excluded).flatten(2).sum(dim=2) / count
    sums = overlap_sums(probabilities, excluded, asked)
    # Without this, smooth / (sum p + smooth) would be lowered by *raising* p.
    return torch.where(sums.true > 0, 1 - dice_loss(sums, smooth), 0)
