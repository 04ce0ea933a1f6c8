"""Signed distance maps as targets: how far each voxel is from the surface of a structure, negative inside.

    loader's workers    labels --SignedDistance--> distances, signed           before the augmentation
    the step            distances, labels --relative_distance--> [-1, 1]       of the patch that the network sees

The two parts are apart because a distance moves with the image while the largest distance of a patch does not: the
augmentation cuts, turns and scales the map, and only then it is divided. A scaling of the patch scales all distances
alike and cancels.

Source
    Xue et al., AAAI 2020, https://arxiv.org/abs/1912.03849; normalisation of the SASSNet and DTC codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from labelwise.types import IGNORE, Array

Unit = Literal["voxels", "mm"]
AbsentDistance = Literal["far", "skip", "zero"]


@dataclass(frozen=True)
class SignedDistance:
    """The target function: for each structure the distance of every voxel to the other side of its surface.

    Outside d > 0 is the distance to the nearest voxel of the structure, inside -d that to the nearest voxel that is not
    structure. Voxels of the structure with a face neighbour outside are the surface, and 0. A structure without a
    voxel is +1 everywhere, a structure that fills the patch -1. The border of the patch is no surface.

    NaN is what is not known: structures that are not annotated, IGNORE voxels, and voxels that are nearer to an IGNORE
    voxel than to the other side, which may begin there. IGNORE around all that is labelled (the scan is smaller than
    the patch) counts as the border of the patch.

    Shapes
        labels      (B, *S)     integer in [0, C) or IGNORE
        annotated   (B, C)      bool
        spacing_mm  (B, dims)   float
        returns     (B, C - 1, *S) float32, in `unit`
    """

    unit: Unit = "voxels"

    def __call__(self, labels: Array, annotated: Array, spacing_mm: Array) -> Array:
        targets = np.full((len(labels), annotated.shape[1] - 1, *labels.shape[1:]), np.nan, np.float32)
        for case, (case_labels, structures) in enumerate(zip(labels, annotated[:, 1:], strict=True)):
            known = case_labels != IGNORE
            if not structures.any() or not known.any():
                continue
            seen = _box(known)
            spacing = np.ones(known.ndim) if self.unit == "voxels" else np.asarray(spacing_mm[case], float)
            to_unknown = _distance_to(~known[seen], spacing)
            for number in np.flatnonzero(structures):
                structure = case_labels[seen] == number + 1
                targets[case, number][seen] = _signed_distance(structure, known[seen], to_unknown, spacing)
        return targets


def relative_distance(
    distances: Tensor, truth: Tensor, known: Tensor, *, absent: AbsentDistance = "far", shift: bool = False
) -> tuple[Tensor, Tensor]:
    """Signed distances over the largest one of the patch, inside and outside each by its own: -1 to 1.

    Shapes
        distances   (B, K, *S)  float, of `SignedDistance` after the augmentation; NaN where not known
        truth       (B, K, *S)  bool, where each structure is (losses.partial.structure_answers)
        known       (B, K, *S)  bool, where that is known
        absent      a structure without a voxel in the patch is +1 everywhere ("far"), gets no target ("skip"), or is 0
                    everywhere ("zero", the official code: surface everywhere). One that fills the patch is -1.
        shift       the surface lies half a voxel inside: -1 / (2 max) instead of 0
        returns     target (B, K, *S) float without NaN, and where (B, K, *S) bool there is one

    Example
        >>> labels = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
        >>> distances = SignedDistance()(labels, np.ones((1, 2), bool), np.ones((1, 1)))
        >>> truth = torch.from_numpy(labels == 1)[:, None]
        >>> relative_distance(torch.from_numpy(distances), truth, torch.ones_like(truth))[0][0, 0, 2:]
        tensor([ 0.5000,  0.2500,  0.0000, -0.4000, -0.6000, -0.8000, -1.0000])
    """
    where = known & ~distances.isnan()
    # The label decides on which side a voxel is, also where the augmentation mixed distances across the surface.
    inward = torch.where(where & truth, -distances, 0).clamp_min(0)
    outward = torch.where(where & ~truth, distances, 0).clamp_min(0)
    axes = tuple(range(2, truth.ndim))
    deepest, farthest = (_largest(values, axes) for values in (inward, outward))
    target = outward / farthest - inward / deepest
    if shift:
        target = torch.where(truth & (inward == 0), -0.5 / deepest, target)
    present = truth.any(axes, keepdim=True)
    fills_the_patch = (truth | ~known).all(axes, keepdim=True)
    target = torch.where(fills_the_patch, -1, target)
    target = torch.where(present, target, 0 if absent == "zero" else 1)
    return target, where & present if absent == "skip" else where


def _largest(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The largest value over `axes`, kept as axes of one; 1 instead of 0."""
    largest = values.amax(axes, keepdim=True)
    return torch.where(largest > 0, largest, 1)


def _signed_distance(
    structure: NDArray[np.bool_], known: NDArray[np.bool_], to_unknown: Array, spacing: Array
) -> Array:
    """One map (*S): positive outside, negative inside, NaN where the nearest other side is not known."""
    size = _distance_to(structure, spacing)
    surface = np.zeros_like(structure)
    if structure.any():
        # The other side of a voxel of the structure begins at the latest one voxel beyond the box around the structure.
        box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in _box(structure))
        size[box] = np.where(structure[box], _distance_to((known & ~structure)[box], spacing), size[box])
        # With border_value 1 the border of the patch is no surface.
        surface[box] = structure[box] & ~binary_erosion((structure | ~known)[box], border_value=1)
    signed = np.where(structure, -size, size)
    signed[surface] = 0
    signed[(size > to_unknown) | ~known] = np.nan
    signed[np.isposinf(signed)] = 1
    signed[np.isneginf(signed)] = -1
    return signed


def _distance_to(voxels: NDArray[np.bool_], spacing: Array) -> Array:
    """(*S) float32 distance of every voxel to the nearest of `voxels`; infinite if there is none."""
    if not voxels.any():
        return np.full(voxels.shape, np.inf, np.float32)
    # Measured here from the nearest voxels in float32: scipy does it in float64, through several copies.
    nearest = distance_transform_edt(~voxels, sampling=spacing, return_distances=False, return_indices=True)
    squares = np.zeros(voxels.shape, np.float32)
    for place, own, size in zip(nearest, np.ogrid[*map(slice, voxels.shape)], spacing, strict=True):
        squares += np.square((place - own).astype(np.float32) * np.float32(size))
    return np.sqrt(squares, out=squares)


def _box(voxels: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around `voxels`, of which there is at least one."""
    axes = range(voxels.ndim)
    lines = [np.flatnonzero(voxels.any(axis=tuple(set(axes) - {axis}))) for axis in axes]
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)
