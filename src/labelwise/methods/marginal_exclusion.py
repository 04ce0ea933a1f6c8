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

from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.exclusion import exclusion_loss
from labelwise.losses.partial import supervised
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MarginalExclusionConfig:
    exclusion_weight: NonNegativeFloat = 2.0  # w
    exclusion_kind: Literal["dice", "cross_entropy"] = "dice"
    exclusion_channels: Literal["all_fg", "unannotated"] = (
        "all_fg"  # every organ, or those that nobody annotated
    )
    absent_dice: Literal["skip", "include"] = "skip"  # Dice of annotated organs without a voxel in the patch


class MarginalExclusion(Method):
    card = Card(
        title="Marginal and exclusion loss",
        paper="https://arxiv.org/abs/2007.03868",
        idea="Un-annotated organs may hide in the background, but not where another organ is labelled.",
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
        return {
            "supervised": 2
            * half,  # cross-entropy plus Dice: the weight of the exclusion refers to their sum
            "exclusion": self.config.exclusion_weight * exclusion,
        }

    def predictor(self) -> nn.Module:
        return Softmax(self.network)
