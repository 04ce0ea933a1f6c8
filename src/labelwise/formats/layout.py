"""What the files of a data set do not say about themselves, or say wrongly."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError

Overlap = Literal["later", "smaller", "kept"]
Flip = Literal["", "x", "y", "z", "xy", "xz", "yz", "xyz"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Layout:
    """How the files of one data set are to be read. Most data sets need none of it."""

    # h5 files
    axes: Literal["xyz", "zyx"] = "xyz"  # order of the stored axes; 2D slices: xy or yx
    spacing_mm: tuple[float, float, float] | None = None  # along x, y, z; None counts in voxels (1 mm each)
    image_key: str = "image"  # data set with the intensities
    label_key: str = "label"  # data set with the label map; "scribble" for scribbles
    # NIfTI files
    channels: bool = False  # a fourth axis of an image counts its channels
    # Labels that are known by names: files of a folder (one mask each), segments of a DICOM-SEG or a .seg.nrrd,
    # regions of an RTSTRUCT. The n-th name becomes the label value n, from 1.
    segments: tuple[str, ...] = ()
    # Which of them counts where they overlap: the later name, or the smaller structure; kept: each combination has a
    # value of its own, the sum of 2^(n - 1) over its names.
    overlap: Overlap = "later"
    # Names that a label file gives to its values decide what they mean, whatever the numbers; "ignored": numbers do.
    file_names: Literal["believed", "ignored"] = "believed"
    # Headers that are wrong
    label_grid: Literal["own", "image"] = "own"  # image: the labels lie voxel by voxel on the stored image
    label_flip: Flip = (
        ""  # axes of the stored image along which the labels run backwards; with label_grid = image
    )
    slices_first: bool = (
        False  # a diagonal header that names the axes x, y, z of a scan stored z, y, x (KiTS19)
    )

    def __post_init__(self) -> None:
        if self.spacing_mm is not None and not all(0 < size < float("inf") for size in self.spacing_mm):
            raise ConfigError("spacing_mm must be three positive numbers", found=self.spacing_mm)
        if self.label_flip and self.label_grid == "own":
            raise ConfigError(
                "label_flip needs label_grid = 'image'", found=f"label_flip = {self.label_flip!r}"
            )
        if len(set(self.segments)) < len(self.segments):
            raise ConfigError("a segment is named twice", found=", ".join(self.segments))

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel index -> mm of h5 files: the axes are taken as RAS+, the first voxel lies at 0."""
        return np.diag((*(self.spacing_mm or (1.0, 1.0, 1.0)), 1.0))
