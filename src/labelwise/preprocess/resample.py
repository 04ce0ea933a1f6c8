"""Change the number of voxels of a volume. The field of view stays: edges of the grid do not move.

Voxel centres (pinned by a test): the centre of voxel i of m lies at (i + 1/2) / m of the length of the axis.
The voxel size becomes length / m, so it meets a wanted spacing up to the rounding of m to a whole number.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labelwise.types import Array, Volume

Shape = tuple[int, int, int]

_SLAB = 32  # planes of a label map that are interpolated at a time
_CORNERS = tuple(product((0, 1), repeat=3))


def shape_at_spacing(shape: Shape, spacing_mm: tuple[float, ...], wanted_mm: tuple[float, ...]) -> Shape:
    """The number of voxels that comes closest to the wanted voxel size; at least 1 per axis."""
    x, y, z = (
        max(1, round(size * old / new)) for size, old, new in zip(shape, spacing_mm, wanted_mm, strict=True)
    )
    return x, y, z


def resample_image(image: Volume, shape: Shape) -> Volume:
    """An image with `shape` voxels, by separable cubic convolution (Catmull-Rom).

    Where voxels become larger the kernel widens by the same factor, so nothing aliases. No value lies outside
    the range of the channel it came from, although the kernel overshoots at edges. On smooth volumes this is
    about ten times closer to a cubic B-spline than trilinear interpolation is, at the same cost.

    Shapes
        image       (M, X, Y, Z) float32
        returns     (M, *shape) float32; `image` itself if it has that shape

    Source
        Keys, IEEE Trans. ASSP 1981 (a = -1/2); the widening is that of Pillow and torch (``antialias=True``).
    """
    if shape == image.shape:
        return image
    voxels = torch.from_numpy(np.require(image.data, np.float32, ["C", "W"]))
    low, high = voxels.amin(dim=(1, 2, 3), keepdim=True), voxels.amax(dim=(1, 2, 3), keepdim=True)
    x, y, z = shape
    if (y, z) != image.shape[1:]:
        voxels = _cubic(voxels, (y, z))
    if x != image.shape[0]:
        voxels = _cubic(voxels.flatten(2).unsqueeze(1), (x, y * z)).view(-1, x, y, z)
    return Volume(voxels.clamp_(low, high).numpy(), resized_affine(image.affine, image.shape, shape))


def resample_labels(labels: Array, shape: Shape) -> Array:
    """A label map (X, Y, Z) with `shape` voxels: each takes the old voxel that its centre lies in.

    For annotations: nothing is invented, thin scribbles survive, and a finer grid can be undone exactly.
    """
    for axis, (old, new) in enumerate(zip(labels.shape, shape, strict=True)):
        if old != new:
            # floor((i + 1/2) * old / new) in whole numbers: exact for any size.
            labels = labels.take((2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return labels


def restore_labels(labels: Array, shape: Shape) -> Array:
    """A predicted label map (X, Y, Z) with `shape` voxels, without the staircase of the nearest voxel.

    Where voxels become smaller, each takes the label with the largest trilinear weight among its eight old
    neighbours: the argmax of the interpolated one-hot maps, computed only at borders and for any number of
    classes at once. Where they become larger, each takes the voxel that its centre lies in.
    """
    labels = resample_labels(labels, _smaller(labels.shape, shape))
    if labels.shape == shape:
        return labels
    restored = resample_labels(labels, shape)
    (low_x, part_x), (low_y, part_y), (low_z, part_z) = map(_neighbours, labels.shape, shape)
    padded = np.pad(labels, (0, 1), mode="edge")  # the last voxel is its own neighbour
    mixed = _is_mixed(padded)
    for start in range(0, shape[0], _SLAB):  # bounds the memory
        x, y, z = np.nonzero(mixed[np.ix_(low_x[start : start + _SLAB], low_y, low_z)])
        x += start
        restored[x, y, z] = _vote(padded, (low_x[x], low_y[y], low_z[z]), (part_x[x], part_y[y], part_z[z]))
    return restored


def restore_scores(scores: Array, shape: Shape) -> Array:
    """Scores (C, X, Y, Z) with `shape` voxels, by trilinear interpolation.

    Where voxels become larger the kernel widens by the same factor. All weights are positive and sum to one: scores
    stay in their range, and those that sum to one over the classes still do.
    """
    if scores.shape[1:] == shape:
        return scores
    maps = torch.from_numpy(np.require(scores, np.float32, ["C", "W"]))
    x, y, z = shape
    if (y, z) != scores.shape[2:]:
        maps = _linear(maps, (y, z))
    if x != scores.shape[1]:
        maps = _linear(maps.flatten(2).unsqueeze(1), (x, y * z)).view(-1, x, y, z)
    return maps.numpy()


def resized_affine(affine: NDArray[np.float64], old: Shape, new: Shape) -> NDArray[np.float64]:
    """The affine of the grid that covers the same field of view with `new` instead of `old` voxels."""
    scale = np.divide(old, new)
    change = np.diag((*scale, 1.0))  # new voxel index -> old voxel index
    change[:3, 3] = scale / 2 - 0.5
    return affine @ change


def _cubic(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize the last two of four axes; torch skips an axis that keeps its size."""
    return F.interpolate(planes, size=size, mode="bicubic", antialias=True, align_corners=False)


def _linear(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)


def _smaller(first: tuple[int, ...], second: tuple[int, ...]) -> Shape:
    x, y, z = map(min, first, second)
    return x, y, z


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each new voxel of an axis: the old voxel before its centre, and the weight of the one after it."""
    centres = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    before = np.floor(centres).astype(np.int64)
    return before, (centres - before).astype(np.float32)


def _is_mixed(padded: Array) -> Array:
    """Whether the eight neighbours from a voxel on carry different labels."""
    low = high = padded
    for axis in range(3):
        first, second = [slice(None)] * 3, [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        low = np.minimum(low[tuple(first)], low[tuple(second)])
        high = np.maximum(high[tuple(first)], high[tuple(second)])
    return np.not_equal(low, high)


def _vote(padded: Array, low: tuple[NDArray[np.int64], ...], part: tuple[NDArray[np.float32], ...]) -> Array:
    """The label of most weight at N places: per axis an old voxel and the trilinear weight of the next."""
    votes = np.stack(
        [padded[tuple(first + step for first, step in zip(low, corner, strict=True))] for corner in _CORNERS]
    )
    weights = np.ones(votes.shape, np.float32)
    for weight, corner in zip(weights, _CORNERS, strict=True):
        for next_weight, step in zip(part, corner, strict=True):
            weight *= next_weight if step else 1 - next_weight
    support = np.stack([np.where(votes == candidate, weights, 0).sum(axis=0) for candidate in votes])
    won: Array = np.take_along_axis(votes, support.argmax(axis=0)[None], axis=0)[0]
    return won
