"""Metrics as functions on arrays: what `labelwise evaluate` computes, for two masks in memory.

Masks are arrays (*S) of one shape, 2D or 3D, of bool or of integers, where everything but 0 belongs to the structure.
A metric that is not defined is NaN: all of them if both masks are empty, distances if one is. Whole label maps, with
what is annotated in them, are scored by `evaluate_case`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labelwise.errors import ConfigError, DataError
from labelwise.evaluate import boundary, lesions, overlap, surface
from labelwise.evaluate.agreement import Agreement, calibration_error, limits_of_agreement
from labelwise.evaluate.cases import METRICS, NSD_TOLERANCE, evaluate_case
from labelwise.evaluate.lesions import Detection
from labelwise.evaluate.scores import Score, Summary, read_scores, summarise, write_scores
from labelwise.types import Array

__all__ = [
    "METRICS",
    "Agreement",
    "Detection",
    "Score",
    "Summary",
    "asd",
    "assd",
    "boundary_iou",
    "calibration_error",
    "detect_lesions",
    "dice",
    "evaluate_case",
    "hd95",
    "jaccard",
    "limits_of_agreement",
    "nsd",
    "panoptic_quality",
    "read_scores",
    "summarise",
    "volume_difference",
    "write_scores",
]

Spacing = Sequence[float]


def dice(prediction: Array, reference: Array) -> float:
    """Twice the shared voxels over the voxels of both masks, in [0, 1].

    Example
        >>> dice(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
        0.6666666666666666
    """
    return float(overlap.dice(_counts(prediction, reference))[1])


def jaccard(prediction: Array, reference: Array) -> float:
    """Shared voxels over the voxels of the union, in [0, 1].

    Example
        >>> jaccard(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
        0.5
    """
    return float(overlap.jaccard(_counts(prediction, reference))[1])


def volume_difference(prediction: Array, reference: Array, spacing_mm: Spacing) -> float:
    """Volume of the prediction minus that of the reference, in ml; of areas in 2D: thousands of mm².

    Example
        >>> volume_difference(np.ones((2, 2, 2)) > 0, np.zeros((2, 2, 2)) > 0, (10, 10, 10))
        8.0
    """
    counts = _counts(prediction, reference)
    voxel_ml = float(np.prod(_checked(spacing_mm, np.ndim(reference)))) / 1000
    return float(counts.prediction[1] - counts.reference[1]) * voxel_ml


def hd95(prediction: Array, reference: Array, spacing_mm: Spacing | None = None) -> float:
    """95th percentile of the distances between both surfaces, both directions pooled (as MedPy).

    In mm, or in voxels without `spacing_mm`.

    Example
        >>> mask = np.zeros((1, 9), bool); mask[0, 2] = True
        >>> hd95(mask, np.roll(mask, 3), spacing_mm=(1.0, 0.5))
        1.5
    """
    found = _distances(prediction, reference, spacing_mm)
    return np.nan if found is None else surface.hd95(found)


def assd(prediction: Array, reference: Array, spacing_mm: Spacing | None = None) -> float:
    """Mean distance between both surfaces, both directions pooled, in mm or voxels."""
    found = _distances(prediction, reference, spacing_mm)
    return np.nan if found is None else surface.assd(found)


def asd(prediction: Array, reference: Array, spacing_mm: Spacing | None = None) -> float:
    """Mean distance from the surface of the prediction to that of the reference, in mm or voxels."""
    found = _distances(prediction, reference, spacing_mm)
    return np.nan if found is None else surface.asd(found)


def nsd(
    prediction: Array,
    reference: Array,
    spacing_mm: Spacing | None = None,
    *,
    tolerance: float = NSD_TOLERANCE,
) -> float:
    """Normalised surface Dice: part of both surfaces within `tolerance` of the other, in [0, 1].

    The tolerance is in mm, or in voxels without `spacing_mm`. 0 if one mask is empty.
    """
    found = _distances(prediction, reference, spacing_mm)
    if found is not None:
        return surface.nsd(found, tolerance)
    return 0.0 if np.any(prediction) or np.any(reference) else np.nan


def boundary_iou(
    prediction: Array,
    reference: Array,
    spacing_mm: Spacing | None = None,
    *,
    width: float = boundary.WIDTH,
) -> float:
    """Intersection over union of the voxels within `width` of the border of either mask, in [0, 1].

    The width is in mm, or in voxels without `spacing_mm`. 0 if one mask is empty. Cheng et al., CVPR 2021.

    Example
        >>> mask = np.zeros((6, 6), bool); mask[1:5, 1:5] = True
        >>> boundary_iou(mask, mask & (np.arange(6) < 4), width=1.0)
        0.5714285714285714
    """
    mine, theirs = _pair(prediction, reference)
    spacing = (1.0,) * mine.ndim if spacing_mm is None else _checked(spacing_mm, mine.ndim)
    return boundary.boundary_iou(mine, theirs, spacing=spacing, width=width)


def detect_lesions(prediction: Array, reference: Array, *, least_iou: float = lesions.LEAST_IOU) -> Detection:
    """Which connected parts of the reference are found, missed, or invented; with recall, precision and F1.

    Two parts are matched, one to one, if their intersection over union is at least `least_iou`.

    Example
        >>> detect_lesions(np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 1, 0, 0]))
        Detection(found=1, missed=1, false=1, quality=0.0)
    """
    if not 0 < least_iou <= 1:
        raise ConfigError("least_iou is an overlap", found=least_iou, expected="above 0, at most 1")
    return lesions.detect(*_pair(prediction, reference), least_iou=least_iou)


def panoptic_quality(prediction: Array, reference: Array) -> float:
    """Sum of the IoU of matched connected parts (above 0.5) over matched parts and half of the others, in [0, 1].

    NaN if both masks are empty. Kirillov et al., CVPR 2019.

    Example
        >>> panoptic_quality(np.array([1, 1, 1, 0, 1]), np.array([1, 1, 0, 0, 0]))
        0.4444444444444444
    """
    return lesions.detect(*_pair(prediction, reference)).quality


def _pair(prediction: Array, reference: Array) -> tuple[Array, Array]:
    """Both masks as bool."""
    mine, theirs = _mask(prediction).astype(bool), _mask(reference).astype(bool)
    if mine.shape != theirs.shape:
        raise _other_shape(mine, theirs)
    return mine, theirs


def _other_shape(mine: Array, theirs: Array) -> DataError:
    return DataError(
        "prediction and reference have different shapes",
        found=f"prediction {mine.shape}",
        expected=f"reference {theirs.shape}",
    )


def _counts(prediction: Array, reference: Array) -> overlap.VoxelCounts:
    return overlap.count_voxels(_mask(reference), _mask(prediction), 2)


def _distances(
    prediction: Array, reference: Array, spacing_mm: Spacing | None
) -> surface.SurfaceDistances | None:
    mine, theirs = _mask(prediction), _mask(reference)
    if mine.shape != theirs.shape:
        raise _other_shape(mine, theirs)
    spacing = None if spacing_mm is None else _checked(spacing_mm, mine.ndim)
    return surface.surface_distances(theirs, mine, spacing=spacing).get(1)


def _mask(values: Array) -> Array:
    values = np.asarray(values)
    if values.dtype.kind not in "biu":
        raise DataError(
            "this is not a mask", found=f"values of type {values.dtype}", expected="bool or integers"
        )
    mask: Array = (values != 0).view(np.uint8)
    return mask


def _checked(spacing_mm: Spacing, dims: int) -> Spacing:
    if len(spacing_mm) != dims or not all(np.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError(
            "the spacing does not fit the image", found=spacing_mm, expected=f"{dims} lengths above 0"
        )
    return spacing_mm
