"""DTC: a network says where a structure is and how far away its surface is, and both answers must agree.

Paper      Luo, Chen, Song & Wang, AAAI 2021, https://arxiv.org/abs/2009.04448
Spec       docs/methods/dtc.md: where paper and official code differ, and what we follow

    for every batch (x, y, A), K = C - 1 structures:
        o, z = network(x)                               logits, and distances in (-1, 1) that are negative inside
        p = sigmoid(o);   T = sigmoid(-k z)             1 inside, 0 outside, steep at the surface
        S = signed distance of y, over its largest value in the patch               structures in A only
        minimise  Dice(p, y) + beta mean (z - S)^2      structures in A only
                  + w(t) mean (T - p)^2                 all cases, structures and voxels; gradient through both sides
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.dual_task import Answers, DualTaskNet, distance_targets, supervise
from labelwise.components.teachers import Consistency
from labelwise.losses.partial import AbsentDice, full_precision, masked_mean, structure_answers
from labelwise.methods.base import Card, Method, NetFactory, Sigmoid, TargetFunction
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DualTaskConsistencyConfig(Consistency, AbsentDice):
    consistency_weight: NonNegativeFloat = 1.0
    steepness: PositiveFloat = 1500.0  # k
    distance_weight: NonNegativeFloat = 0.3  # beta
    consistency_on: Literal["open", "all"] = "all"  # where labels leave a structure open, or everywhere
    cross_entropy_weight: NonNegativeFloat = 0.0  # of a binary cross-entropy beside Dice
    # what every segmentation map says of every voxel at the start; None: the usual bias, about one half
    structure_prior: Annotated[float, Field(gt=0, lt=1)] | None = None
    absent_distance: Literal["far", "skip", "zero"] = "far"  # their distance: +1, no target, or 0
    known_negatives: bool = (
        True  # where a structure is labelled, the maps of others learn that they are absent
    )
    distance_unit: Literal["voxels", "mm"] = "voxels"  # matters for anisotropic voxels only
    boundary_shift: bool = False  # the surface lies half a voxel inside instead of on the outermost voxels


class DualTaskConsistency(Method):
    card = Card(
        title="DTC",
        paper="https://arxiv.org/abs/2009.04448",
        idea="A segmentation and a signed distance map of the same network must describe the same structure.",
        learns_from=frozenset({"full", "partial", "none"}),
        independent_maps=True,
    )
    Config = DualTaskConsistencyConfig

    def __init__(self, nets: NetFactory, config: DualTaskConsistencyConfig):
        super().__init__()
        self.config = config
        self.network = DualTaskNet(nets, structure_prior=config.structure_prior)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        answers = self.network(batch.images)
        supervised = supervise(
            answers,
            batch,
            distance_weight=self.config.distance_weight,
            cross_entropy_weight=self.config.cross_entropy_weight,
            absent_dice=self.config.absent_dice,
            absent_distance=self.config.absent_distance,
            negatives=self.config.known_negatives,
            boundary_shift=self.config.boundary_shift,
        )
        return {
            "supervised": supervised,
            "consistency": self.config.weight(progress) * self.consistency(answers, batch),
        }

    def consistency(self, answers: Answers, batch: Batch) -> Tensor:
        """Mean squared difference between the segmentation and the mask that the distances stand for."""
        apart = (self.mask_of(answers.distances) - full_precision(answers.logits).sigmoid()).square()
        inside = batch.inside.unsqueeze(1).expand_as(apart)
        if self.config.consistency_on == "all":
            return masked_mean(apart, inside)
        _, known = structure_answers(batch.labels, batch.annotated)
        return masked_mean(apart, ~known & inside)

    def mask_of(self, distances: Tensor) -> Tensor:
        """T(z): a smooth step from 1 inside to 0 outside, one half on the surface."""
        return torch.sigmoid(-self.config.steepness * distances)

    def extra_targets(self) -> Mapping[str, TargetFunction]:
        return distance_targets(self.config.distance_unit)

    def predictor(self) -> nn.Module:
        return Sigmoid(self.network.segmentation)
