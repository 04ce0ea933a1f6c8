"""SASSNet: a critic learns to tell predicted shapes of annotated structures from others; the network must deceive it.

Paper      Li, Zhang & He, MICCAI 2020, https://arxiv.org/abs/2007.10732
Spec       docs/methods/sassnet.md: where paper and official code differ, and what we follow

    for every batch (x, y, A), K = C - 1 structures:
        o, z = network(x)                               logits, and distances in (-1, 1) that are negative inside
        S = signed distance of y, over its largest value in the patch               structures in A only
        known = pairs of a case and a structure in A;   open = the other pairs
        minimise  Dice(sigmoid(o), y) + beta mean (z - S)^2                         structures in A only
                  + lambda(t) CE(critic(z, x), "known") over open               without dropout, critic fixed
        critic: minimise  CE(critic(z, x), "known" or "open") over both         network fixed, own optimiser
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import select_rows
from labelwise.components.dual_task import DualTaskNet, distance_targets, supervise
from labelwise.components.teachers import Ramp
from labelwise.losses.partial import AbsentDice
from labelwise.methods.base import Card, Method, NetFactory, Sigmoid, TargetFunction
from labelwise.methods.sassnet.critic import Critic, two_kinds
from labelwise.types import Batch, Progress

Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SassnetConfig(Ramp, AbsentDice):
    distance_weight: NonNegativeFloat = 0.3  # beta
    adversarial_weight: NonNegativeFloat = 0.01  # lambda at the end of the ramp
    critic_width: PositiveInt = 64  # channels of the critic's first layer
    critic_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of whole channels, when the critic learns
    critic_rate: PositiveFloat = 1e-4  # of its own Adam, constant
    critic_betas: tuple[Beta, Beta] = (0.9, 0.99)
    pairs_per_case: PositiveInt = 4  # at most so many structures of a case are shown to the critic
    cross_entropy_weight: NonNegativeFloat = 0.0  # of a binary cross-entropy beside Dice
    # what every segmentation map says of every voxel at the start; None: the usual bias, about one half
    structure_prior: Annotated[float, Field(gt=0, lt=1)] | None = None
    absent_distance: Literal["far", "skip", "zero"] = "far"  # their distance: +1, no target, or 0
    known_negatives: bool = (
        True  # where a structure is labelled, the maps of others learn that they are absent
    )
    distance_unit: Literal["voxels", "mm"] = "voxels"  # matters for anisotropic voxels only


class Pair(NamedTuple):
    """A case and a structure: what the critic is asked about."""

    case: int
    structure: int  # from 0


class Sassnet(Method):
    card = Card(
        title="SASSNet",
        paper="https://arxiv.org/abs/2007.10732",
        idea="Distance maps of un-annotated structures must look to a critic like those of annotated ones.",
        learns_from=frozenset({"full", "partial", "none"}),
        idle_weights=True,
        independent_maps=True,
    )
    Config = SassnetConfig

    def __init__(self, nets: NetFactory, config: SassnetConfig):
        super().__init__()
        self.config = config
        self.network = DualTaskNet(nets, structure_prior=config.structure_prior)
        self.critic = Critic(
            nets.dims,
            nets.in_channels,
            nets.num_classes - 1,
            width=config.critic_width,
            dropout=config.critic_dropout,
        )

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
        )
        # The critic sees no distances beyond the scan: whatever stands there is neither known nor asked for.
        distances = answers.distances * batch.inside.unsqueeze(1)
        known, open_ = choose_pairs(batch.annotated_rows, self.config.pairs_per_case, batch.sparse)
        return {
            "supervised": supervised,
            "adversarial": self.config.adversarial_weight
            * self.config.ramp(progress)
            * self.deceit(distances, batch.images, open_),
            "critic": self.judgement(distances, batch.images, known, open_),
        }

    def deceit(self, distances: Tensor, images: Tensor, open_: Sequence[Pair]) -> Tensor:
        """How far the critic is from taking the distances of open pairs for those of known ones."""
        if not open_:
            return distances.sum() * 0
        logits = self.critic.frozen(_maps(distances, open_), images, *zip(*open_, strict=True))
        return two_kinds(logits, real=len(open_))

    def judgement(
        self, distances: Tensor, images: Tensor, known: Sequence[Pair], open_: Sequence[Pair]
    ) -> Tensor:
        """The critic's own loss. It learns nothing from a batch with one kind of pairs only, which would bias it."""
        if not known or not open_:
            return distances.sum() * 0
        pairs = [*known, *open_]
        logits = self.critic(_maps(distances.detach(), pairs), images, *zip(*pairs, strict=True))
        return two_kinds(logits, real=len(known))

    def extra_targets(self) -> Mapping[str, TargetFunction]:
        return distance_targets(self.config.distance_unit)

    def parameter_groups(self) -> list[dict[str, Any]]:
        adam = {
            "name": "adam",
            "rate": self.config.critic_rate,
            "betas": self.config.critic_betas,
            "weight_decay": 0.0,
        }
        critic = {"params": list(self.critic.parameters()), "optimizer": adam}
        return [
            {"params": list(self.network.parameters())},
            {**critic, "schedule": {"name": "constant"}},
        ]

    def predictor(self) -> nn.Module:
        return Sigmoid(self.network.segmentation)


def choose_pairs(
    annotated: Sequence[Sequence[bool]], limit: int, sparse: Sequence[bool] = ()
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Pairs of annotated structures and of the others: at most `limit` per case, as many of one kind as of the other.

    Drawn from torch's generator where a case has more. Of a case that is annotated in parts of the scan only, every
    structure is open.

    Example
        >>> choose_pairs([[True, True], [False, False]], limit=4)
        ((Pair(case=0, structure=0),), (Pair(case=1, structure=0),))
    """
    known, open_ = [], []
    for case, row in enumerate(annotated):
        structures = list(range(len(row) - 1))
        if len(structures) > limit:
            structures = torch.randperm(len(structures)).tolist()
        known_here = [bool(known) and not (sparse and sparse[case]) for known in row[1:]]
        yes = [Pair(case, structure) for structure in structures if known_here[structure]]
        no = [Pair(case, structure) for structure in structures if not known_here[structure]]
        half = max(limit // 2, limit - len(no))
        known += yes[:half]
        open_ += no[: limit - len(yes[:half])]
    return tuple(known), tuple(open_)


def _maps(distances: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """(B, K, *S) -> (N, 1, *S): the maps of N pairs."""
    rows = [pair.case * distances.shape[1] + pair.structure for pair in pairs]
    return select_rows(distances.flatten(0, 1), rows).unsqueeze(1)
