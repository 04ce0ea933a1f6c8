"""Changes of geometry with given parameters: where each voxel of a patch is read from.

Coordinates are voxels, counted from the middle of the patch. `matrix` and `shift` lead from a voxel of the
result to the place in the input that it is read from, so enlarging is a matrix smaller than 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwise.types import IGNORE


def turn_and_mirror(patch: Tensor, quarter_turns: int, mirrored: Sequence[int], dims: int) -> Tensor:
    """(..., *S) turned from x towards y by 90 degrees `quarter_turns` times, then mirrored along axes."""
    turned = torch.rot90(patch, quarter_turns, (-dims, 1 - dims))
    return turned.flip([axis - dims for axis in mirrored])


def rotations(vectors: Tensor) -> Tensor:
    """(B, 3, 3) rotation about each vector of (B, 3), by its length in radians."""
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    matrices: Tensor = torch.linalg.matrix_exp(cross)
    return matrices


def sampling_grid(
    matrix: Tensor,
    shift: Tensor,
    size: Sequence[int],
    read: Sequence[int],
    *,
    device: torch.device,
    bending: Tensor | None = None,
) -> Tensor:
    """(B, *size, dims) grid for `resample`, which reads (B, *size) voxels out of (B, *read).

    `matrix` (B, dims, dims), `shift` (B, dims) in voxels, `bending` (B, dims, *size) in voxels too, added.
    """
    dims = len(size)
    inverse_read = 2 / torch.tensor(read, dtype=matrix.dtype)
    half_size = torch.tensor(size, dtype=matrix.dtype) / 2
    # grid_sample counts from -1 to 1 between the outer faces of the patch, and the last axis first.
    linear = inverse_read[:, None] * matrix * half_size
    theta = torch.cat([linear.flip(1, 2), (inverse_read * shift).flip(1)[..., None]], dim=2)
    grid = F.affine_grid(theta.float().to(device), [len(matrix), 1, *size], align_corners=False)
    if bending is not None:
        grid += (bending * inverse_read.to(bending).view(-1, *[1] * dims)).flip(1).movedim(1, -1)
    return grid


def resample(images: Tensor, grid: Tensor) -> Tensor:
    """(B, M, *R) -> (B, M, *S), linear, 0 outside."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def resample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """(B, *R) uint8 -> (B, *S) uint8, the nearest voxel, IGNORE outside."""
    # Outside, grid_sample can only give 0: so 0 has to mean IGNORE while it works.
    shifted = labels[:, None].float() - IGNORE
    nearest = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return (nearest[:, 0] + IGNORE).to(torch.uint8)


def resample_mask(mask: Tensor, grid: Tensor) -> Tensor:
    """(B, *R) bool -> (B, *S) bool, the nearest voxel, false outside."""
    nearest = F.grid_sample(
        mask[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return nearest[:, 0] > 0


def resample_targets(targets: Tensor, grid: Tensor) -> Tensor:
    """(B, K, *R) -> (B, K, *S), linear, continued at the border: a distance does not fall to 0 there."""
    return F.grid_sample(targets, grid, mode="bilinear", padding_mode="border", align_corners=False)


def control_points(size: Sequence[int], spacing: int) -> list[int]:
    """How many control points `bend` needs along each axis of a patch."""
    return [math.ceil((length - 1) / spacing) + 3 for length in size]


def bend(displacements: Tensor, size: Sequence[int], spacing: int) -> Tensor:
    """Cubic B-spline through control points `spacing` voxels apart: (B, D, *control_points) -> (B, D, *size).

    No voxel moves further than the control point that moves furthest. Neighbours keep their order as long as
    control points move by less than 0.4 of their spacing (Choi & Lee 2000).
    """
    field = displacements
    for length in size:  # each turn takes the first axis away and puts it, at full length, to the end
        field = torch.tensordot(field, _spline_weights(length, spacing).to(field), dims=([2], [1]))
    return field


def centre(patch: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (..., *size) of a patch, a view."""
    for axis, length in enumerate(size, start=-len(size)):
        patch = patch.narrow(axis, (patch.shape[axis] - length) // 2, length)
    return patch


def _spline_weights(length: int, spacing: int) -> Tensor:
    """(length, points): weight of each control point at each voxel; rows sum to 1."""
    (points,) = control_points([length], spacing)
    distance = (torch.arange(length)[:, None] / spacing - (torch.arange(points) - 1)).abs()
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)
