"""Each annotated organ as a binary problem of its own: "this organ" against "everything else".

The organ's probability p comes from a softmax over all classes, and its complement is 1 - p. So neither the
background nor an organ that nobody annotated ever gets a target. A pair is a case and an organ annotated in it.

Source
    Li et al., PL-Seg, Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from labelwise.losses.overlap import OverlapSums, dice_loss, overlap_sums
from labelwise.types import IGNORE

SMALLEST = 1e-10  # of a probability under a logarithm: without a bound the published training diverges
PAIRS_AT_ONCE = 16  # bounds the memory: all intermediate results have the size (pairs, voxels)


class PairLosses(NamedTuple):
    """What each of K pairs costs: (K,) each."""

    cross_entropy: Tensor  # mean over the labelled voxels; 0 if there are none
    dice: Tensor  # mean of the Dice losses of the organ and of its complement
    present: Tensor  # bool: the organ has a voxel

    def total(self, absent_weight: float) -> Tensor:
        """Cross-entropy and Dice of a present organ; `absent_weight` times the cross-entropy of an absent one.

        The Dice of an absent organ is near 1/2 whatever is predicted, so it says nothing.
        """
        return torch.where(self.present, self.cross_entropy + self.dice, absent_weight * self.cross_entropy)


def decoupled_foreground(probabilities: Tensor, labels: Tensor, cases: Tensor, organs: Tensor) -> PairLosses:
    """Cross-entropy and Dice of "organ against the rest" for each pair (case, organ).

    ``CE = -mean (y log p + (1 - y) log (1 - p))`` and ``Dice = 1 - 1/2 [2 sum p y / (sum p + sum y + 1e-5)`` + the
    same of the complement ``]``, over the labelled voxels of the case. Nothing of the size (pairs, voxels) is kept
    for the backward pass, which computes it again.

    Shapes
        probabilities   (B, C, *S)  float32, after softmax
        labels          (B, *S)     integer in [0, C) or IGNORE; uint8 needs the least memory
        cases, organs   (K,)        int64: which case, and which organ in [1, C) of it; K may be 0

    Example
        >>> half, first = torch.full((1, 2, 4), 0.5), torch.tensor([0])
        >>> pair = decoupled_foreground(half, torch.tensor([[1, 1, 0, IGNORE]]), first, torch.tensor([1]))
        >>> pair.cross_entropy, pair.dice  # ln 2; 1 - (2/3.5 + 1/2.5) / 2
        (tensor([0.6931]), tensor([0.5143]))
    """
    maps, voxels = probabilities.flatten(2).flatten(0, 1), labels.flatten(1)
    rows = cases * probabilities.shape[1] + organs
    parts = [
        # Nothing in it is random, so there is no state of a generator to keep.
        checkpoint(_pair_losses, maps, voxels, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(*(torch.split(index, PAIRS_AT_ONCE) for index in (rows, cases, organs)), strict=True)
    ]
    return PairLosses(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _pair_losses(maps: Tensor, labels: Tensor, rows: Tensor, cases: Tensor, organs: Tensor) -> PairLosses:
    """The losses of the pairs whose maps stand in the given rows of `maps`, (B * C, V); `labels` is (B, V)."""
    probability = maps.index_select(0, rows).clamp(SMALLEST, 1)
    given = labels.index_select(0, cases)
    known, truth = given != IGNORE, given == organs.to(given.dtype).unsqueeze(1)
    count = known.sum(dim=1)
    likelihood = torch.where(truth, probability, 1 - probability).clamp_min(SMALLEST)
    cross_entropy = -(likelihood.log() * known).sum(dim=1) / count.clamp_min(1)
    organ = OverlapSums(*_sums(probability, truth, known))
    return PairLosses(cross_entropy, _two_sided_dice(organ, count), organ.true > 0)


def _sums(probability: Tensor, truth: Tensor, known: Tensor) -> list[Tensor]:
    """The sums of `overlap_sums` with one class per row: (K,) each."""
    sums = overlap_sums(probability.unsqueeze(1), truth.unsqueeze(1), known.unsqueeze(1))
    return [part.squeeze(1) for part in sums]


def _two_sided_dice(organ: OverlapSums, count: Tensor) -> Tensor:
    """Half the Dice losses of the organ and of its complement; the sums of the latter follow from `count` voxels."""
    common, predicted, true = organ
    complement = OverlapSums(count - predicted - true + common, count - predicted, count - true)
    return (dice_loss(organ, numerator=0.0) + dice_loss(complement, numerator=0.0)) / 2
