"""Do these labels lie on this image? Sides, borders, islands, and the HU beneath the organs of one case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from labelwise import anatomy
from labelwise.cohort.alignment import on_soft_tissue
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.source import IGNORE_NAME
from labelwise.formats.geometry import orientation_of, touched_faces
from labelwise.quality.check_scan import ENOUGH_VOXELS, NO_HU, ScanFacts, has_sides, is_unplaced
from labelwise.quality.organs import (
    CLEARLY_MM,
    SCATTERED,
    THROUGH,
    WITH_GAS,
    Organ,
    find_organ,
    is_a,
    is_solid,
    island_sizes,
    left_right_pairs,
    only_slice,
    paired_sides,
    unlabelled_slices,
)
from labelwise.quality.problem import Problem, of_labels, some
from labelwise.quality.stored_case import StoredImage, StoredLabels
from labelwise.types import Array, Case

WIDE_MM = 200.0  # a narrower field of view has no middle of the body
OUTSIDE_HU = -300.0
MOVABLE = ("stomach", "gallbladder", "heart")  # near the middle of the body, or on either side of it
_FEW = 100  # sampled voxels, below which nothing is said about an organ


def inspect_labels(
    case: Case, manifest: Manifest, image: StoredImage, labels: StoredLabels, scan: ScanFacts
) -> Iterator[Problem]:
    """Problems of label map and image together; their shapes are equal."""
    organs = [organ for name in sorted(case.annotated) if (organ := find_organ(name, manifest, case, labels))]
    same_place = image.grid.matches(labels.grid)
    if not same_place:
        yield _elsewhere(case, manifest, image, labels)
    if labels.stored.size < ENOUGH_VOXELS:
        return
    in_hu = not any(problem.code in NO_HU for problem in scan.problems)
    if same_place and in_hu and manifest.source_of(case).modality == "ct":
        yield from _hu_beneath(case, image, organs)
    if same_place and has_sides(case, image):
        yield from _sides(case, labels, organs, scan)
    yield from _cut_off(case, labels, organs)
    yield from _single_slices(case, manifest, labels, organs)
    sparse = list(_unlabelled_slices(case, manifest, labels, organs))
    yield from sparse
    if not sparse:  # slices of an organ that lie apart are no islands
        yield from _islands(case, labels, organs)


# place


def _elsewhere(case: Case, manifest: Manifest, image: StoredImage, labels: StoredLabels) -> Problem:
    """Image and labels of one shape at different places: is only the header of the labels wrong?"""
    found = f"image and labels lie at different places; found {labels.grid}; expected {image.grid}"
    if manifest.source_of(case).layout.segments == () and _fits_voxel_by_voxel(case, manifest, image, labels):
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
    source = manifest.source_of(case)
    solid = [value for value, name in source.values.items() if name in case.annotated and is_solid(name)]
    if source.modality != "ct" or not solid:
        return None
    steps = tuple(slice(None, None, max(1, size // 128)) for size in labels.stored.shape)
    hu = image.stored[steps][np.isin(labels.stored[steps], solid)]
    return np.asarray(hu) if len(hu) >= _FEW else None


# intensities


def _hu_beneath(case: Case, image: StoredImage, organs: Sequence[Organ]) -> Iterator[Problem]:
    judged = [organ for organ in organs if len(organ.places) >= _FEW]
    voxels = image.channels[0]
    solid = [organ for organ in judged if is_solid(organ.name)]
    wrong = [organ for organ in solid if not on_soft_tissue(_at(voxels, organ.places))]
    if wrong:
        medians = ", ".join(f"{organ.name} {np.median(_at(voxels, organ.places)):.0f} HU" for organ in wrong)
        what = f"labels that do not lie on soft tissue; median beneath {medians}"
        yield of_labels("warning", "label-misplaced", case, what, _flip_remedy(image, solid))
    for organ in judged:
        if organ not in solid and not is_a(WITH_GAS, organ.name):
            share = float(np.mean(_at(voxels, organ.places) < OUTSIDE_HU))
            if share > 0.5:
                what = f"{share:.0%} of '{organ.name}' lie in air"
                yield of_labels("warning", "label-outside-body", case, what, "look at both in a viewer")


def _flip_remedy(image: StoredImage, organs: Sequence[Organ]) -> str:
    """The one reversal of axes under which all organs lie on soft tissue, if there is exactly one."""
    shape = np.array(image.grid.shape)
    axes = orientation_of(image.stored_grid.affine).axes
    fitting = []
    for chosen in (c for n in (1, 2, 3) for c in combinations(range(3), n)):
        reverse = [axis in chosen for axis in range(3)]
        moved = [np.where(reverse, shape - 1 - organ.places, organ.places) for organ in organs]
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


def _sides(case: Case, labels: StoredLabels, organs: Sequence[Organ], scan: ScanFacts) -> Iterator[Problem]:
    """Organs with a side, against the middle of the body; left and right partners, against each other."""
    x_mm = {organ.name: float(organ.centre_mm(labels)[0]) for organ in organs}
    kinds = {organ.name: found for organ in organs if (found := anatomy.find(organ.name)) is not None}
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


def _cut_off(case: Case, labels: StoredLabels, organs: Sequence[Organ]) -> Iterator[Problem]:
    parts = []
    for organ in organs:
        if not (is_a(THROUGH, organ.name) or is_a(SCATTERED, organ.name)):
            faces = touched_faces(organ.start, organ.stop, labels.values.shape)
            parts += [f"'{organ.name}' at the {' and '.join(faces)}"] if faces else []
    if parts:
        what = f"cut by the field of view: {some(parts)}"
        remedy = "volumes of these structures are too small; leave the case out where that matters"
        yield of_labels("warning", "cut-by-field-of-view", case, what, remedy)


def _unlabelled_slices(
    case: Case, manifest: Manifest, labels: StoredLabels, organs: Sequence[Organ]
) -> Iterator[Problem]:
    unknown = [value for value, name in manifest.source_of(case).values.items() if name == IGNORE_NAME]
    parts = []
    for organ in organs:
        gaps = None if is_a(SCATTERED, organ.name) else unlabelled_slices(labels, organ)
        if gaps and not np.isin(np.moveaxis(labels.values, gaps.axis, 0)[gaps.empty], unknown).any():
            parts.append(f"'{organ.name}' in {gaps.slices - len(gaps.empty)} of {gaps.slices} slices")
    if parts:
        what = f"drawn in some slices only: {some(parts)}; the slices between teach that nothing is there"
        remedy = (
            "`labelwise check --fix FOLDER` writes a copy in which what is not labelled in these slices is unknown "
            "(ignore)"
        )
        yield of_labels("warning", "unlabelled-slices", case, what, remedy)


def _single_slices(
    case: Case, manifest: Manifest, labels: StoredLabels, organs: Sequence[Organ]
) -> Iterator[Problem]:
    unknown = [value for value, name in manifest.source_of(case).values.items() if name == IGNORE_NAME]
    parts = []
    for organ in organs:
        axis = only_slice(labels, organ)
        if axis is not None and not np.isin(labels.values, unknown).any():
            parts.append(f"'{organ.name}' in 1 of {labels.values.shape[axis]} slices")
    if parts:
        what = f"drawn in a single slice: {some(parts)}; all other slices teach that nothing is there"
        remedy = "where nobody looked at the other slices, give them a value of their own, and name it ignore"
        yield of_labels("warning", "single-slice", case, what, remedy)


def _islands(case: Case, labels: StoredLabels, organs: Sequence[Organ]) -> Iterator[Problem]:
    parts = []
    for organ in organs:
        if not is_a(SCATTERED, organ.name):
            sizes = island_sizes(labels, organ)
            voxels = f"{sum(sizes):,} voxel{'' if sum(sizes) == 1 else 's'}"
            parts += [f"'{organ.name}' {len(sizes)} ({voxels})"] if sizes else []
    if parts:
        what = f"small islands far from the rest: {some(parts)}"
        remedy = "look at the label map, and erase them if nothing is there"
        yield of_labels("warning", "label-islands", case, what, remedy)
