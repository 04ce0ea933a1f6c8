"""Leaf-Dice: a Dice over all classes in which voxels whose class is not known are nobody's.

Paper      Fidon et al., MICCAI 2021, https://arxiv.org/abs/2107.03846
Spec       docs/methods/leaf_dice.md: where paper and official code differ, and what we follow

    for every batch (x, y, A) of cases with annotated organs A:
        p = softmax(network(x))
        S = {y} if y is an organ, else background and the organs not in A     what the voxel can be
        y_c = 1 where S = {c}, else 0                                     voxels of unknown class are nobody's
        minimise  1 - mean over all classes c of  2 sum p_c y_c / (sum p_c^2 + sum y_c + s)
                  + w * mean over voxels of  -log (sum of p over S)
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.label_set import leaf_dice
from labelwise.losses.partial import marginal_cross_entropy, possible_classes
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LeafDiceConfig:
    squared_dice: bool = True  # Dice with squared probabilities in the denominator
    normalize: Literal["all", "present"] = "all"  # mean over all classes, or over those with a known voxel
    ce_weight: NonNegativeFloat = 1.0  # w; 0 is leaf-Dice alone


class LeafDice(Method):
    card = Card(
        title="Leaf-Dice",
        paper="https://arxiv.org/abs/2107.03846",
        idea="A Dice over all classes in which voxels of unknown class belong to none, and a marginal cross-entropy.",
        learns_from=frozenset({"full", "partial"}),
    )
    Config = LeafDiceConfig

    def __init__(self, nets: NetFactory, config: LeafDiceConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.network(batch.images)
        loss = leaf_dice(
            logits,
            possible_classes(batch.labels, batch.annotated),
            squared=self.config.squared_dice,
            normalize=self.config.normalize,
        )
        if self.config.ce_weight:
            cross_entropy = marginal_cross_entropy(logits, batch.labels, batch.annotated)
            loss = loss + self.config.ce_weight * cross_entropy
        return {"supervised": loss}

    def predictor(self) -> nn.Module:
        return Softmax(self.network)
