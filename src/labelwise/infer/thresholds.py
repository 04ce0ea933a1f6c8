"""From which score on a structure counts, where each structure has a map of its own: chosen on annotated voxels.

One half suits a map that saw as many voxels of its structure as others. A map of a small structure, or of one that
few cases annotate, may say 0.1 where the structure is, and one half then hides what it has found.

    for every annotated case, and every structure that it annotates: count its voxels, and the others, by score
    threshold of a structure = the one of the largest Dice, over all cases together; the middle one of several
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labelwise.types import IGNORE, Array

STEPS = 100  # thresholds that are compared: 0.01 to 0.99
HALF = 0.5


@dataclass(frozen=True)
class Chosen:
    """The threshold of a structure, and what it changes on the voxels that it was chosen on."""

    threshold: float
    dice: float
    dice_at_half: float
    cases: int  # that annotate the structure


class ThresholdSearch:
    """Counts the voxels of each structure by score; memory does not grow with the scans."""

    def __init__(self, structures: int):
        self._counts = np.zeros((structures, 2, STEPS + 1), np.int64)  # others and the structure
        self._cases = np.zeros(structures, np.int64)

    def add(self, scores: Tensor, labels: Array, annotated: Array) -> None:
        """Take in a case, as scores at thresholds of one half.

        Shapes
            scores      (C, X, Y, Z) in [0, 1]
            labels      (X, Y, Z)   class indices, 0, or IGNORE
            annotated   (C,) bool
        """
        known = torch.from_numpy(labels != IGNORE)
        given = torch.from_numpy(labels.astype(np.int64))[known]
        for structure in np.flatnonzero(annotated[1:]).tolist():
            step = (scores[structure + 1].cpu()[known] * STEPS).long()
            cell = (given == structure + 1) * (STEPS + 1) + step
            counts = torch.bincount(cell, minlength=2 * (STEPS + 1)).numpy()
            self._counts[structure] += counts.reshape(2, STEPS + 1)
            self._cases[structure] += 1

    def chosen(self) -> dict[int, Chosen]:
        """Class index -> its threshold, for every structure that has a voxel in the cases."""
        above = self._counts[..., ::-1].cumsum(axis=2)[..., ::-1]  # voxels with a score from each step on
        right, named = above[:, 1], above.sum(axis=1)
        dice = 2 * right / np.maximum(named + right[:, :1], 1)
        found = {}
        for structure in np.flatnonzero(right[:, 0]).tolist():
            values = dice[structure, 1:STEPS]
            best = np.flatnonzero(values >= values.max() - 1e-12) + 1
            middle = int(best[len(best) // 2])
            found[structure + 1] = Chosen(
                middle / STEPS,
                float(dice[structure, middle]),
                float(dice[structure, STEPS // 2]),
                int(self._cases[structure]),
            )
        return found


def in_order(thresholds: Mapping[str, float], structures: Sequence[str]) -> tuple[float, ...]:
    """Thresholds by name -> one for each structure; one half for those without; none at all if nothing was chosen."""
    return tuple(thresholds.get(structure, HALF) for structure in structures) if thresholds else ()
