"""Find the box of a scan that is worth keeping, and cut it out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

from labelwise.errors import DataError
from labelwise.types import Array, Volume

Crop = Literal["none", "nonzero", "body"]

_BODY_ABOVE_HU = -300.0  # between lung or air and fat
_COARSE_MM = 4.0  # fine enough to find a body
_PART_OF_BODY = 0.1  # parts of this fraction of the largest belong to it: two legs, arms beside the trunk


class Box(NamedTuple):
    """Voxels start <= index < stop along each axis."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        x, y, z = (last - first for first, last in zip(self.start, self.stop, strict=True))
        return x, y, z

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in a (X, Y, Z) array."""
        x, y, z = (slice(first, last) for first, last in zip(self.start, self.stop, strict=True))
        return x, y, z

    def cut(self, volume: Volume) -> Volume:
        """A view of the part of an image or label map inside the box; voxels keep their place in mm."""
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ self.start
        return Volume(volume.data[(..., *self.slices)], affine)


def find_box(image: Volume, crop: Crop) -> Box:
    """The box to keep of an image (M, X, Y, Z).

    Parameters
        crop    none       everything
                nonzero    bounding box of the voxels that differ from 0 and from the minimum, in any channel
                body       bounding box of the body in a CT, see `body_mask`

    Errors
        DataError   nothing would be left
    """
    if crop == "none":
        return Box((0, 0, 0), image.shape)
    if crop == "body":
        mask, steps = body_mask(image)
        box = _bounding_box(mask)
        # A coarse voxel stands for its neighbourhood: one more on each side.
        start = [max(0, (first - 1) * step) for first, step in zip(box.start, steps, strict=True)]
        stop = [
            min(size, (last + 1) * step)
            for size, last, step in zip(image.shape, box.stop, steps, strict=True)
        ]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    minimum = image.data.min(axis=(1, 2, 3), keepdims=True)
    content = ((image.data != 0) & (image.data != minimum)).any(axis=0)
    if not content.any():
        raise DataError(
            "the scan is empty: all voxels have one value",
            found=f"minimum {float(minimum.min()):g}, maximum {float(image.data.max()):g}",
            do="take the case out of the manifest, or export it again",
        )
    return _bounding_box(content)


def body_mask(image: Volume) -> tuple[Array, tuple[int, int, int]]:
    """Where the body is in a CT, on every n-th voxel.

    Voxels above -300 HU that are connected; the largest part, and parts of at least a tenth of its size (a
    second leg, an arm), but not the table or the headrest.

    Shapes
        returns     coarse (X', Y', Z') bool, and three steps: ``image.data[0, ::a, ::b, ::c]`` has its shape

    Errors
        DataError   no voxel is above -300 HU
    """
    x, y, z = (max(1, round(_COARSE_MM / size)) for size in image.spacing_mm)
    parts, _ = ndimage.label(image.data[0, ::x, ::y, ::z] > _BODY_ABOVE_HU)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.any():
        raise DataError(
            f"no body in this CT: no voxel is above {_BODY_ABOVE_HU:g} HU",
            found=f"maximum {float(image.data[0].max()):g}",
            expected="intensities in Hounsfield units",
            do="correct the intensities or the modality of the data set; for a normalised CT, normalised = true",
        )
    return (sizes >= _PART_OF_BODY * sizes.max())[parts], (x, y, z)


def _bounding_box(mask: Array) -> Box:
    ends = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        ends.append((int(occupied[0]), int(occupied[-1]) + 1))
    (x, x_end), (y, y_end), (z, z_end) = ends
    return Box((x, y, z), (x_end, y_end, z_end))
