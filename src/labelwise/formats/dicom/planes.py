"""Image planes of DICOM on the grid of a scan: which voxels are the pixels of a frame.

A frame says where its first pixel lies and in which directions rows and columns are counted, so its place among the
voxels follows from positions alone, whatever the order of files, frames and axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelwise.formats.geometry import Geometry
from labelwise.types import Array

LPS_TO_RAS = np.array((-1.0, -1.0, 1.0))
WITHIN_VOXELS = 0.25  # a pixel may miss its voxel by this: headers are rounded, and nothing else lies so near

Slices = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Plane:
    """Pixel (row, column) lies at ``origin + row * down + column * along``, mm in RAS."""

    origin: NDArray[np.float64]  # (3,)
    along: NDArray[np.float64]  # (3,) from one column to the next
    down: NDArray[np.float64]  # (3,) from one row to the next
    shape: tuple[int, int]  # rows, columns

    @classmethod
    def of(
        cls,
        position: Sequence[float],
        orientation: Sequence[float],
        spacing: Sequence[float],
        shape: tuple[int, int],
    ) -> Plane:
        """From the words of DICOM (LPS); `spacing` is (between columns, between rows), mm."""
        along, down = (np.array(orientation[part], float) for part in (slice(0, 3), slice(3, 6)))
        return cls(
            LPS_TO_RAS * np.array(position, float),
            LPS_TO_RAS * along * float(spacing[0]),
            LPS_TO_RAS * down * float(spacing[1]),
            shape,
        )


@dataclass(frozen=True)
class Place:
    """Where a plane lies among stored voxels (I, J, K)."""

    axes: tuple[int, int, int]  # the stored axes of rows, of columns, and across the plane
    reversed: tuple[bool, bool]  # whether rows, columns run against their axis
    first: tuple[int, int]  # index of the first row and column, counted in their own direction
    slice: int  # index on the axis across

    def window(self, voxels: Array, shape: tuple[int, int]) -> tuple[Array, Slices]:
        """The voxels under a frame of `shape`, as a view (rows, columns), and the part of the frame they are."""
        flat = voxels.transpose(self.axes)[:, :, self.slice]
        flat = flat[tuple(slice(None, None, -1 if turned else 1) for turned in self.reversed)]
        here, there = [], []
        for size, first, length in zip(flat.shape, self.first, shape, strict=True):
            begin, end = max(first, 0), max(min(first + length, size), max(first, 0))
            here.append(slice(begin, end))
            there.append(slice(begin - first, end - first))
        return flat[here[0], here[1]], (there[0], there[1])


def place(plane: Plane, grid: Geometry) -> Place | None:
    """Where a plane lies on a grid; None if its pixels are not voxels of it.

    The slice may lie outside the grid: see `inside`.
    """
    to_index = np.linalg.inv(grid.affine)
    origin = to_index[:3, :3] @ plane.origin + to_index[:3, 3]
    steps = np.stack([to_index[:3, :3] @ plane.down, to_index[:3, :3] @ plane.along])
    whole = np.rint(steps)
    drift = np.abs(steps - whole) * (np.array(plane.shape)[:, None] - 1)
    unit = (np.abs(whole).sum(axis=1) == 1).all()
    if not unit or drift.max() > WITHIN_VOXELS or np.abs(origin - np.rint(origin)).max() > WITHIN_VOXELS:
        return None
    row, column = (int(np.flatnonzero(step)[0]) for step in whole)
    if row == column:
        return None
    across = 3 - row - column
    index = np.rint(origin).astype(int)
    turned = (bool(whole[0, row] < 0), bool(whole[1, column] < 0))
    first = tuple(
        int(grid.shape[axis] - 1 - index[axis] if back else index[axis])
        for axis, back in zip((row, column), turned, strict=True)
    )
    return Place((row, column, across), turned, (first[0], first[1]), int(index[across]))


def inside(found: Place, grid: Geometry) -> bool:
    """Whether the slice of a plane is one of the grid."""
    return 0 <= found.slice < grid.shape[found.axes[2]]
