"""Boundary IoU: the overlap of two masks near their borders, which large structures cannot hide in their inside.

    band(M) = voxels of M that lie within `width` of a voxel outside of M, and those that touch one
    boundary IoU = |band(G) and band(P)| / |band(G) or band(P)|

What lies beyond the edge of the image is outside.

Source
    Cheng et al., CVPR 2021. There the width is 2 % of the diagonal of the image; here it is a length, so that it does
    not depend on how much of a patient was scanned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from labelwise.types import Array

WIDTH = 2.0  # mm


def boundary_iou(
    prediction: Array, reference: Array, *, spacing: Sequence[float], width: float = WIDTH
) -> float:
    """Boundary IoU of two masks (*S) of bool; 0 if one is empty, NaN if both are."""
    mine, theirs = band(prediction, spacing, width), band(reference, spacing, width)
    either = int((mine | theirs).sum())
    return int((mine & theirs).sum()) / either if either else math.nan


def band(mask: Array, spacing: Sequence[float], width: float) -> Array:
    """(*S) bool: the voxels of a mask that lie at its border."""
    border = np.zeros_like(mask)
    (box,) = ndimage.find_objects(mask.astype(np.uint8)) or (None,)
    if box is None:
        return border
    inside = np.pad(mask[box], 1)
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    touching = inside & ~ndimage.binary_erosion(inside)
    core = tuple(slice(1, -1) for _ in mask.shape)
    border[box] = (inside & ((depth <= width) | touching))[core]
    return border
