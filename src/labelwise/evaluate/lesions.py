"""Lesions one by one: which are found, which are missed, and what is there that is none.

A lesion is a connected part of a mask; voxels that touch by a corner are connected. A lesion of the reference and one
of the prediction are matched if they share enough (intersection over union), each with one other at most. Of several
choices the one with most matches, and among those with the largest sum of IoU, counts.

Source
    Detection at an IoU of 0.1: Baumgartner et al., nnDetection, MICCAI 2021. Panoptic quality, at an IoU above 0.5:
    Kirillov et al., CVPR 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from labelwise.components.connected import connected_parts
from labelwise.types import Array

LEAST_IOU = 0.1  # of a detection: small lesions are drawn differently by people, too
_SAME = 0.5  # of the panoptic quality: above it there is one match at most


@dataclass(frozen=True)
class Detection:
    """What became of the lesions of one scan."""

    found: int  # of the reference, matched with one of the prediction
    missed: int  # of the reference
    false: int  # of the prediction, matched with none
    quality: float  # panoptic quality, 0..1; NaN if there is no lesion at all

    @property
    def recall(self) -> float:
        """Part of the reference's lesions that is found; NaN if there are none."""
        return _ratio(self.found, self.found + self.missed)

    @property
    def precision(self) -> float:
        """Part of the predicted lesions that is one; NaN if there are none."""
        return _ratio(self.found, self.found + self.false)

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + false); NaN if there is no lesion at all."""
        return _ratio(2 * self.found, 2 * self.found + self.missed + self.false)


def detect(prediction: Array, reference: Array, *, least_iou: float = LEAST_IOU) -> Detection:
    """Match the lesions of two masks (*S) of bool.

    Parameters
        least_iou   from which on two lesions are one and the same, above 0
    """
    theirs, num_reference = connected_parts(reference, "corners")
    mine, num_prediction = connected_parts(prediction, "corners")
    if not num_reference or not num_prediction:
        nothing = not num_reference and not num_prediction
        return Detection(0, num_reference, num_prediction, math.nan if nothing else 0.0)
    iou = _iou(mine, theirs, num_prediction, num_reference)
    enough = iou >= least_iou
    # A match is worth more than any sum of overlaps.
    rows, columns = linear_sum_assignment(np.where(enough, 1 + iou / (1 + iou.sum()), 0), maximize=True)
    found = int(enough[rows, columns].sum())
    same = iou[iou > _SAME]
    unmatched = num_reference + num_prediction - 2 * same.size
    quality = float(same.sum() / (same.size + unmatched / 2))
    return Detection(found, num_reference - found, num_prediction - found, quality)


def _iou(mine: Array, theirs: Array, num_mine: int, num_theirs: int) -> Array:
    """(K, L) intersection over union of each pair of parts."""
    shared = np.zeros((num_mine + 1) * (num_theirs + 1))
    both = (mine > 0) & (theirs > 0)
    pairs, counts = np.unique(
        mine[both].astype(np.int64) * (num_theirs + 1) + theirs[both], return_counts=True
    )
    shared[pairs] = counts
    table = shared.reshape(num_mine + 1, num_theirs + 1)[1:, 1:]
    sizes = np.bincount(mine.ravel())[1:, None] + np.bincount(theirs.ravel())[None, 1:]
    return np.asarray(table / (sizes - table))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
