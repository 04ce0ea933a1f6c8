"""How the labels of a case lie on its image: what headers say, what the voxels say, and data sets that follow.

The check of the voxels: labels of an abdominal structure lie on soft tissue. In a CT the median under the label must be
within -20..280 HU, and 80 % of the voxels within -100..350 HU. In portal venous scans the medians of liver, spleen,
kidneys and pancreas are 100 to 180 HU, so fat, lung, air and bone fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from labelwise.cohort.data_set import DataSet, Modality
from labelwise.errors import LabelwiseError
from labelwise.formats import Geometry, Layout, stored
from labelwise.formats.geometry import orientation_of
from labelwise.formats.layout import Flip
from labelwise.types import Array

MEDIAN_HU = (-20, 280)
RANGE_HU = (-100, 350)
SHARE_IN_RANGE = 0.8
FLIPS: tuple[Flip, ...] = ("", "y", "z", "yz")  # the faults that occur, the harmless first
CLEARLY = 1.1  # the spread of HU under the second best flip, over that under the best
_PLAIN = Layout()
Key = TypeVar("Key", bound=Hashable)


class Reading(NamedTuple):
    """A way to read the files of a case; `name` becomes the ending of the name of its data set."""

    name: str
    layout: Layout = _PLAIN


class Alignment(NamedTuple):
    """What the voxels of a case say."""

    headers: bool = False  # whether the labels lie right by their own header
    flip: Flip | None = None  # axes of the stored image along which they run backwards; None: nothing fits
    certain: bool = True  # whether no other flip fits about as well


def stored_grid(path: Path, layout: Layout = _PLAIN) -> Geometry | None:
    """The grid of a file with its axes as stored; None if it cannot be read, which `check` explains."""
    try:
        return stored.geometry(path, layout)
    except LabelwiseError:
        return None


def headers_agree(image: Path, labels: Path) -> bool:
    """Whether two files lie on one grid as stored; true if one of them cannot be read."""
    grids = stored_grid(image), stored_grid(labels)
    return grids[0] is None or grids[1] is None or grids[0].matches(grids[1])


def data_sets_by_reading(
    name: str, values: Mapping[int, str], modality: Modality, readings: Mapping[Key, Reading]
) -> tuple[dict[str, DataSet], dict[Key, str]]:
    """One data set for each way of reading, and the name of the data set for each case.

    The way that most cases share has the plain name: what looks for the data set by name finds most of it.
    """
    ordered = [reading for reading, _ in Counter(readings.values()).most_common()]
    names = {reading: f"{name}_{reading.name}" if place else name for place, reading in enumerate(ordered)}
    data_sets = {
        names[reading]: DataSet(names[reading], values, modality, reading.layout) for reading in ordered
    }
    return data_sets, {case: names[reading] for case, reading in readings.items()}


def align(image: Path, labels: Path) -> Alignment:
    """Find out from the voxels how the labels of an abdominal CT lie on it; both files are read once.

    By their own header, if the grids agree and the labels pass the check; else voxel by voxel on the stored image
    with the flip of `FLIPS` that passes. If several pass, the one under which intensities spread least
    (interquartile range), for a structure is more uniform than its surroundings.

    Errors
        DataError   a file cannot be read
    """
    scan, grid = stored.image(image, _PLAIN)
    mask, own = stored.labels(labels, _PLAIN, None)
    if grid.shape == own.shape and not (mask != 0).any():
        return Alignment(headers=grid.matches(own), flip="")
    if _in_ras(grid).matches(_in_ras(own)):
        there = np.nonzero(orientation_of(own.affine).to_ras(mask))
        if on_soft_tissue(orientation_of(grid.affine).to_ras(scan[0])[there]):
            return Alignment(headers=True, flip="")
    if grid.shape != own.shape:
        return Alignment()
    fitting = sorted(_fitting(scan[0], mask))  # the sort keeps FLIPS' order among equals
    if not fitting:
        return Alignment()
    certain = len(fitting) == 1 or fitting[1][0] > CLEARLY * fitting[0][0]
    return Alignment(flip=FLIPS[fitting[0][1]], certain=certain)


def on_soft_tissue(hu: Array) -> bool:
    """Whether intensities (N,) under a label can be those of an abdominal structure."""
    low, high = RANGE_HU
    share = ((hu >= low) & (hu <= high)).mean()
    return bool(MEDIAN_HU[0] <= np.median(hu) <= MEDIAN_HU[1] and share >= SHARE_IN_RANGE)


def _fitting(scan: Array, mask: Array) -> Iterator[tuple[float, int]]:
    """Spread of HU under the label and number of the flip, for each flip that passes."""
    there = np.nonzero(mask)
    for number, flip in enumerate(FLIPS):
        axes = tuple("xyz".index(axis) for axis in flip)
        places = tuple(
            scan.shape[axis] - 1 - where if axis in axes else where for axis, where in enumerate(there)
        )
        hu = scan[places]
        if on_soft_tissue(hu):
            low, high = np.percentile(hu, (25, 75))
            yield float(high - low), number


def _in_ras(grid: Geometry) -> Geometry:
    return orientation_of(grid.affine).geometry_to_ras(grid)
