"""Marginal and exclusion loss: un-annotated structures may hide in the background, but not in another structure.

Paper      Shi, Xiao, Chen & Zhou, Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868
Spec       docs/methods/marginal_exclusion.md: where paper and official code differ, and what we follow

    for every batch (x, y, A) of cases with annotated structures A:
        p = softmax(network(x))
        q_0 = p_0 + sum of p_c over the structures c not in A             un-annotated structures hide in the background
        E_c = where any structure is labelled   for c not in A            ... but not where another structure is known
        E_c = where c is not labelled       for c in A
        minimise  -log q_y + mean over the structures c in A of (1 - Dice(p_c, y_c))
                  + w * mean over the structures of Dice(p_c, E_c)        partly annotated cases only
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.partial import (
    AbsentDice,
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
class MarginalExclusionConfig(AbsentDice):
    exclusion_weight: NonNegativeFloat = 2.0  # w
    exclusion_kind: Kind = "dice"
    exclusion_channels: Channels = "all_fg"  # every structure, or those that nobody annotated


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
    """Overlap of each structure's probability with the region E where the labels exclude that structure.

    A structure that is not annotated is excluded where another one is labelled; an annotated structure everywhere but
    in its own label.

        dice            mean over structures of  (2 sum p E + smooth) / (sum p + sum E + smooth), the Dice to be lowered
        cross_entropy   mean over structures and labelled voxels of  E ln(1 + p)

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        channels    "all_fg": all structures of a partly annotated case; "unannotated": those that are not annotated
        returns     ()          mean over the structures, then over the cases with an annotated structure, where
                    complete
                                cases count as 0, and so does a structure that is excluded nowhere; 0 with a zero
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
    structures = over_space(annotated, labels.ndim - 1)[:, 1:]
    labelled = (labels != IGNORE) & structures.any(dim=1)
    asked = labelled.unsqueeze(1) if channels == "all_fg" else labelled.unsqueeze(1) & ~structures
    excluded = ~possible_classes(labels, annotated)[:, 1:] & asked

    per_structure = _overlap(probabilities, excluded, asked, kind, smooth)
    counted = asked.flatten(2).any(dim=2).expand_as(per_structure)
    per_case = (per_structure * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    supervised = labelled.flatten(1).any(dim=1)
    unlabelled = (labelled & ~structures.all(dim=1)).flatten(1).any(dim=1)
    return masked_mean(torch.where(unlabelled, per_case, 0), supervised)


def _overlap(probabilities: Tensor, excluded: Tensor, asked: Tensor, kind: Kind, smooth: float) -> Tensor:
    """(B, K): what each structure costs; 0 where it is excluded nowhere."""
    if kind == "cross_entropy":
        count = asked.flatten(2).sum(dim=2).clamp_min(1)
        return (probabilities.log1p() * excluded).flatten(2).sum(dim=2) / count
    sums = overlap_sums(probabilities, excluded, asked)
    # Without this, smooth / (sum p + smooth) would be lowered by *raising* p.
    return torch.where(sums.true > 0, 1 - dice_loss(sums, smooth), 0)
