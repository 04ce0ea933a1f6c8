"""A seeded generator of synthetic abdominal CT: a cohort for demonstrations and tests, without a download.

A patient is painted, not simulated: simple bodies at the positions of an average patient (see `phantom`).
Patients differ because those positions are turned, scaled and smoothly bent, and because every structure varies by
itself. The tissues' HU depend on the contrast phase; the scanner adds texture, blur and correlated noise:

    voxel --pose, bending--> atlas position (mm) --painting--> tissue --phase--> HU --scanner--> image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy import ndimage
from scipy.spatial.transform import Rotation

from labelwise.cohort.manifest import DataSet, Manifest, write_manifest
from labelwise.engine import run_jobs
from labelwise.errors import ConfigError, did_you_mean
from labelwise.formats import write_image, write_labels
from labelwise.synthetic.phantom import CLASS_OF_TISSUE, LABEL_SPACE, TISSUES, Floats, Painter, paint_patient
from labelwise.types import BACKGROUND, Array, Case, Volume

UNLABELLED, REFERENCE = "unlabelled", "reference"
RESERVED = (UNLABELLED, REFERENCE, "validation", "test")
FIELD_OF_VIEW_MM = (340.0, 240.0)  # of the average patient: width, and height along the body

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=16)]


@plain_dataclass(frozen=True)
class Scanner:
    """What differs between the sites of a cohort."""

    slice_factor: float = 1.0  # slice distance, relative to the one that `SyntheticConfig.shape` asks for
    noise_hu: float = 10.0  # standard deviation
    blur_mm: float = 3.0  # standard deviation of the point spread
    gain: float = 1.0  # calibration: multiplies HU + 1000
    phase: float = 1.0  # mean time of imaging: 0 arterial, 1 portal-venous, 2 late


def _one_structure_per_site() -> Mapping[str, tuple[str, ...]]:
    return {
        f"site_{letter}": (structure,)
        for letter, structure in zip("abcd", LABEL_SPACE.structures, strict=True)
    }


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SyntheticConfig:
    """What a cohort consists of, and how much its patients differ."""

    sites: Mapping[str, tuple[str, ...]] = Field(  # training site -> structures annotated there
        default_factory=_one_structure_per_site
    )
    cases_per_site: Count = 4
    unlabelled: Count = 16  # training scans without a label file
    validation: Count = 4  # completely annotated
    test: Count = 8  # completely annotated
    full: bool = False  # annotate every training scan completely: the same images, as the upper limit
    shape: tuple[Size, Size, Size] = (64, 52, 40)  # voxels; the number of slices is a mean
    variation: float = Field(default=1.0, ge=0)  # of anatomy and contrast; 0 makes everybody average
    scanner_variation: float = Field(default=1.0, ge=0)  # between the sites
    seed: int = Field(default=0, ge=0)

    def __post_init__(self) -> None:
        for site, structures in self.sites.items():
            if site in RESERVED or not site.replace("_", "").replace("-", "").isalnum():
                raise ConfigError(
                    f"'{site}' cannot be the name of a site",
                    expected=f"letters, digits, _ and -, but none of {', '.join(RESERVED)}",
                )
            if not structures:
                raise ConfigError(
                    f"site '{site}' annotates no structure", do="use `unlabelled` for such scans"
                )
            for structure in structures:
                if structure not in LABEL_SPACE.structures:
                    raise ConfigError(
                        f"site '{site}': unknown structure '{structure}'"
                        f"{did_you_mean(structure, LABEL_SPACE.structures)}",
                        expected=", ".join(LABEL_SPACE.structures),
                    )


def make_cohort(
    folder: Path | str, config: SyntheticConfig | None = None, *, workers: int | None = 1
) -> Manifest:
    """Write a cohort of synthetic CT as NIfTI files with a manifest, and return the manifest.

    Every training site annotates its own structures only, as values 1, 2, ... of its label files. The validation
    and test scans (data set "reference") are annotated completely. The scans of data set "unlabelled" have no label
    file. Unlabelled and reference scans come from the scanners of all sites in turn. A scan depends on nothing
    but the seed, its id and its scanner: cohorts of different sizes share scans, and so do those with and
    without `full`. `workers` is the number of processes.

    Errors
        DataError       the cohort would be empty
        ResourceError   the folder cannot be written
    """
    folder, config = Path(folder).absolute(), config or SyntheticConfig()
    scans = _scans(folder, config)
    for outcome in run_jobs(partial(_write_scan, config), scans, workers=workers):
        if outcome.error:
            raise outcome.error
    manifest = Manifest(LABEL_SPACE, _data_sets(config), tuple(scan.case for scan in scans))
    write_manifest(manifest, folder)
    return manifest


def make_scan(
    seed: int | Sequence[int], config: SyntheticConfig | None = None, scanner: Scanner | None = None
) -> tuple[Volume, Volume]:
    """Make one scan and its complete segmentation. Equal arguments give equal voxels.

    The anatomy does not depend on `shape`: another shape gives the same patient with other voxels. The field of
    view is as wide as the patient needs, voxels are square in plane, and the number of slices varies.

    Shapes
        image     (1, X, Y, Z)  int16, HU
        labels    (X, Y, Z)     uint8, class indices of `LABEL_SPACE`
    """
    config, scanner = config or SyntheticConfig(), scanner or Scanner()
    random = np.random.default_rng(seed)
    subcutaneous_mm = 17.0 * float(np.exp(0.35 * config.variation * random.standard_normal()))
    axes_mm, affine = _grid(random, config, scanner, subcutaneous_mm)
    painter = Painter(_atlas_positions(axes_mm, random, config.variation), random, config.variation)
    paint_patient(painter, subcutaneous_mm)
    image = _acquire(painter.tissue, affine, random, config, scanner)
    return Volume(image[None], affine), Volume(CLASS_OF_TISSUE[painter.tissue], affine)


def scanner_of(site: str, config: SyntheticConfig) -> Scanner:
    """The scanner of a site: the same one in every cohort with this seed."""
    draw = config.scanner_variation * np.random.default_rng([config.seed, *site.encode()]).standard_normal(5)
    usual = Scanner()
    return Scanner(
        slice_factor=usual.slice_factor * float(np.exp(0.10 * draw[0])),
        noise_hu=usual.noise_hu * float(np.exp(0.35 * draw[1])),
        blur_mm=usual.blur_mm * float(np.exp(0.20 * draw[2])),
        gain=usual.gain + 0.012 * float(draw[3]),
        phase=usual.phase + 0.5 * float(draw[4]),
    )


# ---------------------------------------------------------------------------------------------- the cohort


class _Scan(NamedTuple):
    case: Case
    scanner: Scanner
    structures: tuple[str, ...]  # in the order of their values in the label file


def _scans(folder: Path, config: SyntheticConfig) -> list[_Scan]:
    scanners = {site: scanner_of(site, config) for site in config.sites} or {UNLABELLED: Scanner()}
    in_turn = list(scanners.values())

    def scan(data_set: str, number: int, split: str, scanner: Scanner, structures: tuple[str, ...]) -> _Scan:
        name = f"{data_set if data_set != REFERENCE else split}_{number:03d}"
        case = Case(
            name,
            images=(folder / "images" / f"{name}.nii.gz",),
            labels=folder / "labels" / f"{name}.nii.gz" if structures else None,
            annotated=frozenset(structures),
            data_set=data_set,
            split=split,
        )
        return _Scan(case, scanner, structures)

    everything = LABEL_SPACE.structures
    groups = [
        *((site, "train", config.cases_per_site, structures) for site, structures in config.sites.items()),
        (UNLABELLED, "train", config.unlabelled, ()),
        (REFERENCE, "validation", config.validation, everything),
        (REFERENCE, "test", config.test, everything),
    ]
    return [
        scan(
            data_set,
            number,
            split,
            scanners.get(data_set, in_turn[number % len(in_turn)]),
            everything if config.full else structures,
        )
        for data_set, split, count, structures in groups
        for number in range(count)
    ]


def _write_scan(config: SyntheticConfig, scan: _Scan) -> None:
    case = scan.case
    image, labels = make_scan([config.seed, *case.id.encode()], config, scan.scanner)
    write_image(case.images[0], image)
    if case.labels is None:
        return
    value_of_class = np.zeros(LABEL_SPACE.num_classes, np.uint8)
    value_of_class[[LABEL_SPACE.index(structure) for structure in scan.structures]] = np.arange(
        1, len(scan.structures) + 1
    )
    named = Volume(value_of_class[labels.data], labels.affine)
    write_labels(case.labels, named, like=case.images[0], names=(BACKGROUND, *scan.structures))


def _data_sets(config: SyntheticConfig) -> dict[str, DataSet]:
    everything = LABEL_SPACE.structures
    structures_of = {**config.sites, UNLABELLED: everything, REFERENCE: everything}
    return {
        name: DataSet(
            name, dict(enumerate((BACKGROUND, *(everything if config.full else structures)))), modality="ct"
        )
        for name, structures in structures_of.items()
    }


# ---------------------------------------------------------------------------------------------- one scan


def _grid(
    random: np.random.Generator, config: SyntheticConfig, scanner: Scanner, subcutaneous_mm: float
) -> tuple[list[Floats], NDArray[np.float64]]:
    """Positions of the voxels along each axis, the isocentre being 0, and the affine of the scan."""
    width_mm, height_mm = FIELD_OF_VIEW_MM
    # The field of view is chosen to fit the patient, within limits.
    width_mm += 2 * (subcutaneous_mm - 17) + 14 * config.variation * float(random.standard_normal())
    in_plane_mm = width_mm / config.shape[0]
    slice_mm = height_mm / config.shape[2] * scanner.slice_factor
    height_mm *= float(np.exp(0.05 * config.variation * random.standard_normal()))
    shape = (*config.shape[:2], max(round(height_mm / slice_mm), 1))
    spacing_mm = np.array((in_plane_mm, in_plane_mm, slice_mm))
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * (np.array(shape) - 1) / 2
    axes_mm = [
        (origin + step * np.arange(size)).astype(np.float32)
        for origin, step, size in zip(affine[:3, 3], spacing_mm, shape, strict=True)
    ]
    return axes_mm, affine


def _atlas_positions(axes_mm: list[Floats], random: np.random.Generator, variation: float) -> Floats:
    """(3, X, Y, Z) position of every voxel in the average patient, in mm: turned, scaled, shifted and bent."""
    turn = Rotation.from_rotvec(variation * random.normal(0, (3, 3, 4)), degrees=True).as_matrix()
    scale = np.exp(variation * random.normal(0, (0.05, 0.05, 0.06)))
    shift = variation * random.normal(0, (7, 6, 12))
    matrix = turn * scale
    atlas = 6 * variation * _smooth_field(axes_mm, 110.0, random)
    atlas += 3 * variation * _smooth_field(axes_mm, 42.0, random)
    along_x, along_y, along_z = np.ix_(*axes_mm)
    for row, (a, b, c) in enumerate(matrix.astype(np.float32)):
        atlas[row] += a * along_x + b * along_y + (c * along_z + np.float32(shift[row]))
    return atlas


def _smooth_field(axes_mm: list[Floats], wavelength_mm: float, random: np.random.Generator) -> Floats:
    """(3, X, Y, Z) independent smooth random fields with variance 1, the same ones at every resolution.

    Sums of Gaussian bumps on a lattice that covers 480 mm whatever the field of view.
    """
    knots = np.arange(-240, 241, wavelength_mm)
    bases = [np.exp(-0.5 * ((axis[:, None] - knots) / (0.6 * wavelength_mm)) ** 2) for axis in axes_mm]
    bases = [(basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32) for basis in bases]
    heights = random.standard_normal((3, *[len(knots)] * 3)).astype(np.float32)
    field: Floats = np.einsum("cijk,xi,yj,zk->cxyz", heights, *bases, optimize=True)
    return field


def _acquire(
    tissue: Array,
    affine: NDArray[np.float64],
    random: np.random.Generator,
    config: SyntheticConfig,
    scanner: Scanner,
) -> NDArray[np.int16]:
    """(X, Y, Z) HU of a tissue map: contrast, texture, point spread, noise, calibration."""
    rows = list(TISSUES.values())
    phase = np.clip(scanner.phase + 0.35 * config.variation * random.standard_normal(), 0, 2)
    curves = np.array([row.hu for row in rows])
    early = int(min(phase, 1))
    mean_hu = curves[:, early] + (phase - early) * (curves[:, early + 1] - curves[:, early])
    mean_hu += config.variation * random.standard_normal(len(rows)) * [row.between_patients for row in rows]
    deviation = np.array([row.texture for row in rows], np.float32)
    spacing_mm = np.diagonal(affine)[:3]
    hu = mean_hu.astype(np.float32)[tissue]
    hu += deviation[tissue] * _grain(tissue.shape, 5.0 / spacing_mm, random)
    hu = ndimage.gaussian_filter(hu, scanner.blur_mm / spacing_mm)
    hu += scanner.noise_hu * _grain(tissue.shape, 3.0 / spacing_mm, random)
    scanned: NDArray[np.int16] = np.clip((hu + 1000) * scanner.gain - 1000, -1000, 3071).astype(np.int16)
    return scanned


def _grain(shape: tuple[int, ...], correlation: Floats, random: np.random.Generator) -> Floats:
    """Noise with variance 1, correlated over some voxels (standard deviation per axis)."""
    noise = ndimage.gaussian_filter(random.standard_normal(shape, np.float32), correlation, mode="wrap")
    grain: Floats = noise / noise.std()
    return grain
