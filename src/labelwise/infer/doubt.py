"""How sure a model is of its answer: sums over the scores of a scan, taken while they pass by.

For class c with scores p_c and labels y = argmax p, over the voxels v of a scan:

    found_c   = number of v with y = c                       mass_c = sum of p_c, where p_c is at least NOTICED
    hits_c    = sum of p_c over the voxels with y = c
    expected Dice = 2 hits_c / (found_c + mass_c)
    entropy_c = mean over the voxels with y = c of -sum_k p_k log p_k / log C

If p were the chance that a voxel is c, hits_c would be the expected overlap and mass_c the expected size of the
reference: the expected Dice is their ratio, the soft Dice of the scores with their own labels. How far scores are from
chances is what a temperature mends: p_c^(1/T), made to sum to 1 again.

Source
    Soft Dice: Milletari et al., 3DV 2016. Temperature: Guo et al., ICML 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwise.infer.record import NOTICED as NOTICED

_SMALLEST = 1e-12
_PIECE = 2**22  # scores of a piece, which are added up in float32


@dataclass(frozen=True)
class Certainty:
    """What the scores of a scan say of one class."""

    voxels: int  # labelled as this class, of the prepared scan
    expected_dice: (
        float | None
    )  # 0..1; None if no voxel is noticed: the class is absent, and the model is sure of it
    entropy: float | None  # 0..1, mean over the voxels of this class; None if there are none


@dataclass
class Doubt:
    """Collects what `Certainty` needs."""

    temperature: float = 1.0
    _sums: Tensor | None = None  # (4, C) float64: found, mass, hits, entropy

    def add(self, scores: Tensor) -> None:
        """Take in the scores (C, *S) of some voxels; they need not sum to one."""
        if self._sums is None:
            self._sums = torch.zeros(4, len(scores), dtype=torch.float64, device="cpu")
        # In pieces: copies of all scores would take as much memory as the sliding window itself.
        length = max(1, _PIECE // max(scores[:, :1].numel(), 1))
        for piece in torch.split(scores, length, dim=1):
            self._sums += _sums_of(as_chances(piece, self.temperature)).cpu()

    def certainties(self) -> list[Certainty]:
        """One for each class, background first; empty before anything was added."""
        if self._sums is None:
            return []
        return [_certainty(*column) for column in self._sums.T.tolist()]


def _sums_of(chances: Tensor) -> Tensor:
    """(4, C): found, mass, hits and entropy of chances (C, *S)."""
    best, labels = chances.max(dim=0)
    of_voxels = torch.stack([torch.ones_like(best), best, entropy_of(chances)]).flatten(1)
    found, hits, entropy = chances.new_zeros(3, len(chances)).index_add(1, labels.flatten(), of_voxels)
    mass = (chances * (chances >= NOTICED)).flatten(1).sum(dim=1)
    return torch.stack([found, mass, hits, entropy])


def as_chances(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Scores (C, *S) >= 0 -> chances (C, *S) that sum to one, sharper below a temperature of 1 and flatter above."""
    if temperature == 1:
        return scores / scores.sum(dim=0, keepdim=True).clamp_min(_SMALLEST)
    return (scores.clamp_min(_SMALLEST).log() / temperature).softmax(dim=0)


def entropy_of(chances: Tensor) -> Tensor:
    """Entropy (*S) of chances (C, *S) as a part of the largest possible: 0 sure, 1 all classes alike."""
    return -(chances * chances.clamp_min(_SMALLEST).log()).sum(dim=0) / math.log(len(chances))


def _certainty(found: float, mass: float, hits: float, entropy: float) -> Certainty:
    # Where a class is not the strongest anywhere its mass may be of a voxel or two: less than that is no finding.
    expected = 2 * hits / (found + mass) if found + mass >= 1 else None
    return Certainty(int(found), expected, entropy / found if found else None)
