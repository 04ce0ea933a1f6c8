"""Where voxels lie: the grid of a file, and the way from its stored axes to RAS+ and back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelwise.errors import DataError
from labelwise.types import Array

# Headers store float32, and each tool rounds in its own way; a tenth of a voxel is still invisible.
_SAME_GRID_VOXELS = 0.1
# Deflate cannot shrink data by more than this (zlib's technical notes: 1032 : 1).
_STRONGEST_COMPRESSION = 1032
FACES = (("left", "right"), ("back", "front"), ("bottom", "top"))  # ends of the RAS+ axes


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a scan: `shape` (X, Y, Z) in voxels and `affine` (4, 4) from voxel index to mm in RAS+."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def matches(self, other: Geometry) -> bool:
        """Whether both grids have one shape and no corner differs by more than a tenth of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in self.shape))])
        apart_mm = np.abs(corners @ (self.affine - other.affine).T).max()
        return bool(apart_mm <= _SAME_GRID_VOXELS * min(self.spacing_mm))

    def place_of(self, part: Geometry) -> tuple[slice, slice, slice] | None:
        """The voxels of this grid that are those of another one; None if the other is no part of it.

        A label map that a program cut to what is drawn has the voxels of its scan, but fewer of them.
        """
        start = np.rint(np.linalg.solve(self.affine, part.affine[:, 3])[:3]).astype(int)
        stop = start + part.shape
        if (start < 0).any() or (stop > self.shape).any():
            return None
        moved = self.affine.copy()
        moved[:3, 3] = (self.affine @ (*start, 1))[:3]
        if not Geometry(part.shape, moved).matches(part):
            return None
        x, y, z = (slice(int(begin), int(end)) for begin, end in zip(start, stop, strict=True))
        return x, y, z

    def __str__(self) -> str:
        shape = " x ".join(str(size) for size in self.shape)
        spacing = " x ".join(f"{size:.4g}" for size in self.spacing_mm)
        origin = ", ".join(f"{mm:.4g}" for mm in self.affine[:3, 3])
        return f"{shape} voxels of {spacing} mm, first voxel at ({origin}) mm"


@dataclass(frozen=True)
class Orientation:
    """How RAS+ axes are found among stored axes: axis `axes[a]`, reversed if `flips[a]`, is RAS axis a."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def to_ras(self, array: Array) -> Array:
        """(I, J, K) in stored order -> a view of it as (X, Y, Z) in RAS+ order."""
        return self._flipped(array.transpose(self.axes))

    def from_ras(self, array: Array) -> Array:
        """(X, Y, Z) in RAS+ order -> a view of it in stored order."""
        return self._flipped(array).transpose(np.argsort(self.axes))

    def geometry_to_ras(self, stored: Geometry) -> Geometry:
        """The grid of `to_ras(array)`, given the grid of `array`."""
        change = np.zeros((4, 4))  # RAS index -> stored index
        change[3, 3] = 1
        for ras, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            change[axis, ras] = -1 if flip else 1
            change[axis, 3] = stored.shape[axis] - 1 if flip else 0
        x, y, z = (stored.shape[axis] for axis in self.axes)
        return Geometry((x, y, z), stored.affine @ change)

    def _flipped(self, array: Array) -> Array:
        return array[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]


def orientation_of(affine: NDArray[np.float64]) -> Orientation:
    """The order and direction of axes that come closest to RAS+ (oblique scans stay oblique)."""
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    rotation = left @ right  # [ras, stored]: cosine between a world axis and a stored axis
    # Rounded, so that a scan at exactly 45 degrees is not turned by the noise of its header.
    x, y, z = max(
        permutations(range(3)), key=lambda axes: round(float(np.abs(rotation[range(3), axes]).sum()), 6)
    )
    flip_x, flip_y, flip_z = (bool(rotation[ras, axis] < 0) for ras, axis in enumerate((x, y, z)))
    return Orientation((x, y, z), (flip_x, flip_y, flip_z))


def as_geometry(path: Path | None, shape: Sequence[int], affine: NDArray[np.float64]) -> Geometry:
    """A Geometry from what a header says; 2D becomes one slice, frames of a single frame are dropped.

    A scan in memory has no path.

    Errors
        DataError   an empty axis, several frames, or an affine that places no voxel
    """
    frames = prod(shape[3:])
    if not shape or min(shape) < 1:
        raise DataError(
            "the image is empty", file=path, found=f"shape {tuple(shape)}", do="export the scan again"
        )
    if frames != 1:
        raise DataError(
            "this file holds several frames or channels",
            file=path,
            found=f"shape {tuple(shape)}",
            expected="one 3D volume per file",
            do="write each frame or channel to a file of its own",
        )
    x, y, z = (*shape, 1, 1)[:3]
    return Geometry((int(x), int(y), int(z)), _checked_affine(path, affine))


def _checked_affine(path: Path | None, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.asarray(affine, dtype=np.float64)
    usable = bool(np.isfinite(affine).all())
    if usable:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        usable = bool(spacing.min() > 1e-6 and spacing.max() < 1e6)
    if usable:
        usable = bool(abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3)
    if not usable:
        raise DataError(
            "the affine is singular or not finite: the voxels have no place in the world",
            file=path,
            found=np.array2string(affine[:3], precision=4, separator=", ").replace("\n", ""),
            do="export the scan again, or correct the orientation in its header",
        )
    return affine


def check_size(path: Path, needed_bytes: int, *, compressed: bool) -> None:
    """Refuse a header that promises more voxels than the file can hold, before they are allocated.

    Errors
        DataError   the file is shorter than its header says
    """
    size = path.stat().st_size
    if needed_bytes > size * (_STRONGEST_COMPRESSION if compressed else 1):
        raise DataError(
            "the file is too short for its header: truncated or damaged",
            file=path,
            found=f"{size:,} bytes" + (" (compressed)" if compressed else ""),
            expected=f"{needed_bytes:,} bytes" + (" after decompression" if compressed else ""),
            do="copy or export the file again",
            code="unreadable",
        )


def check_inside(path: Path, named: Iterable[str]) -> None:
    """Refuse a file that names others, in which its voxels lie, outside of its folder.

    A scan from a stranger must not read the files of its reader.

    Errors
        DataError   the name of such a file
    """
    folder = os.path.abspath(path.parent)  # noqa: PTH100 - links of versioned data sets are not followed
    for name in named:
        place = os.path.abspath(os.path.join(folder, name))  # noqa: PTH100, PTH118
        if not Path(place).is_relative_to(folder):
            raise DataError(
                "the file names another one, outside of its folder, for its voxels",
                file=path,
                found=name,
                expected=f"a file in {folder}",
                do="put both into one folder, and name the file without a path",
                code="unreadable",
            )


def touched_faces(start: Sequence[int], stop: Sequence[int], shape: Sequence[int]) -> list[str]:
    """Which ends of a scan in RAS+ order a box reaches; an axis with one voxel has no ends."""
    return [
        face
        for (low, high), first, end, size in zip(FACES, start, stop, shape, strict=True)
        for face, touched in ((low, first == 0), (high, end == size))
        if touched and size > 1
    ]
