"""How large, how bright and where the structures are, from the label maps that exist.

Lengths are in mm, volumes in ml, positions in mm in RAS+ order. Only annotated structures are measured: what a label
map says about the others must not be believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from labelwise.cohort.manifest import Manifest, resolved
from labelwise.cohort.parts import inside, part_text, require_within
from labelwise.errors import DataError, naming
from labelwise.formats import Geometry
from labelwise.formats.geometry import touched_faces
from labelwise.quality.stored_case import (
    Region,
    find_regions,
    in_memory_order,
    read_stored_image,
    read_stored_labels,
)
from labelwise.types import Array, Part

_TOUCHING = np.ones((3, 3, 3))  # voxels of one part share a face, an edge or a corner


class Intensities(NamedTuple):
    """Intensities beneath a structure, in the first channel of the image; HU in a CT."""

    mean: float
    std: float
    median: float
    low: float  # 5 %
    high: float  # 95 %


@dataclass(frozen=True)
class Measures:
    """One structure of one case. A structure without a voxel has a volume of 0 and nothing else."""

    case: str
    data_set: str
    structure: str
    voxels: int
    volume_ml: float
    intensities: Intensities | None = None  # None: no image, or no voxel
    extent_mm: tuple[float, float, float] | None = None  # of the box around it, along the axes of the scan
    centroid_mm: tuple[float, float, float] | None = None
    faces: tuple[str, ...] = ()  # ends of the scan that it reaches: left, right, back, front, bottom, top
    components: int = 0  # parts that do not touch
    part: str = ""  # the part of the scan to which all this is confined, because nothing is known elsewhere


def measure_case(single: Manifest, *, with_image: bool = True) -> list[Measures]:
    """Measure every annotated structure of a manifest's only case, in the order of the label space, regions last.

    Errors
        DataError   a file is missing or damaged, or image and labels lie on different grids
    """
    case = single.cases[0]
    with naming(case.id, case.labels or case.images[0]):
        if not case.annotated:
            return []
        labels = read_stored_labels(case, single)
        image = read_stored_image(case, single) if with_image else None
        if image is not None and not image.grid.matches(labels.grid):
            raise DataError(
                "image and labels lie on different grids",
                file=case.labels,
                found=labels.grid,
                expected=image.grid,
                do="see what `labelwise check` says about this case",
                code="grids-differ",
            )
        values = resolved(single).data_set_of(case).values
        space = single.label_space
        structures = [name for name in (*space.structures, *space.region_names) if name in case.annotated]
        regions = {
            name: [region for value, region in labels.regions.items() if values.get(value) == name]
            for name in structures
        }
        channel = None if image is None else image.channels[0]
        found = {
            name: _measure(case.id, case.data_set, name, regions[name], labels.values, channel, labels.grid)
            for name in structures
        }
        for part in case.parts:
            require_within(case, part, labels.values.shape)
            known = _in_part(labels.values, part)
            boxes = find_regions(known)
            for name in part.structures:
                own = [region for value, region in boxes.items() if values.get(value) == name]
                row = _measure(case.id, case.data_set, name, own, known, channel, labels.grid)
                found[name] = replace(row, part=part_text(part))
        return [found[name] for name in structures]


def _in_part(values: Array, part: Part) -> Array:
    """Values (X, Y, Z) of a label map, 0 beyond the boxes of a part; as it is where only what is drawn is known."""
    if not part.boxes:
        return values
    return np.where(inside(part, [np.arange(size) for size in values.shape]), values, 0).astype(values.dtype)


def _measure(
    case: str,
    data_set: str,
    structure: str,
    regions: Sequence[Region],
    labels: Array,
    image: Array | None,
    grid: Geometry,
) -> Measures:
    if not regions:
        return Measures(case, data_set, structure, 0, 0.0)
    start = np.min([region.start for region in regions], axis=0)
    stop = np.max([region.stop for region in regions], axis=0)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    voxels = sum(region.voxels for region in regions)
    # In the order of the file, which is several times faster; so axes have to be looked up.
    inside, axes, flips = in_memory_order(labels[box])
    numbers = [region.value for region in regions]
    mask = np.isin(inside, numbers) if len(numbers) > 1 else inside == numbers[0]
    extent = (stop - start) * grid.spacing_mm
    return Measures(
        case,
        data_set,
        structure,
        voxels,
        voxels * float(np.abs(np.linalg.det(grid.affine[:3, :3]))) / 1000,
        None if image is None else _intensities(image[box], mask, axes, flips),
        _triple(extent),
        _triple(_centroid(mask, axes, flips, start, stop, grid)),
        tuple(touched_faces(start.tolist(), stop.tolist(), labels.shape)),
        int(ndimage.label(mask, _TOUCHING)[1]),
    )


def _intensities(image: Array, mask: Array, axes: Sequence[int], flips: Sequence[bool]) -> Intensities:
    turned = image[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(axes)
    found = turned[mask].astype(np.float64)
    low, median, high = np.percentile(found, (5, 50, 95))
    return Intensities(float(found.mean()), float(found.std()), float(median), float(low), float(high))


def _centroid(
    mask: Array,
    axes: Sequence[int],
    flips: Sequence[bool],
    start: Array,
    stop: Array,
    grid: Geometry,
) -> NDArray[np.float64]:
    middle = np.empty(3)
    for place, (axis, profile) in enumerate(zip(axes, _profiles(mask), strict=True)):
        along = float(np.arange(mask.shape[place]) @ profile / profile.sum())
        middle[axis] = stop[axis] - 1 - along if flips[axis] else start[axis] + along
    return np.asarray(grid.affine[:3, :3] @ middle + grid.affine[:3, 3])


def _profiles(mask: Array) -> Iterator[NDArray[np.int64]]:
    """Number of voxels in each plane, along each axis."""
    first = np.count_nonzero(mask, axis=0)
    yield np.count_nonzero(mask, axis=(1, 2))
    yield first.sum(axis=1)
    yield first.sum(axis=0)


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z
