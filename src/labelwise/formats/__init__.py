"""Files to volumes and back: RAS+ axes and mm on the inside, the file's own axes and header on the outside.

A format is one module with `read` and `read_geometry` that give the voxels *as stored*; turning them to RAS+
and judging their values is done here, once for all formats. Label maps are always written as NIfTI.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from labelwise.errors import ConfigError, DataError
from labelwise.formats import h5, nifti
from labelwise.formats.geometry import Geometry, orientation_of
from labelwise.formats.h5 import Layout
from labelwise.types import Array, Volume

__all__ = [
    "SUFFIXES",
    "Geometry",
    "Layout",
    "files_of",
    "read_geometry",
    "read_image",
    "read_labels",
    "stem",
    "suffix",
    "write_image",
    "write_labels",
]

_NIFTI = (".nii.gz", ".nii")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
_H5 = (".h5", ".hdf5")
SUFFIXES: tuple[str, ...] = (*_NIFTI, *_ITK, *_H5)
"""File name endings that can be read; the longest comes first where one ends like another."""

_PLAIN = Layout()
_PLANES = 8
_INTEGRAL_WITHIN = 1e-3  # a scaled or float32 label map may miss its integers by rounding


def suffix(path: Path | str) -> str:
    """The known suffix of a file name in lower case, or an empty string."""
    name = Path(path).name.lower()
    return next((known for known in SUFFIXES if name.endswith(known)), "")


def stem(path: Path | str) -> str:
    """The file name without its known suffix: ``scans/liver_001.nii.gz`` -> ``liver_001``."""
    name = Path(path).name
    return name[: len(name) - len(suffix(path))]


def files_of(path: Path) -> list[Path]:
    """All files that make up a scan: the file itself, and those in which a .nhdr or .mhd keeps its voxels."""
    return [path, *_itk().data_files(path)] if suffix(path) in _ITK else [path]


def read_geometry(path: Path, layout: Layout = _PLAIN) -> Geometry:
    """Shape and affine of a file in RAS+ order, from its header only.

    Errors
        DataError   no such file, unknown format, damaged header, several frames, singular affine
    """
    stored = _stored_geometry(path, layout)
    return orientation_of(stored.affine).geometry_to_ras(stored)


def read_image(paths: Sequence[Path], layout: Layout = _PLAIN) -> Volume:
    """Read the image of one case, one file per modality, all on one grid.

    Shapes
        returns     (M, X, Y, Z)  float32, RAS+; M = number of files

    Errors
        DataError   unreadable or damaged file, several frames, singular affine, NaN or infinite voxels,
                    files of one case on different grids
    """
    first, *others = [_read_channel(Path(path), layout) for path in paths]
    for path, (_, geometry) in zip(paths[1:], others, strict=True):
        if not first[1].matches(geometry):
            raise DataError(
                "the images of one case lie on different grids",
                file=f"{paths[0]} and {path}",
                found=f"{first[1]}; {geometry}",
                expected="one shape and one affine",
                do="resample the images of a case to one grid, or register them first",
            )
    if not others:
        return Volume(first[0][None], first[1].affine)
    return Volume(np.stack([first[0], *(channel for channel, _ in others)]), first[1].affine)


def read_labels(path: Path, layout: Layout = _PLAIN) -> Volume:
    """Read a label map with the values of the file; their meaning is the business of the manifest.

    Shapes
        returns     (X, Y, Z)  integer of the file's type (int32 for floating-point files), RAS+

    Errors
        DataError   as `read_image`, and values that are not whole numbers
    """
    stored, geometry = _read(Path(path), layout, layout.label_key)
    if stored.dtype.kind == "f":
        stored = _as_integers(path, stored)
    elif stored.dtype.kind == "b":
        stored = stored.view(np.uint8)
    orientation = orientation_of(geometry.affine)
    labels = _in_order(orientation.to_ras(stored), stored.dtype.newbyteorder("="))
    return Volume(labels, orientation.geometry_to_ras(geometry).affine)


def write_labels(
    path: Path, labels: Volume, like: Path | None = None, layout: Layout = _PLAIN, names: Sequence[str] = ()
) -> None:
    """Write a label map as NIfTI, uint8, or uint16 if a value is above 255.

    Parameters
        path     ends in .nii.gz or .nii
        labels   (X, Y, Z) integers, RAS+
        like     the image that the labels belong to: its axis order and affine are restored, and those of
                 a NIfTI file with its qform, sform and codes; None writes the RAS+ grid of `labels`
        layout   how `like` is stored, if it is .h5
        names    class names by label value; kept as JSON in a header extension

    Errors
        DataError       `labels` does not lie on the grid of `like`, or has values outside 0..65535
        ResourceError   the file cannot be written
    """
    _check_target(path)
    voxels = _as_smallest_unsigned(path, labels.data)
    if like is None:
        nifti.write(path, voxels, labels.affine, names=names)
        return
    stored = _stored_geometry(Path(like), layout)
    orientation = orientation_of(stored.affine)
    expected, found = orientation.geometry_to_ras(stored), Geometry(labels.shape, labels.affine)
    if not expected.matches(found):
        raise DataError(
            "the labels do not lie on the grid of the image", file=like, found=found, expected=expected
        )
    header_source = Path(like) if suffix(like) in _NIFTI else None
    nifti.write(path, orientation.from_ras(voxels), stored.affine, like=header_source, names=names)


def write_image(path: Path, image: Volume) -> None:
    """Write a (1, X, Y, Z) image as NIfTI on its RAS+ grid; 8 and 16 bit integers as such, else float32."""
    _check_target(path)
    if image.data.ndim != 4 or len(image.data) != 1:
        raise DataError(
            "a file holds one channel", file=path, found=f"shape {image.data.shape}", expected="(1, X, Y, Z)"
        )
    voxels = image.data[0]
    keep = voxels.dtype.kind in "iu" and voxels.itemsize <= 2
    nifti.write(path, voxels if keep else voxels.astype(np.float32, copy=False), image.affine)


def _read_channel(path: Path, layout: Layout) -> tuple[Array, Geometry]:
    """One file as float32 (X, Y, Z) in RAS+ order."""
    stored, geometry = _read(path, layout, layout.image_key)
    orientation = orientation_of(geometry.affine)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        voxels = _in_order(orientation.to_ras(stored), np.dtype(np.float32))
    _check_finite(path, voxels)
    return voxels, orientation.geometry_to_ras(geometry)


def _read(path: Path, layout: Layout, key: str) -> tuple[Array, Geometry]:
    kind = _checked_suffix(path)
    if kind in _H5:
        return h5.read(path, layout, key)
    if kind in _NIFTI:
        return nifti.read(path)
    found: tuple[Array, Geometry] = _itk().read(path)
    return found


def _stored_geometry(path: Path, layout: Layout) -> Geometry:
    kind = _checked_suffix(path)
    if kind in _H5:
        return h5.read_geometry(path, layout)
    if kind in _NIFTI:
        return nifti.read_geometry(path)
    found: Geometry = _itk().read_geometry(path)
    return found


def _itk() -> ModuleType:
    # SimpleITK takes half a second to import: only for those who need it.
    return importlib.import_module("labelwise.formats.nrrd")


def _in_order(voxels: Array, dtype: np.dtype[Any]) -> Array:
    """The voxels in C order, as they are if they already are."""
    if voxels.flags.c_contiguous and voxels.dtype == dtype:
        return voxels
    ordered = np.empty(voxels.shape, dtype)
    # Files run x first, arrays z first. Few planes at a time stay in the cache: 3 times as fast as one copy.
    for start in range(0, voxels.shape[2], _PLANES):
        ordered[..., start : start + _PLANES] = voxels[..., start : start + _PLANES]
    return ordered


def _checked_suffix(path: Path) -> str:
    kind = suffix(path)
    if not kind:
        raise DataError(
            "unknown file format",
            file=path,
            expected=" ".join(SUFFIXES),
            do="convert the scan to NIfTI (DICOM series: with dcm2niix)",
        )
    if not Path(path).is_file():
        raise DataError("there is no such file", file=path, do="correct its path")
    return kind


def _check_target(path: Path) -> None:
    if suffix(path) not in _NIFTI:
        raise ConfigError(
            "only NIfTI files are written", file=path, expected="a name ending in .nii.gz or .nii"
        )


def _check_finite(path: Path, voxels: Array) -> None:
    if bool(np.isfinite(voxels.min()) and np.isfinite(voxels.max())):  # NaN wins both
        return
    num_nan, num_infinite = np.isnan(voxels).sum(), np.isinf(voxels).sum()
    raise DataError(
        "the file holds voxels that are not numbers",
        file=path,
        found=f"{num_nan:,} NaN and {num_infinite:,} infinite of {voxels.size:,} voxels",
        do="replace them by the background intensity and write the file again",
    )


def _as_integers(path: Path, values: Array) -> Array:
    """Floating-point labels as int32, if every one is a whole number."""
    _check_finite(path, values)
    whole = np.rint(values)
    wrong = (np.abs(values - whole) > _INTEGRAL_WITHIN) | (np.abs(whole) >= np.iinfo(np.int32).max)
    if wrong.any():
        examples = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:5])
        raise DataError(
            "the label map holds values that are not whole numbers",
            file=path,
            found=f"{wrong.sum():,} of {wrong.size:,} voxels, such as {examples}",
            expected="one integer per class",
            do="repeat the resampling of this label map with nearest-neighbour interpolation",
        )
    return whole.astype(np.int32)


def _as_smallest_unsigned(path: Path, labels: Array) -> Array:
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    low, high = int(labels.min()), int(labels.max())
    if labels.dtype.kind not in "iu" or low < 0 or high > np.iinfo(np.uint16).max:
        raise DataError(
            "the label map cannot be written",
            file=path,
            found=f"{labels.dtype}, {low}..{high}",
            expected="0..65535",
        )
    return labels.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16, copy=False)
