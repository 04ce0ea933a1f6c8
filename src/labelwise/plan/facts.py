"""What a plan follows from: the training scans, their labels, and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from labelwise.preprocess.fingerprint import ScanStatistics
from labelwise.preprocess.resample import shape_at_spacing
from labelwise.types import Case, LabelSpace

Triple = tuple[float, float, float]
Sizes = tuple[int, int, int]

LONGER = 0.05  # logarithm of the ratio of two sides: else the plane is a square
CONNECTED = 0.99  # share of a structure's voxels in its largest components; the rest are slips of the pen
CONNECTED_SCANS = 3  # that must show it: fewer are no evidence


@dataclass(frozen=True)
class Hardware:
    """The device that trains, and the processor beside it."""

    kind: Literal["cpu", "cuda", "mps"]
    memory_bytes: int  # of the device
    cpus: int


@dataclass(frozen=True)
class Facts:
    """The fingerprint of a training set, at one spacing."""

    intensities: tuple[str, ...]
    channels: int
    structures: tuple[str, ...]
    cases: int
    labelled: int  # something is annotated
    complete: int  # everything is, all over the scan
    shape: Sizes  # voxels of the typical (median) scan after cropping
    largest: Sizes  # of the largest one along each axis
    spacing_mm: Triple  # of these voxels
    structures_mm: Mapping[str, Triple]  # median size along x, y, z of the structures that have voxels
    turned: float = 0.0  # share of the scans whose longer side in the plane is not that of most scans
    # structures of one component, or two, in all scans that show and annotate them
    components: Mapping[str, int] = field(default_factory=dict)
    lacking: int = 0  # cases without one of their channels

    @property
    def unlabelled(self) -> int:
        """Cases in which something, or everything, is not annotated."""
        return self.cases - self.complete

    def at_spacing(self, spacing_mm: Triple) -> Facts:
        """The same scans with voxels of another size."""
        return replace(
            self,
            shape=shape_at_spacing(self.shape, self.spacing_mm, spacing_mm),
            largest=shape_at_spacing(self.largest, self.spacing_mm, spacing_mm),
            spacing_mm=spacing_mm,
        )


def gather(
    statistics: Sequence[ScanStatistics],
    cases: Sequence[Case],
    label_space: LabelSpace,
    *,
    spacing_mm: Triple | None,
    shape: tuple[int | None, int | None, int | None] | None,
) -> Facts:
    """The facts of a training set whose scans are prepared to a spacing, or to a number of voxels per axis."""
    sizes = np.array([scan.cropped or scan.shape for scan in statistics], float)
    spacings = np.array([scan.spacing_mm for scan in statistics])
    prepared = np.maximum(np.rint(sizes * spacings / spacing_mm), 1) if spacing_mm else sizes.copy()
    for axis, fixed in enumerate(shape or ()):
        if fixed:
            prepared[:, axis] = fixed
    typical_mm = np.median(sizes * spacings / prepared, axis=0)
    sides = np.array([scan.shape for scan in statistics], float) * spacings
    longer = np.where(np.abs(np.log(sides[:, 0] / sides[:, 1])) > LONGER, sides[:, 0] - sides[:, 1], 0)
    boxes: dict[int, list[Triple]] = {}
    shares: dict[int, list[tuple[float, float]]] = {}
    for scan in statistics:
        for index, size_mm in scan.structures_mm.items():
            boxes.setdefault(int(index), []).append(size_mm)
        if not scan.is_sparse:  # labels in some slices only are never connected
            for index, found in scan.largest_components.items():
                shares.setdefault(int(index), []).append(found)
    structures = frozenset(label_space.structures)
    sparse = sum(scan.is_sparse for scan in statistics)  # annotated, but in parts of the scan only
    return Facts(
        intensities=tuple(sorted({scan.intensity for scan in statistics})),
        channels=statistics[0].channels,
        structures=label_space.structures,
        cases=len(cases),
        labelled=sum(bool(case.annotated) for case in cases),
        complete=max(0, sum(structures <= case.annotated for case in cases) - sparse),
        shape=_whole(np.median(prepared, axis=0)),
        largest=_whole(prepared.max(axis=0)),
        spacing_mm=_triple(typical_mm),
        structures_mm={
            label_space.names[index]: _triple(np.median(np.array(sizes_mm), axis=0))
            for index, sizes_mm in sorted(boxes.items())
        },
        turned=float(min((longer > 0).mean(), (longer < 0).mean())),
        components={
            label_space.names[index]: count
            for index, of_scans in sorted(shares.items())
            if len(of_scans) >= CONNECTED_SCANS and (count := _components(of_scans))
        },
        lacking=sum(bool(case.missing) for case in cases),
    )


def _components(shares: Sequence[tuple[float, float]]) -> int:
    """1 or 2 components that hold the structure in every scan; 0 if some scan has more."""
    in_one, in_two = np.min(shares, axis=0) >= CONNECTED
    return 1 if in_one else 2 if in_two else 0


def _triple(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Triple:
    x, y, z = (round(float(value), 6) for value in values)
    return x, y, z


def _whole(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Sizes:
    x, y, z = (max(1, round(float(value))) for value in values)
    return x, y, z
