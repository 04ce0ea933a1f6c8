"""One network, two answers: where each structure is, and how far each voxel is from its surface.

K = C - 1 structures; both answers have one independent map per structure, so a partly annotated case answers only for
the structures that it annotates.

Source
    the network and the supervised loss that SASSNet (https://arxiv.org/abs/2007.10732) and DTC
    (https://arxiv.org/abs/2009.04448) share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from labelwise.components.signed_distance import AbsentDistance, SignedDistance, Unit, relative_distance
from labelwise.losses.binary import binary_cross_entropy, known_negatives
from labelwise.losses.partial import (
    Absent,
    OverlapSums,
    dice_loss,
    full_precision,
    masked_mean,
    overlap_sums,
    structure_answers,
)
from labelwise.nets.factory import NetFactory
from labelwise.types import Batch

TARGET = "signed_distance"  # name in Batch.extra


class Answers(NamedTuple):
    """Both in float32."""

    logits: Tensor  # (B, K, *S) before the sigmoid
    distances: Tensor  # (B, K, *S) in (-1, 1), negative inside


class DualTaskNet(nn.Module):
    """Any encoder and decoder with two heads on the last features; `structure_prior` as in `NetFactory.head`."""

    def __init__(self, nets: NetFactory, *, structure_prior: float | None = None):
        super().__init__()
        self.segmentation = nets.network(nets.num_classes - 1, prior=structure_prior)
        self.distance_head = nets.head(self.segmentation.decoder.channels[-1], nets.num_classes - 1)

    def forward(self, images: Tensor) -> Answers:
        """Images (B, M, *S) -> both answers."""
        embedding = self.segmentation.decoder(self.segmentation.encoder(images))[-1]
        # Near the surface a distance is a small number, and what uses it may be steep: float32 also under autocast.
        with torch.autocast(embedding.device.type, enabled=False):
            distances = torch.tanh(self.distance_head(full_precision(embedding)))
        return Answers(cast(Tensor, self.segmentation.head(embedding)), distances)


def distance_targets(unit: Unit) -> Mapping[str, SignedDistance]:
    """What a method with a `DualTaskNet` asks the loader for."""
    return {TARGET: SignedDistance(unit)}


def supervise(
    answers: Answers,
    batch: Batch,
    *,
    distance_weight: float = 0.3,
    cross_entropy_weight: float = 0.0,
    absent_dice: Absent = "skip",
    absent_distance: AbsentDistance = "far",
    boundary_shift: bool = False,
    negatives: bool = True,
) -> Tensor:
    """The loss of both answers for the structures that are annotated.

        1 - (2 sum p y + s) / (sum p^2 + sum y^2 + s)       sums over the voxels of all cases that annotate it,
                                                            s = 1e-5; mean over the structures
        + distance_weight * mean of (z - target)^2          over all voxels that have a target
        + cross_entropy_weight * binary cross-entropy       mean over the pairs of a case and an annotated structure
        + binary cross-entropy of absence                   mean over the pairs with a structure that is not annotated,
                                                            where another one is labelled; only with `negatives`

    Shapes
        batch       with the targets of `distance_targets` in `extra`
        returns     ()      0 with a zero gradient if nothing is annotated
    """
    truth, known = structure_answers(batch.labels, batch.annotated)
    target, where = relative_distance(
        batch.extra[TARGET], truth, known, absent=absent_distance, shift=boundary_shift
    )
    distance = masked_mean((answers.distances - target).square(), where)
    loss = _pooled_dice(answers.logits, truth, known, absent_dice) + distance_weight * distance
    if cross_entropy_weight:
        cross_entropy = masked_mean(*binary_cross_entropy(answers.logits, truth, known))
        loss = loss + cross_entropy_weight * cross_entropy
    if negatives:
        absent = known_negatives(batch.labels, batch.annotated)
        denial, asked = binary_cross_entropy(answers.logits, torch.zeros_like(absent), absent)
        loss = loss + masked_mean(denial, asked)
    return loss


def _pooled_dice(logits: Tensor, truth: Tensor, known: Tensor, absent: Absent) -> Tensor:
    sums = overlap_sums(full_precision(logits).sigmoid(), truth, known, squared=True)
    pooled = OverlapSums(*(part.sum(dim=0) for part in sums))
    valid = known.flatten(2).any(dim=2).any(dim=0)
    if absent == "skip":
        valid = valid & (pooled.true > 0)
    return masked_mean(dice_loss(pooled), valid)
