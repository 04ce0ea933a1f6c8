"""Is this image what it says it is? Geometry and intensities of one scan, by rules that hold for every scanner.

The rules speak only where there is enough to judge by: `ENOUGH_VOXELS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from labelwise.cohort.data_set import DataSet
from labelwise.errors import DataError
from labelwise.formats import Geometry, suffix
from labelwise.formats.stored import H5
from labelwise.preprocess.crop import body_mask
from labelwise.preprocess.intensity import LARGEST_NORMALISED
from labelwise.quality.problem import Problem, from_error, of_image
from labelwise.quality.stored_case import StoredImage
from labelwise.types import Array, Case

ENOUGH_VOXELS = 4096
SPACING_MM = (0.1, 20.0)  # beyond, a header is more often wrong than right
BODY_HEIGHT_MM = (100.0, 2000.0)
AIR_HU = (-1100.0, -850.0)  # air around the patient, or in the lungs
ALMOST_AIR_HU = -700.0
AIR_SHARE = 0.05  # of the voxels of a CT, at least
TISSUE_HU = 100.0  # there is more than air, fat and water
NARROW_HU = 300.0  # fat and bone of any patient are farther apart
CLIPPED_SHARE = 0.005  # of all voxels at one end of the range
LARGEST_CLIPPED_HU = 2000.0  # a scanner's own limit (3071) is no window
NO_HU = ("rescaled-intensities", "no-air", "air-not-at-minus-1000")  # codes after which HU mean nothing
OUTLIERS_FROM = 100.0  # times the range of nearly all voxels beyond it
_SAMPLES_PER_AXIS = 64


@dataclass(frozen=True)
class BodyIntensities:
    """Intensities of the first channel in the body of a CT, or where an image is not empty."""

    low: float  # 5 %
    median: float
    high: float  # 95 %


@dataclass(frozen=True)
class ScanFacts:
    """What an image shows, for the comparison with the others of its data set."""

    problems: tuple[Problem, ...]
    intensities: BodyIntensities | None = None
    middle_mm: float | None = None  # x of the middle of the body, RAS+
    width_mm: float = 0.0


def inspect_scan(case: Case, image: StoredImage, data_set: DataSet) -> ScanFacts:
    """Problems of the image of a case, and its intensities."""
    problems = [*_constant_channels(case, image), *_outliers(case, image, data_set)]
    problems += _geometry(case, image, data_set)
    if any(problem.code == "constant-image" for problem in problems):
        return ScanFacts(tuple(problems))
    sample = _sample(image.channels[0])
    shape, affine = image.grid.shape, image.grid.affine
    first, last = 0.0, shape[0] - 1.0
    if data_set.intensity == "ct":
        try:
            body, steps = body_mask(image.volume())
        except DataError as error:
            return ScanFacts((*problems, from_error(case, error, "no-body")))
        occupied = np.flatnonzero(body.any(axis=(1, 2)))
        first, last = float(occupied[0] * steps[0]), float(occupied[-1] * steps[0])
        x, y, z = steps
        inside = image.channels[0][::x, ::y, ::z][body]
        problems += _hounsfield(case, sample) if image.stored.size >= ENOUGH_VOXELS else []
    else:
        inside = sample[sample != sample.min()]
        if image.stored.size >= ENOUGH_VOXELS and len(image.channels) == 1:  # CT beside MR is scaled by scans
            problems += _not_hounsfield(case, sample, data_set)
    centre = affine[:3, :3] @ ((first + last) / 2, shape[1] / 2, shape[2] / 2) + affine[:3, 3]
    low, median, high = np.percentile(inside, (5, 50, 95))
    width = (last - first) * image.grid.spacing_mm[0]
    return ScanFacts(
        tuple(problems), BodyIntensities(float(low), float(median), float(high)), float(centre[0]), width
    )


def has_sides(case: Case, image: StoredImage) -> bool:
    """Whether the header of an image says where left and right are: not in h5, nor where nobody wrote it down."""
    return suffix(case.images[0]) not in H5 and not is_unplaced(image.stored_grid)


def is_unplaced(stored: Geometry) -> bool:
    """Whether a grid is what programs write that know nothing: unit voxels along the axes of the file.

    The first voxel then lies at 0, or (a NIfTI file without transforms) the middle of the grid does.
    """
    diagonal = np.diag(stored.affine[:3, :3])
    if not (np.abs(diagonal) == 1).all() or np.abs(stored.affine[:3, :3]).sum() != 3:
        return False
    origin = stored.affine[:3, 3]
    middle = origin + diagonal * (np.array(stored.shape) - 1) / 2
    return bool((origin == 0).all() or (np.abs(middle) < 1e-3).all())


def size_text(spacing_mm: Iterable[float]) -> str:
    """``0.8 x 0.8 x 5 mm``."""
    return " x ".join(f"{size:.3g}" for size in spacing_mm) + " mm"


def _constant_channels(case: Case, image: StoredImage) -> Iterator[Problem]:
    for number, channel in enumerate(image.channels):
        few = _sample(channel)
        low = few.min()
        if low == few.max() and low == channel.min() == channel.max():
            what = f"the image is empty: every voxel is {low:g}"
            file = case.images[min(number, len(case.images) - 1)]
            remedy = "replace the file, or remove the case"
            yield Problem("error", "constant-image", case.id, str(file), what, remedy)


def _outliers(case: Case, image: StoredImage, data_set: DataSet) -> Iterator[Problem]:
    """Single voxels so far off that they decide sums and means: a damaged file, or a fill value such as 1e30."""
    for number, channel in enumerate(image.channels):
        low, high = float(channel.min()), float(channel.max())
        usual_low, usual_high = np.percentile(_sample(channel), (0.1, 99.9))
        room = OUTLIERS_FROM * max(float(usual_high - usual_low), 1e-6)
        too_far = data_set.normalised and max(-low, high) > LARGEST_NORMALISED
        if not too_far and (low >= usual_low - room and high <= usual_high + room):
            continue
        what = f"voxels far from all others: {low:g} to {high:g}, while most lie in {usual_low:g} to {usual_high:g}"
        file = case.images[min(number, len(case.images) - 1)]
        remedy = "replace these voxels by the background intensity, or export the scan again"
        yield Problem("error" if too_far else "warning", "outliers", case.id, str(file), what, remedy)


def _geometry(case: Case, image: StoredImage, data_set: DataSet) -> Iterator[Problem]:
    low, high = SPACING_MM
    spacing = image.grid.spacing_mm
    compare = "compare the header with the original scan"
    if not all(low <= size <= high for size in spacing):
        yield of_image(
            "warning", "unlikely-spacing", case, f"unlikely voxel size {size_text(spacing)}", compare
        )
    if image.stored.size < ENOUGH_VOXELS or suffix(case.images[0]) in H5:
        return
    if is_unplaced(image.stored_grid):
        what = "voxels of exactly 1 mm along the axes of the file: this header says nothing about the patient"
        remedy = "take voxel size and orientation from the original scan, or leave the case out"
        yield of_image("warning", "suspect-geometry", case, what, remedy)
    height = image.grid.shape[2] * spacing[2]
    if data_set.modality == "ct" and not BODY_HEIGHT_MM[0] <= height <= BODY_HEIGHT_MM[1]:
        yield of_image("warning", "unlikely-height", case, f"the scan is {height:.0f} mm high", compare)


def _hounsfield(case: Case, sample: Array) -> Iterator[Problem]:
    """Whether intensities can be Hounsfield units of a patient in air."""
    low, high = float(sample.min()), float(sample.max())
    if high - low < NARROW_HU:
        what = f"the intensities reach from {low:g} to {high:g} only: these are no Hounsfield units"
        remedy = "use the scan before it was rescaled, or say of its data set: normalised = true"
        yield of_image("warning", "rescaled-intensities", case, what, remedy)
        return
    if low > ALMOST_AIR_HU:
        what = f"no air in this CT: the smallest intensity is {low:g}, that of air is -1000 HU"
        remedy = (
            "subtract 1024 if these are stored values without their intercept"
            if low >= -50
            else "use the scan before a window was applied"
        )
        yield of_image("warning", "no-air", case, what, remedy)
    elif not AIR_HU[0] <= (air := _air(sample)) <= AIR_HU[1]:
        what = f"air is at {air:.0f} HU instead of -1000 HU"
        remedy = "correct slope and intercept, or export the scan again"
        yield of_image("warning", "air-not-at-minus-1000", case, what, remedy)
    ends = [("highest", high)] if high < LARGEST_CLIPPED_HU else []
    ends += [("lowest", low)] if low > AIR_HU[1] else []
    for name, end in ends:
        share = float(np.mean(sample == end))
        if share >= CLIPPED_SHARE:
            what = f"the intensities are cut off: {share:.1%} of the voxels have the {name} value, {end:g}"
            remedy = "use the scan before a window was applied; the preparation chooses a window of its own"
            yield of_image("warning", "clipped-intensities", case, what, remedy)


def _not_hounsfield(case: Case, sample: Array, data_set: DataSet) -> Iterator[Problem]:
    """Whether what is called no CT, or normalised, looks like a CT: a good part of it is air at -1000."""
    air = (sample >= AIR_HU[0]) & (sample <= AIR_HU[1])
    if float(air.mean()) >= AIR_SHARE and float(sample.max()) > TISSUE_HU:
        called = "normalised" if data_set.normalised else data_set.modality
        what = (
            f"this looks like a CT, but is called {called}: {air.mean():.0%} of the voxels have the HU of air"
        )
        yield of_image("warning", "looks-like-ct", case, what, "correct the modality, or use another scan")


def _air(sample: Array) -> float:
    """The darkest intensity that is no padding: 10 % of what is darker than -700 HU."""
    dark = sample[sample < ALMOST_AIR_HU]
    lowest = dark.min()
    inside = dark[dark > lowest] if lowest < AIR_HU[0] else dark
    return float(np.percentile(inside if inside.size else dark, 10))


def _sample(channel: Array) -> Array:
    x, y, z = (max(1, size // _SAMPLES_PER_AXIS) for size in channel.shape)
    return np.ascontiguousarray(channel[::x, ::y, ::z])
