"""The files of a case without copies of their voxels: views in RAS+ order, in the number type of the file.

What training reads (`manifest.read_case_image`, `read_case_labels`) is converted and put in order, which takes longer
than unpacking the file. A check or a measurement needs neither. What is wrong with a file is said by the ordinary
readers, so that everybody says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from labelwise.cohort.data_set import unknown_values
from labelwise.cohort.manifest import DataSet, Manifest, read_case_image
from labelwise.cohort.meaning import data_set_of_file, refuse_hidden
from labelwise.errors import naming
from labelwise.formats import Geometry, Tally, read_labels, stored
from labelwise.formats.geometry import orientation_of
from labelwise.types import Array, Case, Volume


@dataclass(frozen=True)
class StoredImage:
    """One scan as stored, and its channels as views in RAS+ order."""

    stored: Array  # (I, J, K) of the first channel
    stored_grid: Geometry
    channels: tuple[Array, ...]  # (X, Y, Z) each
    grid: Geometry  # RAS+

    def volume(self, channel: int = 0) -> Volume:
        """One channel as (1, X, Y, Z); its voxels keep their number type."""
        return Volume(self.channels[channel][None], self.grid.affine)


class Region(NamedTuple):
    """Where one value of a label map is."""

    value: int
    voxels: int
    start: tuple[int, int, int]  # box, in RAS+ voxels
    stop: tuple[int, int, int]


@dataclass(frozen=True)
class StoredLabels:
    """A label map with the values of its file."""

    stored: Array  # (I, J, K)
    values: Array  # (X, Y, Z), a view
    grid: Geometry  # RAS+
    was_float: bool  # whether the file keeps floating-point numbers
    tally: Tally = field(default_factory=Tally)  # of labels that are known by names

    @cached_property
    def regions(self) -> Mapping[int, Region]:
        """Value -> region for every value that occurs, except 0 in maps without negative values."""
        return find_regions(self.values)


def read_stored_image(case: Case, manifest: Manifest) -> StoredImage:
    """The image of a case.

    Errors
        DataError   as `read_case_image`
    """
    layout = manifest.data_set_of(case).layout
    files = [stored.image(path, layout) for path in case.images]
    grids = [orientation_of(grid.affine).geometry_to_ras(grid) for _, grid in files]
    if not all(_is_finite(voxels) for voxels, _ in files) or not all(map(grids[0].matches, grids[1:])):
        read_case_image(case, manifest)  # says what is wrong
    channels = [orientation_of(grid.affine).to_ras(channel) for voxels, grid in files for channel in voxels]
    first, grid = files[0]
    return StoredImage(first[0], grid, tuple(channels), grids[0])


def read_stored_labels(case: Case, manifest: Manifest) -> StoredLabels:
    """The label map of a case, which must have a label file; structures that are not annotated are in it too.

    Errors
        DataError   the file is missing or unreadable, holds values that are not whole or have no meaning, its names
                    contradict the table, or an annotated structure lies wholly beneath others
    """
    assert case.labels is not None
    tally = Tally()
    with naming(case.id, case.labels):
        data_set = data_set_of_file(manifest.data_set_of(case), case.labels)
        voxels, grid = stored.labels(case.labels, data_set.layout, case.images[0], tally)
        refuse_hidden(data_set, tally, case.annotated)
    orientation = orientation_of(grid.affine)
    was_float = voxels.dtype.kind == "f"
    if was_float:
        ordinary = read_labels(case.labels, data_set.layout, case.images[0])
        voxels = orientation.from_ras(ordinary.data)
    elif voxels.dtype.kind == "b":
        voxels = voxels.view(np.uint8)
    ras = orientation.geometry_to_ras(grid)
    labels = StoredLabels(voxels, orientation.to_ras(voxels), ras, was_float, tally)
    if not _all_known(labels, data_set):
        raise unknown_values(data_set, voxels, case.id, case.labels)
    return labels


def find_regions(values: Array) -> dict[int, Region]:
    """Number of voxels and box of every value of a label map (X, Y, Z); 0 is left out if it is the lowest.

    One pass finds all boxes, then each value is counted in its box.
    """
    memory, axes, flips = in_memory_order(values)
    lowest = int(memory.min())
    offset = min(0, lowest - 1) if lowest < 0 else 0  # boxes are found for positive values only
    shifted = memory.astype(np.int32) - offset if offset else memory
    found = {}
    occupied = _occupied(shifted)  # a fraction of most label maps; the search is slow beside a test for 0
    for number, inner in enumerate(ndimage.find_objects(shifted[occupied]), start=1):
        if inner is not None:
            value = number + offset
            box = tuple(
                slice(outer.start + part.start, outer.start + part.stop)
                for outer, part in zip(occupied, inner, strict=True)
            )
            start, stop = [0, 0, 0], [0, 0, 0]
            for place, axis in enumerate(axes):
                size = values.shape[axis]
                ends = box[place].start, box[place].stop
                start[axis], stop[axis] = (size - ends[1], size - ends[0]) if flips[axis] else ends
            voxels = int(np.count_nonzero(memory[box] == value))
            found[value] = Region(value, voxels, (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return found


def _occupied(labels: Array) -> tuple[slice, ...]:
    """The box around everything that is not 0; one empty voxel if there is nothing."""
    ends = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(labels.any(axis=others))
        ends.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 1))
    return tuple(ends)


def in_memory_order(view: Array) -> tuple[Array, tuple[int, ...], tuple[bool, ...]]:
    """The same voxels as they lie in memory: the array, which axis of the view each of its axes is, flips by axis.

    Going through a file in another order is many times slower.
    """
    flips = tuple(stride < 0 for stride in view.strides)
    forward = view[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    axes = tuple(int(axis) for axis in np.argsort([-stride for stride in forward.strides], kind="stable"))
    return np.ascontiguousarray(forward.transpose(axes)), axes, flips


def _all_known(labels: StoredLabels, data_set: DataSet) -> bool:
    if data_set.others:
        return True
    if labels.stored.min() < min(0, *data_set.values) or labels.stored.max() > max(0, *data_set.values):
        return False
    known = sum(region.voxels for value, region in labels.regions.items() if value in data_set.values)
    total = labels.values.size
    # What has no region is 0; a value that the table lacks leaves a rest that nothing explains.
    zeros = total - sum(region.voxels for region in labels.regions.values())
    return known + (zeros if 0 in data_set.values else 0) == total


def _is_finite(voxels: Array) -> bool:
    """Whether float32 can hold all voxels as finite numbers."""
    if voxels.dtype.kind != "f":
        return True
    limit = np.finfo(np.float32).max
    return bool(voxels.min() >= -limit and voxels.max() <= limit)  # NaN fails both
