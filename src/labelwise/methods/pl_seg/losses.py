"""The losses of PL-Seg: decoupled foreground, class maps that do not overlap, and distillation from scale to scale.

Each annotated structure is a binary problem of its own: "this structure" against "everything else".

The structure's probability p comes from a softmax over all classes, and its complement is 1 - p. So neither the
background nor a structure that nobody annotated ever gets a target. A pair is a case and a structure annotated in it.

Source
    Li et al., PL-Seg, Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885;
    distillation: Hinton et al., 2015, https://arxiv.org/abs/1503.02531.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from labelwise.components.batches import labels_at
from labelwise.losses.partial import OverlapSums, dice_loss, full_precision, masked_mean, overlap_sums
from labelwise.types import IGNORE

SMALLEST = 1e-10  # of a probability under a logarithm: without a bound the published training diverges
# A class whose map vanishes has a direction all the same: that of a constant map.
SMALLEST_PROBABILITY = 1e-10
SMALLEST_NORM = 1e-12
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation by number of spatial axes
PAIRS_AT_ONCE = 16  # bounds the memory: all intermediate results have the size (pairs, voxels)


class PairLosses(NamedTuple):
    """What each of K pairs costs: (K,) each."""

    cross_entropy: Tensor  # mean over the labelled voxels; 0 if there are none
    dice: Tensor  # mean of the Dice losses of the structure and of its complement
    present: Tensor  # bool: the structure has a voxel

    def total(self, absent_weight: float) -> Tensor:
        """Cross-entropy and Dice of a present structure; `absent_weight` times the cross-entropy of an absent one.

        The Dice of an absent structure is near 1/2 whatever is predicted, so it says nothing.
        """
        return torch.where(self.present, self.cross_entropy + self.dice, absent_weight * self.cross_entropy)


def decoupled_foreground(
    probabilities: Tensor, labels: Tensor, cases: Tensor, structures: Tensor, annotated: Tensor | None = None
) -> PairLosses:
    """Cross-entropy and Dice of "structure against the rest" for each pair (case, structure).

    ``CE = -mean (y log p + (1 - y) log (1 - p))`` and ``Dice = 1 - 1/2 [2 sum p y / (sum p + sum y + 1e-5)`` + the
    same of the complement ``]``, over the labelled voxels of the case. Nothing of the size (pairs, voxels) is kept
    for the backward pass, which computes it again.

    Shapes
        probabilities   (B, C, *S)  float32, after softmax
        labels          (B, *S)     integer in [0, C) or IGNORE; uint8 needs the least memory
        cases, structures   (K,)        int64: which case, and which structure in [1, C) of it; K may be 0
        annotated       (B, C, *S)  bool: where each structure is; None: all over the labelled part of the case

    Example
        >>> half, first = torch.full((1, 2, 4), 0.5), torch.tensor([0])
        >>> pair = decoupled_foreground(half, torch.tensor([[1, 1, 0, IGNORE]]), first, torch.tensor([1]))
        >>> pair.cross_entropy, pair.dice  # ln 2; 1 - (2/3.5 + 1/2.5) / 2
        (tensor([0.6931]), tensor([0.5143]))
    """
    maps, voxels = probabilities.flatten(2).flatten(0, 1), labels.flatten(1)
    there = None if annotated is None else annotated.flatten(2).flatten(0, 1)
    rows = cases * probabilities.shape[1] + structures
    parts = [
        # Nothing in it is random, so there is no state of a generator to keep.
        checkpoint(_pair_losses, maps, voxels, there, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(
            *(torch.split(index, PAIRS_AT_ONCE) for index in (rows, cases, structures)), strict=True
        )
    ]
    return PairLosses(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _pair_losses(
    maps: Tensor, labels: Tensor, there: Tensor | None, rows: Tensor, cases: Tensor, structures: Tensor
) -> PairLosses:
    """The losses of the pairs in the given rows of `maps` and `there`, (B * C, V); `labels` is (B, V)."""
    probability = maps.index_select(0, rows).clamp(SMALLEST, 1)
    given = labels.index_select(0, cases)
    known, truth = given != IGNORE, given == structures.to(given.dtype).unsqueeze(1)
    if there is not None:
        known = known & there.index_select(0, rows)
        truth = truth & known
    count = known.sum(dim=1)
    likelihood = torch.where(truth, probability, 1 - probability).clamp_min(SMALLEST)
    cross_entropy = -(likelihood.log() * known).sum(dim=1) / count.clamp_min(1)
    structure = OverlapSums(*_sums(probability, truth, known))
    return PairLosses(cross_entropy, _two_sided_dice(structure, count), structure.true > 0)


def _sums(probability: Tensor, truth: Tensor, known: Tensor) -> list[Tensor]:
    """The sums of `overlap_sums` with one class per row: (K,) each."""
    sums = overlap_sums(probability.unsqueeze(1), truth.unsqueeze(1), known.unsqueeze(1))
    return [part.squeeze(1) for part in sums]


def _two_sided_dice(structure: OverlapSums, count: Tensor) -> Tensor:
    """Half the Dice losses of a structure and of its complement, whose sums follow from `count` voxels."""
    common, predicted, true = structure
    complement = OverlapSums(count - predicted - true + common, count - predicted, count - true)
    return (dice_loss(structure, numerator=0.0) + dice_loss(complement, numerator=0.0)) / 2


def class_affinity(probabilities: Tensor, inside: Tensor | None = None) -> Tensor:
    """Cosine between the probability maps of each two classes of a case, as vectors over its voxels.

    It follows from the scalar products of the maps, so no normalised copy of them is made, and the bounded copy of
    which the products are taken is not kept for the backward pass.

    Shapes
        probabilities   (B, C, *S)  float, after softmax
        inside          (B, *S)     bool, `Batch.inside`: the voxels of the maps; None: all
        returns         (B, C, C)   float32 in [0, 1], symmetric, 1 on the diagonal
    """
    maps = full_precision(probabilities)
    with torch.autocast(device_type=maps.device.type, enabled=False):
        products = cast(
            Tensor, checkpoint(_products, maps, inside, use_reentrant=False, preserve_rng_state=False)
        )
    norms = products.diagonal(dim1=1, dim2=2).sqrt().clamp_min(SMALLEST_NORM)
    return products / (norms.unsqueeze(1) * norms.unsqueeze(2))


def classwise_orthogonal_loss(probabilities: Tensor, inside: Tensor | None = None) -> Tensor:
    """How far the class maps of a case are from being orthogonal: cross-entropy of the affinities to the identity.

    Mean over cases and classes j of ``logsumexp_i A_ij - A_jj`` with A as in `class_affinity`, the background
    included. Lies between ``log (1 + (C - 1) / e)`` for disjoint maps and ``log C`` for identical ones.

    Shapes
        probabilities   (B, C, *S)  float, after softmax
        inside          (B, *S)     bool, as in `class_affinity`
        returns         ()

    Example
        >>> identical = torch.full((1, 2, 4), 0.5)
        >>> classwise_orthogonal_loss(identical)  # log 2
        tensor(0.6931)
    """
    affinity = class_affinity(probabilities, inside)
    return (affinity.logsumexp(dim=1) - affinity.diagonal(dim1=1, dim2=2)).mean()


def _products(probabilities: Tensor, inside: Tensor | None) -> Tensor:
    maps = probabilities.flatten(2).clamp(SMALLEST_PROBABILITY, 1)
    if inside is not None:
        maps = maps * inside.flatten(1).unsqueeze(1)
    return maps @ maps.mT


def soft_cross_entropy(
    logits: Tensor, target_logits: Tensor, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the softened prediction to the softened target, mean over the voxels of all cases.

    ``-mean over voxels of sum_c softmax(target / T)_c log softmax(logits / T)_c``, without the factor T squared.

    Shapes
        logits, target_logits   (B, C, *S)  float; no gradient reaches the target
        where                   (B, *S)     bool; None: everywhere
        returns                 ()
    """
    target = (full_precision(target_logits.detach()) / temperature).softmax(dim=1)
    log_probabilities = (full_precision(logits) / temperature).log_softmax(dim=1)
    per_voxel = -(target * log_probabilities).sum(dim=1)
    return per_voxel.mean() if where is None else masked_mean(per_voxel, where)


def progressive_self_distillation(
    outputs: Sequence[Tensor], temperature: float = 10.0, inside: Tensor | None = None
) -> Tensor:
    """Each coarser output imitates the next finer one, whose logits are resized to it.

    Shapes
        outputs     two or more (B, C, *S_s) logits, fine to coarse
        inside      (B, *S) bool, `Batch.inside`, of the finest; None: everywhere
        returns     ()  mean over the coarser outputs; the finest one gets no gradient
    """
    terms = [
        soft_cross_entropy(
            coarse,
            _resized(fine.detach(), coarse.shape[2:]),
            temperature,
            None if inside is None else labels_at(inside, coarse.shape[2:]),
        )
        for fine, coarse in pairwise(outputs)
    ]
    return torch.stack(terms).mean()


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(full_precision(logits), size=size, mode=LINEAR[len(size)], align_corners=True)
