"""Leaf-Dice: a Dice over all classes in which voxels whose class is not known are nobody's.

Paper      Fidon et al., MICCAI 2021, https://arxiv.org/abs/2107.03846
Spec       docs/methods/leaf_dice.md: where paper and official code differ, and what we follow

    for every batch (x, y, A) of cases with annotated structures A:
        p = softmax(network(x))
        S = {y} if y is a structure, else background and the structures not in A     what the voxel can be
        y_c = 1 where S = {c}, else 0                                     voxels of unknown class are nobody's
        minimise  1 - mean over all classes c of  2 sum p_c y_c / (sum p_c^2 + sum y_c + s)
                  + w * mean over voxels of  -log (sum of p over S)
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.partial import (
    dice_loss,
    full_precision,
    marginal_cross_entropy,
    mean_over_cases,
    overlap_sums,
    possible_classes,
)
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import Batch, Progress

Normalize = Literal["all", "present"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LeafDiceConfig:
    squared_dice: bool = True  # Dice with squared probabilities in the denominator
    normalize: Normalize = "all"  # mean over all classes, or over those with a known voxel
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


def leaf_dice(
    logits: Tensor,
    possible: Tensor,
    *,
    squared: bool = True,
    normalize: Normalize = "all",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice of all classes, background included, in which only voxels with a single possible class are positive.

    `possible` has at least one class per voxel. `losses.partial.possible_classes` makes it from labels and the
    annotated structures; annotations of regions, such as "one of the two kidneys", may make it otherwise. How
    probability is spread inside a set does not matter: nobody knows where in the set the truth is.

    ``1 - mean over classes of 2 sum p y / (sum p^2 + sum y + smooth)`` per case, y = 1 where the class is the only
    possible one. The sums run over the voxels where it is decided whether the class is there. A class without
    a positive voxel gives the constant 1 and no gradient: that is how un-annotated structures, and a background that
    nobody knows, drop out.

    Shapes
        logits      (B, C, *S)  float, before softmax
        possible    (B, C, *S)  bool
        squared     sum p^2 instead of sum p in the denominator
        normalize   "all": mean over all C classes; "present": over those with a positive voxel in the case
        returns     ()          mean over the cases in which any class is excluded anywhere; 0 with a zero gradient
                                if there are none

    Example
        >>> import torch
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class
        >>> liver_alone = torch.tensor([[[True, False], [False, True], [True, False]]])
        >>> leaf_dice(logits, liver_alone)  # liver: 1 - 2 (1/3) / (2/9 + 1) = 5/11; the others 1
        tensor(0.8182)
    """
    probabilities = full_precision(logits).softmax(dim=1)
    truth = possible & (possible.sum(dim=1, keepdim=True) == 1)
    sums = overlap_sums(probabilities, truth, truth | ~possible, squared=squared)
    counted = _decided(possible).flatten(1).any(dim=1, keepdim=True).expand_as(sums.true)
    if normalize == "present":
        counted = counted & (sums.true > 0)
    return mean_over_cases(dice_loss(sums, smooth, numerator=0), counted)


def _decided(possible: Tensor) -> Tensor:
    """(B, *S): where any class is excluded."""
    return ~possible.all(dim=1)
