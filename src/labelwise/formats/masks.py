"""A folder with one mask for each organ, as TotalSegmentator writes them: ``segmentations/liver.nii.gz``.

The n-th of the names that are asked for becomes the label value n. A file that is not there says nothing; a mask
without a voxel says that the organ is absent. Where masks overlap, the later name counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labelwise.errors import DataError
from labelwise.formats import nifti
from labelwise.formats.geometry import Geometry
from labelwise.types import Array

ENDINGS = (".nii.gz", ".nii")


def names(folder: Path) -> dict[str, Path]:
    """Name of a mask -> its file, sorted by name."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        for ending in ENDINGS:
            if file.name.lower().endswith(ending) and not file.name.startswith("."):
                found.setdefault(file.name[: -len(ending)], file)
                break
    return found


def read(folder: Path, segments: Sequence[str]) -> tuple[Array, Geometry]:
    """Voxels (I, J, K) uint8 (uint16 above 255 names) and their grid, which all masks share.

    Errors
        DataError   none of the masks is there; two of them lie on different grids; one is damaged
    """
    files = {name: file for name, file in names(folder).items() if name in segments}
    if not files:
        raise DataError("none of the masks is there", file=folder, expected=", ".join(segments[:8]))
    labels: Array | None = None
    grid: Geometry | None = None
    for value, name in enumerate(segments, start=1):
        if name not in files:
            continue
        mask, own = nifti.read(files[name])
        if labels is None or grid is None:
            labels, grid = np.zeros(own.shape, np.uint8 if len(segments) < 256 else np.uint16), own
        elif not grid.matches(own):
            raise DataError("the masks lie on different grids", file=files[name], found=own, expected=grid)
        labels[mask != 0] = value
    assert labels is not None
    assert grid is not None
    return labels, grid
