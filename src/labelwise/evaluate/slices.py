"""Hausdorff distance slice by slice, as the codes of LTUDA score it: for comparisons with its numbers only.

    every axial slice from the first to the last of the reference, if both masks are in it:
        d = the largest distance of a voxel of one mask to the other mask, within the slice
    slice_hd = mean of d

A slice without prediction costs nothing, and neither does a mask beyond the reference: `hd95` is the honest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from labelwise.types import Array


def slice_hd(prediction: Array, reference: Array, *, spacing: Sequence[float]) -> float:
    """The mean over slices of two masks (X, Y, Z) or (X, Y) of bool; NaN if no slice holds both."""
    mine, theirs = np.atleast_3d(prediction), np.atleast_3d(reference)
    both = np.flatnonzero((mine & theirs.any((0, 1))).any((0, 1)))
    if not both.size:
        return math.nan
    (box,) = ndimage.find_objects((mine | theirs).view(np.uint8))
    mine, theirs = mine[box[:2]], theirs[box[:2]]
    return float(np.mean([_hausdorff(mine[..., z], theirs[..., z], spacing[:2]) for z in both]))


def _hausdorff(first: Array, second: Array, spacing: Sequence[float]) -> float:
    to_first, to_second = (
        ndimage.distance_transform_edt(~mask, sampling=spacing) for mask in (first, second)
    )
    return max(float(to_second[first].max()), float(to_first[second].max()))
