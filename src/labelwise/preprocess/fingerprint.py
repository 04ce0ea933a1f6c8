"""What the training scans have in common, and the preprocessing plan that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy import ndimage

from labelwise.errors import DataError
from labelwise.preprocess.crop import Crop, body_mask, find_box
from labelwise.preprocess.intensity import PERCENTILES, Intensity, IntensityRule, is_mask
from labelwise.preprocess.pipeline import Plan, Undo
from labelwise.types import IGNORE, SPARSE_FROM, Array, Volume

NUM_QUANTILES = 1000
"""A scan is described by so many evenly spaced quantiles: the same in every run, equal weight per scan."""

_MOST_VALUES = 1_000_000  # quantiles of more voxels are not better
_ANISOTROPIC = 3  # one axis this much coarser than the others


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ScanStatistics:
    """The fingerprint of one scan."""

    intensity: Intensity
    shape: tuple[int, int, int]  # voxels along x, y, z
    spacing_mm: tuple[float, float, float]  # along x, y, z
    quantiles: tuple[float, ...] = ()  # of the voxels that count, see `scan_statistics`; ct only
    cropped: tuple[int, int, int] | None = None  # voxels that the crop of such scans leaves
    channels: int = 1
    # class index -> size along x, y, z in mm of the box around its voxels; annotated structures that are there
    structures_mm: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    # class index -> share of its voxels in its largest 26-connected component, and in the largest two
    largest_components: dict[int, tuple[float, float]] = field(default_factory=dict)
    known: float = (
        1.0  # share of the voxels that its labels speak of; less in every eighth slice, or in scribbles
    )

    @property
    def is_sparse(self) -> bool:
        """Whether a good part of the scan is left open by its labels."""
        return self.known <= 1 - SPARSE_FROM


def scan_statistics(image: Volume, intensity: Intensity, labels: Volume | None = None) -> ScanStatistics:
    """Measure one scan.

    The intensities of a CT are those of its annotated structures. A scan without any (unlabelled, or the structures
    are absent) is described by its whole body instead, so that it counts too.

    Shapes
        image       (M, X, Y, Z), CT in HU
        labels      (X, Y, Z) class indices; 0 and IGNORE are no structure

    Errors
        DataError   a CT without a body
    """
    quantiles = _quantiles(_values_that_count(image, labels)) if intensity == "ct" else ()
    box = find_box(image, _typical_crop({intensity}))
    measured = ScanStatistics(intensity, image.shape, image.spacing_mm, quantiles, box.shape, len(image.data))
    return measured if labels is None else replace(measured, **_of_labels(labels))


def _of_labels(labels: Volume) -> dict[str, Any]:
    """What the labels of a scan say about its structures."""
    structures = np.where(labels.data == IGNORE, 0, labels.data)
    boxes = {
        index: box for index, box in enumerate(ndimage.find_objects(structures), start=1) if box is not None
    }
    return {
        "structures_mm": {index: _size_mm(box, labels.spacing_mm) for index, box in boxes.items()},
        "largest_components": {
            index: _largest_components(structures[box] == index) for index, box in boxes.items()
        },
        "known": float((labels.data != IGNORE).mean()),
    }


def _size_mm(box: tuple[slice, ...], spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = (float((part.stop - part.start) * size) for part, size in zip(box, spacing_mm, strict=True))
    return x, y, z


def _largest_components(mask: Array) -> tuple[float, float]:
    components, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.sort(np.bincount(components[mask]))
    return float(sizes[-1] / mask.sum()), float(sizes[-2:].sum() / mask.sum())


def make_plan(
    statistics: Sequence[ScanStatistics],
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    shape: tuple[int | None, int | None, int | None] | None = None,
    crop: Crop | None = None,
) -> Plan:
    """The preprocessing plan of a project; what is given is taken, the rest follows from the training scans.

    spacing     the median voxel size; along an axis more than three times coarser than the others, the 10th
                percentile. Kept as it is where a `shape` is given.
    crop        body if all scans are CT, none if some are normalised already, else nonzero
    ct          clip to the 0.5 and 99.5 percentiles, mean and standard deviation: of the structures' voxels in
                scans that have annotated structures and of the body in all others, with equal weight per scan
    mr          by each scan's own numbers
    normalised  unchanged

    Source
        Isensee et al., Nature Methods 2021 (nnU-Net), extended to scans without annotation.
    """
    if not statistics:
        raise DataError("a preprocessing plan needs at least one training scan")
    intensities = {scan.intensity for scan in statistics}
    if spacing_mm is None and shape is None:
        spacing_mm = _typical_spacing(statistics)
    rules = {"mr": IntensityRule("mr"), "normalised": IntensityRule("none")}
    if "ct" in intensities:
        rules["ct"] = _ct_rule(statistics)
    return Plan(
        spacing_mm=spacing_mm,
        shape=shape,
        crop=crop or _typical_crop(intensities),
        intensity={name: rules[name] for name in sorted(intensities)},
    )


def _values_that_count(image: Volume, labels: Volume | None) -> Array:
    scans = [channel for channel in image.data if not is_mask(channel)]
    if scans and len(scans) < len(image.data):  # a mask beside a scan has no HU
        image = Volume(np.stack(scans), image.affine)
    if labels is not None:
        structures = (labels.data != 0) & (labels.data != IGNORE)
        if structures.any():
            return image.data[:, structures].ravel()
    mask, (x, y, z) = body_mask(image)
    return image.data[:, ::x, ::y, ::z][:, mask].ravel()


def _quantiles(values: Array) -> tuple[float, ...]:
    if values.size > _MOST_VALUES:
        values = values[np.linspace(0, values.size - 1, _MOST_VALUES).astype(np.int64)]
    positions = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    return tuple(float(value) for value in np.quantile(values, positions))


def _ct_rule(statistics: Sequence[ScanStatistics]) -> IntensityRule:
    values = np.concatenate([scan.quantiles for scan in statistics if scan.intensity == "ct"])
    low, high = (float(limit) for limit in np.percentile(values, PERCENTILES))
    clipped = values.clip(low, high)
    return IntensityRule("ct", (low, high), float(clipped.mean()), float(clipped.std()) or 1.0)


def _typical_spacing(statistics: Sequence[ScanStatistics]) -> tuple[float, float, float]:
    spacings = np.array([scan.spacing_mm for scan in statistics])
    typical = np.median(spacings, axis=0)
    coarsest = int(typical.argmax())
    others = float(np.delete(typical, coarsest).max())
    if typical[coarsest] > _ANISOTROPIC * others:
        # Fewer scans are blurred along the slices; never finer than the plane.
        typical[coarsest] = max(float(np.percentile(spacings[:, coarsest], 10)), others)
    # Rounded, because float32 headers carry noise in the seventh digit.
    x, y, z = (round(float(size), 6) for size in typical)
    return x, y, z


def _typical_crop(intensities: set[Intensity]) -> Crop:
    if "normalised" in intensities:
        return "none"
    return "body" if intensities == {"ct"} else "nonzero"


def scan_ranges(scans: Sequence[Undo]) -> dict[str, dict[str, list[float]]]:
    """Smallest and largest voxel size and extent along x, y, z in mm: what a model has seen."""
    spacings = np.array([np.linalg.norm(np.array(scan.affine)[:3, :3], axis=0) for scan in scans])
    extents = spacings * [scan.shape for scan in scans]
    return {
        name: {"low": values.min(axis=0).round(4).tolist(), "high": values.max(axis=0).round(4).tolist()}
        for name, values in (("spacing_mm", spacings), ("extent_mm", extents))
    }
