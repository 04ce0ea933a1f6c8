"""The structures of a label map: where they are, which ends of the scan they reach, and which parts lie apart.

What is expected of a structure depends on which one it is; that is decided here, by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from labelwise import anatomy
from labelwise.cohort.manifest import Manifest
from labelwise.quality.stored_case import StoredLabels, in_memory_order
from labelwise.types import Array, Case

CLEARLY_MM = 15.0  # a structure so far on the wrong side is not there by its shape
ISLAND_MM = 8.0  # size of the blocks that must lie apart; at least two voxels
MAIN_PART = 0.1  # of the largest part: a second kidney, the other lobe of a gland
ISLAND_SHARE = 0.01  # of the structure
FEWEST_GAPS = 3
GAP_SHARE = 1 / 3
FEWEST_SLICES, WIDE_SLICES = 8, 4  # of a scan; within a slice, in multiples of its thickness
_SAMPLES_PER_AXIS = 40

# Structures whose tissue has the HU of soft tissue in any contrast phase, and that lie within an abdominal scan.
SOLID = frozenset(("liver", "spleen", "kidneys", "left kidney", "right kidney", "pancreas"))
# These run through the field of view, are longer than it, or reach its end in many scans.
THROUGH = re.compile(
    "aorta|vena cava|vein|artery|vessel|trunk|esophagus|stomach|duodenum|colon|intestine|bowel|rectum|trachea|lung|"
    "bone|femoral|femur|spin|vertebra|rib|muscle|gluteus|iliopsoas|autochthon|skin|body|fat|hip|sacrum|humerus|"
    "clavic|scapula|brain|heart|ventricle|myocardium|atrium"
)
# These have many parts.
SCATTERED = re.compile(
    "tumou?r|lesion|cyst|metasta|vessel|vein|lymph|nodule|rib|vertebra|colon|intestine|bowel|edema|infarct|enhanc"
)
WITH_GAS = re.compile("lung|colon|intestine|bowel|stomach|esophagus|duodenum|trachea|rectum|airway")
# How the chambers lie to each other depends on how the heart is turned, in spite of their names.
_HEART = re.compile("ventricle|atrium|atrial|pulmonary")


class FoundStructure(NamedTuple):
    """An annotated class that has voxels in a case."""

    name: str
    values: tuple[int, ...]
    voxels: int
    start: tuple[int, ...]  # box, RAS+ voxels
    stop: tuple[int, ...]
    places: Array  # (N, 3) a sample of its voxels, RAS+ indices

    def centre_mm(self, labels: StoredLabels) -> Array:
        """Mean position of the sample in mm, RAS+."""
        affine = labels.grid.affine
        return np.asarray(affine[:3, :3] @ self.places.mean(axis=0) + affine[:3, 3])


def is_a(kind: re.Pattern[str], name: str) -> bool:
    """Whether a class is of a kind, by its canonical name."""
    return kind.search(anatomy.canonical(name).lower()) is not None


def is_solid(name: str) -> bool:
    """Whether a class has the HU of soft tissue in any contrast phase."""
    return anatomy.canonical(name) in SOLID


def find_structure(name: str, manifest: Manifest, case: Case, labels: StoredLabels) -> FoundStructure | None:
    """Where a class is in a label map, or None if it is absent."""
    values = manifest.data_set_of(case).values
    regions = [region for value, region in labels.regions.items() if values.get(value) == name]
    if not regions:
        return None
    start = tuple(np.min([region.start for region in regions], axis=0).tolist())
    stop = tuple(np.max([region.stop for region in regions], axis=0).tolist())
    numbers = tuple(region.value for region in regions)
    voxels = sum(region.voxels for region in regions)
    return FoundStructure(name, numbers, voxels, start, stop, _places(labels.values, numbers, start, stop))


def _places(values: Array, numbers: Sequence[int], start: Sequence[int], stop: Sequence[int]) -> Array:
    steps = [max(1, (b - a) // _SAMPLES_PER_AXIS) for a, b in zip(start, stop, strict=True)]
    box = values[tuple(slice(*ends) for ends in zip(start, stop, steps, strict=True))]
    found = np.argwhere(np.isin(box, numbers) if len(numbers) > 1 else box == numbers[0])
    if not len(found):  # smaller than the steps
        return np.asarray((np.array([start]) + np.array([stop]) - 1) // 2)
    return np.asarray(found * steps + start)


def island_sizes(labels: StoredLabels, structure: FoundStructure) -> list[int]:
    """Voxels of each small part of a structure that lies apart from it by at least one block of about 8 mm."""
    box = labels.values[tuple(map(slice, structure.start, structure.stop))]
    memory, axes, _ = in_memory_order(box)
    mask = np.isin(memory, structure.values) if len(structure.values) > 1 else memory == structure.values[0]
    steps = [max(2, round(ISLAND_MM / labels.grid.spacing_mm[axis])) for axis in axes]
    coarse = mask.view(np.uint8)
    for axis, step in enumerate(steps):
        coarse = np.bitwise_or.reduceat(coarse, np.arange(0, coarse.shape[axis], step), axis=axis)
    parts, number = ndimage.label(coarse, np.ones((3, 3, 3)))
    if number == 1:
        return []
    blocks = np.bincount(parts.ravel())
    blocks[0] = 0
    sizes = []
    for part, place in enumerate(ndimage.find_objects(parts), start=1):
        if blocks[part] < MAIN_PART * blocks.max() and place is not None:
            fine = tuple(slice(p.start * step, p.stop * step) for p, step in zip(place, steps, strict=True))
            sizes.append(int(np.count_nonzero(mask[fine])))
    return [size for size in sizes if size < ISLAND_SHARE * structure.voxels]


class Gaps(NamedTuple):
    """Slices in which nothing of a structure is drawn, though it is drawn before and behind them."""

    axis: int  # RAS+ axis across the slices
    empty: list[int]  # indices on it
    slices: int  # from the first drawn one to the last


def unlabelled_slices(labels: StoredLabels, structure: FoundStructure) -> Gaps | None:
    """The empty slices of a structure that was drawn in some slices only: every second, every fourth.

    A structure that is there in two parts has one gap; contours that leave out slices have many: at least three, and at
    least a third of the slices between the first and the last.
    """
    box = labels.values[tuple(map(slice, structure.start, structure.stop))]
    memory, axes, flips = in_memory_order(box)
    mask = np.isin(memory, structure.values) if len(structure.values) > 1 else memory == structure.values[0]
    for place, axis in enumerate(axes):
        drawn = np.asarray(mask.any(axis=tuple(other for other in range(3) if other != place)))
        drawn = drawn[::-1] if flips[axis] else drawn
        runs = int(
            np.count_nonzero(np.diff(drawn.astype(np.int8)) == -1)
        )  # each gap begins after a drawn slice
        empty = np.flatnonzero(~drawn)
        if runs >= FEWEST_GAPS and len(empty) >= len(drawn) * GAP_SHARE:
            return Gaps(int(axis), (empty + structure.start[axis]).tolist(), len(drawn))
    return None


def only_slice(labels: StoredLabels, structure: FoundStructure) -> int | None:
    """The axis across which a structure is drawn in a single slice of many, though it is wide within that slice.

    What is a few slices wide is a few slices thick, too: a small lesion may lie in one slice, a liver does not.
    """
    sizes = np.subtract(structure.stop, structure.start)
    wide_mm = sizes * labels.grid.spacing_mm
    for axis in np.flatnonzero(sizes == 1).tolist():
        thickness = labels.grid.spacing_mm[axis]
        in_plane = np.delete(wide_mm, axis)
        if labels.values.shape[axis] >= FEWEST_SLICES and in_plane.min() > WIDE_SLICES * thickness:
            return axis
    return None


class PairedSides(NamedTuple):
    """How the left and right partners of a case lie to each other; pairs are (left, right)."""

    swapped: list[tuple[str, str]]
    kept: list[tuple[str, str]]
    undecided: list[tuple[str, str]]  # one is missing, or they lie above each other


def left_right_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """(left, right) partners among class names, sorted by name."""
    kinds = {name: found for name in sorted(names) if (found := anatomy.find(name)) is not None}
    by_canonical = {anatomy.canonical(name): name for name in kinds}
    return [
        (name, by_canonical[kind.partner])
        for name, kind in kinds.items()
        if kind.laterality == "left" and kind.partner in by_canonical and not is_a(_HEART, name)
    ]


def paired_sides(x_mm: Mapping[str, float], pairs: Iterable[tuple[str, str]]) -> PairedSides:
    """Judge pairs by the x of the structures that are present, in mm, RAS+."""
    sides = PairedSides([], [], [])
    for left, right in pairs:
        if left in x_mm and right in x_mm and abs(x_mm[left] - x_mm[right]) > CLEARLY_MM:
            (sides.swapped if x_mm[left] > x_mm[right] else sides.kept).append((left, right))
        elif left in x_mm or right in x_mm:
            sides.undecided.append((left, right))
    return sides
