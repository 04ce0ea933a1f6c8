"""A folder with one mask for each structure, as TotalSegmentator writes them: ``segmentations/liver.nii.gz``.

The n-th of the names that are asked for becomes the label value n. A file that is not there says nothing; a mask
without a voxel says that the structure is absent. Where masks overlap, the later name counts, or the smaller mask.
Files that are not asked for are not opened. A mask named after BIDS, ``sub-01_label-liver_mask.nii.gz``, is known by
its label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labelwise.errors import DataError
from labelwise.formats import nifti
from labelwise.formats.geometry import Geometry
from labelwise.formats.layout import Overlap
from labelwise.formats.segments import Canvas, Tally, empty, in_order
from labelwise.types import Array

ENDINGS = (".nii.gz", ".nii")
_BIDS = re.compile(r"sub-[^_]+_(?:.+_)?label-([^_]+)_(?:.+_)?mask")


def names(folder: Path) -> dict[str, Path]:
    """Name of a mask -> its file, sorted by the name of the file; of two files of one name the first counts.

    Errors
        DataError   the folder cannot be listed
    """
    found: dict[str, Path] = {}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"the folder of masks cannot be read: {error.strerror}", file=folder, code="unreadable"
        ) from error
    for file in files:
        if name := name_of(file):
            found.setdefault(name, file)
    return found


def name_of(file: Path) -> str:
    """What a mask is called: its file name without suffix, or the label in a name after BIDS; "" for no mask."""
    ending = next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), "")
    if not ending or file.name.startswith("."):
        return ""
    stem = file.name[: -len(ending)]
    match = _BIDS.fullmatch(stem)
    return match[1] if match else stem


def read(
    folder: Path, segments: Sequence[str], *, overlap: Overlap = "later", tally: Tally | None = None
) -> tuple[Array, Geometry]:
    """Voxels (I, J, K) uint8 (uint16 above 255 names) and their grid, which all masks share.

    Errors
        DataError   none of the masks is there; two of them lie on different grids; one is damaged, or no mask
    """
    files = names(folder)
    there = {value: files[name] for value, name in enumerate(segments, start=1) if name in files}
    if not there:
        raise DataError("none of the masks is there", file=folder, expected=", ".join(segments[:8]))
    sizes = (
        {value: int(np.count_nonzero(_mask(file)[0])) for value, file in there.items()}
        if overlap == "smaller"
        else None
    )
    canvas: Canvas | None = None
    grid: Geometry | None = None
    for value in in_order(there, sizes):
        mask, own = _mask(there[value])
        if canvas is None or grid is None:
            # In the order of the file: a mask in another order than the labels takes ten times as long.
            canvas = Canvas(empty(own, segments, overlap), tally, overlap)
            grid = own
        elif not grid.matches(own):
            raise DataError(
                "the masks lie on different grids",
                file=there[value],
                found=own,
                expected=grid,
                code="grids-differ",
            )
        canvas.draw(value, mask)
    assert canvas is not None
    assert grid is not None
    return canvas.labels, grid


def _mask(file: Path) -> tuple[Array, Geometry]:
    """(I, J, K) bool and its grid.

    Errors
        DataError   damaged; NaN, which differs from 0 but means no structure; several values, which are several
                    structures
    """
    voxels, grid = nifti.read(file)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise DataError(
            "the mask holds voxels that are not numbers",
            file=file,
            do="write it again with 0 and 1 only",
            code="not-finite",
        )
    mask = voxels != 0
    inside = voxels[mask]
    if inside.size and inside.min() != inside.max():
        raise DataError(
            "the file holds several values: it is no mask of one structure",
            file=file,
            found=f"{inside.min():g} to {inside.max():g} beside 0",
            expected="0, and one other value",
            do="name the file itself if it is a label map, or write one mask for each structure",
        )
    return mask, grid
