"""Do these labels lie on this image? Sides, borders, islands, and the HU beneath the structures of one case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from labelwise import anatomy
from labelwise.cohort.alignment import on_soft_tissue
from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.cohort.manifest import Manifest
from labelwise.formats.geometry import orientation_of, touched_faces
from labelwise.quality.check_scan import ENOUGH_VOXELS, NO_HU, ScanFacts, has_sides, is_unplaced
from labelwise.quality.problem import Problem, of_labels, some
from labelwise.quality.stored_case import StoredImage, StoredLabels
from labelwise.quality.structures import (
    CLEARLY_MM,
    SCATTERED,
    THROUGH,
    WITH_GAS,
    FoundStructure,
    find_structure,
    is_a,
    is_solid,
    island_sizes,
    left_right_pairs,
    only_slice,
    paired_sides,
    unlabelled_slices,
)
from labelwise.types import Array, Case

WIDE_MM = 200.0  # a narrower field of view has no middle of the body
OUTSIDE_HU = -300.0
MOVABLE = ("stomach", "gallbladder", "heart")  # near the middle of the body, or on either side of it
_FEW = 100  # sampled voxels, below which nothing is said about a structure


def inspect_labels(
    case: Case, manifest: Manifest, image: StoredImage, labels: StoredLabels, scan: ScanFacts
) -> Iterator[Problem]:
    """Problems of label map and image together; their shapes are equal."""
    structures = [
        structure
        for name in sorted(case.annotated)
        if (structure := find_structure(name, manifest, case, labels))
    ]
    same_place = image.grid.matches(labels.grid)
    if not same_place:
        yield _elsewhere(case, manifest, image, labels)
    if labels.stored.size < ENOUGH_VOXELS:
        return
    in_hu = not any(problem.code in NO_HU for problem in scan.problems)
    if same_place and in_hu and manifest.data_set_of(case).intensity == "ct":
        yield from _hu_beneath(case, image, structures)
    if same_place and has_sides(case, image):
        yield from _sides(case, labels, structures, scan)
    yield from _cut_off(case, labels, structures)
    yield from _single_slices(case, manifest, labels, structures)
    sparse = list(_unlabelled_slices(case, manifest, labels, structures))
    yield from sparse
    if not sparse:  # slices of a structure that lie apart are no islands
        yield from _islands(case, labels, structures)


# place


def _elsewhere(case: Case, manifest: Manifest, image: StoredImage, labels: StoredLabels) -> Problem:
    """Image and labels of one shape at different places: is only the header of the labels wrong?"""
    found = f"image and labels lie at different places; found {labels.grid}; expected {image.grid}"
    if manifest.data_set_of(case).layout.segments == () and _fits_voxel_by_voxel(
        case, manifest, image, labels
    ):
        what = f"{found}; voxel by voxel the labels fit the image"
        remedy = (
            "only the header of the labels is wrong: `labelwise check --fix FOLDER` writes a copy with that of the "
            "image, or set label_grid = 'image' in the layout of the data set"
        )
        return of_labels("error", "label-header", case, what, remedy)
    remedy = "look at both in a viewer; if only the header is wrong, copy that of the image"
    return of_labels("error", "label-elsewhere", case, found, remedy)


def _fits_voxel_by_voxel(case: Case, manifest: Manifest, image: StoredImage, labels: StoredLabels) -> bool:
    if image.stored.shape != labels.stored.shape:
        return False
    hu = _solid_hu_as_stored(case, manifest, image, labels)
    if hu is not None:
        return on_soft_tissue(hu)
    return is_unplaced(labels.grid) and not is_unplaced(image.grid)


def _solid_hu_as_stored(
    case: Case, manifest: Manifest, image: StoredImage, labels: StoredLabels
) -> Array | None:
    data_set = manifest.data_set_of(case)
    solid = [value for value, name in data_set.values.items() if name in case.annotated and is_solid(name)]
    if data_set.intensity != "ct" or not solid:
        return None
    steps = tuple(slice(None, None, max(1, size // 128)) for size in labels.stored.shape)
    hu = image.stored[steps][np.isin(labels.stored[steps], solid)]
    return np.asarray(hu) if len(hu) >= _FEW else None


# intensities


def _hu_beneath(case: Case, image: StoredImage, structures: Sequence[FoundStructure]) -> Iterator[Problem]:
    judged = [structure for structure in structures if len(structure.places) >= _FEW]
    voxels = image.channels[0]
    solid = [structure for structure in judged if is_solid(structure.name)]
    wrong = [structure for structure in solid if not on_soft_tissue(_at(voxels, structure.places))]
    if wrong:
        medians = ", ".join(
            f"{structure.name} {np.median(_at(voxels, structure.places)):.0f} HU" for structure in wrong
        )
        what = f"labels that do not lie on soft tissue; median beneath {medians}"
        yield of_labels("warning", "label-misplaced", case, what, _flip_remedy(image, solid))
    for structure in judged:
        if structure not in solid and not is_a(WITH_GAS, structure.name):
            share = float(np.mean(_at(voxels, structure.places) < OUTSIDE_HU))
            if share > 0.5:
                what = f"{share:.0%} of '{structure.name}' lie in air"
                yield of_labels("warning", "label-outside-body", case, what, "look at both in a viewer")


def _flip_remedy(image: StoredImage, structures: Sequence[FoundStructure]) -> str:
    """The one reversal of axes under which all structures lie on soft tissue, if there is exactly one."""
    shape = np.array(image.grid.shape)
    axes = orientation_of(image.stored_grid.affine).axes
    fitting = []
    for chosen in (c for n in (1, 2, 3) for c in combinations(range(3), n)):
        reverse = [axis in chosen for axis in range(3)]
        moved = [
            np.where(reverse, shape - 1 - structure.places, structure.places) for structure in structures
        ]
        if all(on_soft_tissue(_at(image.channels[0], places)) for places in moved):
            fitting.append("".join(sorted("xyz"[axes[axis]] for axis in chosen)))
    if len(fitting) != 1:
        return "look at both in a viewer: the labels may be shifted, flipped, or of another scan"
    return (
        f"reversed along {' and '.join(fitting[0])} of the file they fit: look at both in a viewer, then set "
        f"label_grid = 'image' and label_flip = '{fitting[0]}' in the layout of the data set"
    )


def _at(voxels: Array, places: Array) -> Array:
    return np.asarray(voxels[tuple(places.T)])


# sides


def _sides(
    case: Case, labels: StoredLabels, structures: Sequence[FoundStructure], scan: ScanFacts
) -> Iterator[Problem]:
    """Structures with a side, against the middle of the body; left and right partners, against each other."""
    x_mm = {structure.name: float(structure.centre_mm(labels)[0]) for structure in structures}
    kinds = {
        structure.name: found
        for structure in structures
        if (found := anatomy.find(structure.name)) is not None
    }
    right, wrong = [], []
    if scan.middle_mm is not None and scan.width_mm >= WIDE_MM:
        for name, kind in kinds.items():
            if kind.side and not kind.laterality and kind.name not in MOVABLE:
                away = (x_mm[name] - scan.middle_mm) * (1 if kind.side == "right" else -1)
                right += [name] if away > CLEARLY_MM else []
                wrong += [name] if away < -CLEARLY_MM else []
    pairs = paired_sides(x_mm, left_right_pairs(case.annotated))
    swapped = [f"'{left}' lies right of '{other}'" for left, other in pairs.swapped]
    if swapped and not wrong and not pairs.kept and not pairs.undecided:
        remedy = (
            "the names are swapped: `labelwise check --fix FOLDER` writes a copy with the names exchanged"
        )
        yield of_labels("error", "left-right-names", case, "; ".join(swapped), remedy)
    elif wrong or swapped:
        sides = [f"'{name}' lies on the {_other(kinds[name].side)}" for name in wrong]
        sides += swapped
        mirrored = not right and not pairs.kept
        code = "mirrored" if mirrored else "left-right-mixed"
        remedy = (
            "scan and labels are mirrored together, if this is not situs inversus: correct the header"
            if mirrored
            else "look at both in a viewer: some structures are on the wrong side, others are not"
        )
        yield of_labels("warning", code, case, "; ".join(sides), remedy)


def _other(side: str) -> str:
    return "left" if side == "right" else "right"


# shape


def _cut_off(case: Case, labels: StoredLabels, structures: Sequence[FoundStructure]) -> Iterator[Problem]:
    parts = []
    for structure in structures:
        if not (is_a(THROUGH, structure.name) or is_a(SCATTERED, structure.name)):
            faces = touched_faces(structure.start, structure.stop, labels.values.shape)
            parts += [f"'{structure.name}' at the {' and '.join(faces)}"] if faces else []
    if parts:
        what = f"cut by the field of view: {some(parts)}"
        remedy = "volumes of these structures are too small; leave the case out where that matters"
        yield of_labels("warning", "cut-by-field-of-view", case, what, remedy)


def _unlabelled_slices(
    case: Case, manifest: Manifest, labels: StoredLabels, structures: Sequence[FoundStructure]
) -> Iterator[Problem]:
    unknown = [value for value, name in manifest.data_set_of(case).values.items() if name == IGNORE_NAME]
    parts = []
    for structure in structures:
        gaps = None if is_a(SCATTERED, structure.name) else unlabelled_slices(labels, structure)
        if gaps and not np.isin(np.moveaxis(labels.values, gaps.axis, 0)[gaps.empty], unknown).any():
            parts.append(f"'{structure.name}' in {gaps.slices - len(gaps.empty)} of {gaps.slices} slices")
    if parts:
        what = f"drawn in some slices only: {some(parts)}; the slices between teach that nothing is there"
        remedy = (
            "`labelwise check --fix FOLDER` writes a copy in which what is not labelled in these slices is unknown "
            "(ignore)"
        )
        yield of_labels("warning", "unlabelled-slices", case, what, remedy)


def _single_slices(
    case: Case, manifest: Manifest, labels: StoredLabels, structures: Sequence[FoundStructure]
) -> Iterator[Problem]:
    unknown = [value for value, name in manifest.data_set_of(case).values.items() if name == IGNORE_NAME]
    parts = []
    for structure in structures:
        axis = only_slice(labels, structure)
        if axis is not None and not np.isin(labels.values, unknown).any():
            parts.append(f"'{structure.name}' in 1 of {labels.values.shape[axis]} slices")
    if parts:
        what = f"drawn in a single slice: {some(parts)}; all other slices teach that nothing is there"
        remedy = "where nobody looked at the other slices, give them a value of their own, and name it ignore"
        yield of_labels("warning", "single-slice", case, what, remedy)


def _islands(case: Case, labels: StoredLabels, structures: Sequence[FoundStructure]) -> Iterator[Problem]:
    parts = []
    for structure in structures:
        if not is_a(SCATTERED, structure.name):
            sizes = island_sizes(labels, structure)
            voxels = f"{sum(sizes):,} voxel{'' if sum(sizes) == 1 else 's'}"
            parts += [f"'{structure.name}' {len(sizes)} ({voxels})"] if sizes else []
    if parts:
        what = f"small islands far from the rest: {some(parts)}"
        remedy = "look at the label map, and erase them if nothing is there"
        yield of_labels("warning", "label-islands", case, what, remedy)
