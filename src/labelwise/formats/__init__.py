"""Files to volumes and back: RAS+ axes and mm on the inside, the file's own axes and header on the outside.

A format is one module with `read` and `read_geometry` that give the voxels *as stored*, and `stored` chooses among
them; turning them to RAS+ and judging their values is done here, once for all formats.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from labelwise.errors import ConfigError, DataError
from labelwise.formats import nifti, stored
from labelwise.formats.geometry import Geometry, orientation_of
from labelwise.formats.layout import Layout
from labelwise.formats.naming import case_of, record_of, value_names
from labelwise.formats.segments import Tally
from labelwise.formats.stored import SUFFIXES, files_of, hash_file, is_dicom, stem, suffix
from labelwise.types import Array, Volume

__all__ = [
    "LABEL_FORMATS",
    "SUFFIXES",
    "Geometry",
    "Layout",
    "Tally",
    "case_of",
    "files_of",
    "hash_file",
    "is_dicom",
    "placed_on",
    "read_geometry",
    "read_image",
    "read_labels",
    "record_of",
    "segment_names",
    "stem",
    "suffix",
    "value_names",
    "write_image",
    "write_labels",
]

LABEL_FORMATS = {
    "nifti": ".nii.gz",
    "nrrd": ".seg.nrrd",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}
"""In which label maps are written -> how the names of their files end."""

_PLAIN = Layout()
_DICOM = {"dicom-seg": "dicom.seg", "rtstruct": "dicom.rtstruct"}  # label format -> module
_PLANES = 8
_MOST_BETWEEN = 100_000  # values between integers that interpolation leaves; more are intensities
_INTEGRAL_WITHIN = 1e-3  # a scaled or float32 label map may miss its integers by rounding


def read_geometry(path: Path, layout: Layout = _PLAIN) -> Geometry:
    """Shape and affine of a file in RAS+ order, from its header only.

    Errors
        DataError   no such file, unknown format, damaged header, several frames, singular affine
    """
    geometry = stored.geometry(Path(path), layout)
    return orientation_of(geometry.affine).geometry_to_ras(geometry)


def read_image(paths: Sequence[Path], layout: Layout = _PLAIN) -> Volume:
    """Read the image of one case, one file per modality, all on one grid.

    Shapes
        returns     (M, X, Y, Z)  float32, RAS+; M = number of files, or of channels where files hold several

    Errors
        DataError   unreadable or damaged file, several frames, singular affine, NaN or infinite voxels,
                    files of one case on different grids
    """
    first, *others = [_read_channels(Path(path), layout) for path in paths]
    for path, (_, geometry) in zip(paths[1:], others, strict=True):
        if not first[1].matches(geometry):
            raise DataError(
                "the images of one case lie on different grids",
                file=f"{paths[0]} and {path}",
                found=f"{first[1]}; {geometry}",
                expected="one shape and one affine",
                do="resample the images of a case to one grid, or register them first",
                code="grids-differ",
            )
    if not others:
        return Volume(first[0], first[1].affine)
    return Volume(np.concatenate([first[0], *(channels for channels, _ in others)]), first[1].affine)


def read_labels(
    path: Path, layout: Layout = _PLAIN, like: Path | None = None, tally: Tally | None = None
) -> Volume:
    """Read a label map with the values of the file; their meaning is the business of the manifest.

    Parameters
        like     the image of the case, for layouts and formats that take the grid from it
        tally    gets what was read of labels that are known by names: what was drawn, what overlaps, what is lost

    Shapes
        returns     (X, Y, Z)  integer of the file's type (int32 for floating-point files), RAS+

    Errors
        DataError   as `read_image`, and values that are not whole numbers
    """
    voxels, geometry = stored.labels(Path(path), layout, like, tally)
    if voxels.dtype.kind == "f":
        voxels = _as_integers(path, voxels)
    elif voxels.dtype.kind == "b":
        voxels = voxels.view(np.uint8)
    orientation = orientation_of(geometry.affine)
    labels = _in_order(orientation.to_ras(voxels), voxels.dtype.newbyteorder("="))
    return Volume(labels, orientation.geometry_to_ras(geometry).affine)


def placed_on(labels: Volume, grid: Geometry) -> Volume:
    """Labels (X, Y, Z) on a larger grid, if theirs is a part of it by whole voxels; else as they are.

    What lies outside is background: programs cut label maps to what is drawn.
    """
    own = Geometry(labels.shape, labels.affine)
    place = None if grid.matches(own) else grid.place_of(own)
    if place is None:
        return labels
    whole = np.zeros(grid.shape, labels.data.dtype)
    whole[place] = labels.data
    return Volume(whole, grid.affine)


def segment_names(path: Path) -> tuple[str, ...]:
    """The names of a file or folder that knows its labels by names, in its order: the `segments` of a layout.

    Of a folder of masks, a DICOM-SEG, an RTSTRUCT, or a .seg.nrrd; empty for files that know labels by values.
    """
    return stored.names(Path(path))


def write_labels(
    path: Path,
    labels: Volume,
    like: Path | None = None,
    layout: Layout = _PLAIN,
    names: Sequence[str] = (),
    *,
    label_format: str | None = None,
    binary: bool = False,
    regions: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write a label map in one of LABEL_FORMATS.

    NIfTI and NRRD are uint8, or uint16 if a value is above 255. DICOM names every class, needs `like`, and takes
    patient, study and references from it.

    Parameters
        path     ends in .nii.gz or .nii, .nrrd, .rtstruct.dcm, or .dcm (DICOM-SEG); DICOM may end otherwise if
                 `label_format` says so
        labels   (X, Y, Z) integers, RAS+
        like     the image that the labels belong to: its axis order and affine are restored, and those of
                 a NIfTI file with its qform, sform and codes; None writes the RAS+ grid of `labels`
        layout   how `like` is stored, if it is .h5
        names    class names by label value; empty ones are no classes. NIfTI keeps them as JSON in a header extension
        label_format    a key of LABEL_FORMATS; default: by the end of the name
        binary   DICOM-SEG of the type BINARY instead of LABELMAP
        regions  name -> the values that lie in it: DICOM-SEG, as BINARY, holds them as segments that overlap the others

    Errors
        ConfigError     DICOM without a series as `like` or without names; `binary` or `regions` of another format
        DataError       `labels` does not lie on the grid of `like`, has values outside 0..65535, or, in a format
                        that names its labels, values without a name
        ResourceError   the file cannot be written, or the extra `dicom` is not installed
    """
    kind = _label_format(Path(path), label_format)
    if binary and kind != "dicom-seg":
        raise ConfigError("binary is a type of DICOM-SEG", file=path, found=kind, expected="dicom-seg")
    if regions and kind != "dicom-seg":
        raise ConfigError(
            "only DICOM-SEG holds regions beside their classes",
            file=path,
            found=kind,
            expected="dicom-seg",
            do="write DICOM-SEG, or leave the regions out",
        )
    voxels = _as_smallest_unsigned(path, labels.data)
    if like is None:
        if kind in _DICOM:
            raise ConfigError("DICOM labels need the series that they belong to", file=path)
        grid = Geometry(labels.shape, labels.affine)
    else:
        grid = _grid_of(Path(like), layout, labels, "labels")
        voxels = orientation_of(grid.affine).from_ras(voxels)
    if kind in _DICOM:
        assert like is not None
        options: dict[str, Any] = {"binary": binary, "regions": regions} if kind == "dicom-seg" else {}
        _writer(_DICOM[kind]).write(path, voxels, grid, Path(like), names, **options)
    elif kind == "nrrd":
        _writer("slicer").write(path, voxels, grid.affine, names)
    else:
        header_source = Path(like) if like is not None and suffix(like) in stored.NIFTI else None
        flat = like is not None and stored.is_flat(Path(like))
        nifti.write(path, voxels, grid.affine, like=header_source, names=names, flat=flat)


def write_image(path: Path, image: Volume, like: Path | None = None, layout: Layout = _PLAIN) -> None:
    """Write a (1, X, Y, Z) image as NIfTI; 8 and 16 bit integers as such, else float32.

    Parameters
        like     an image on the same grid: its axis order is restored; None writes the RAS+ grid of `image`
        layout   how `like` is stored

    Errors
        DataError       several channels; `image` does not lie on the grid of `like`
        ResourceError   the file cannot be written
    """
    _check_target(path)
    if image.data.ndim != 4 or len(image.data) != 1:
        raise DataError(
            "a file holds one channel", file=path, found=f"shape {image.data.shape}", expected="(1, X, Y, Z)"
        )
    voxels = image.data[0]
    keep = voxels.dtype.kind in "iu" and voxels.itemsize <= 2
    voxels = voxels if keep else voxels.astype(np.float32, copy=False)
    if like is None:
        nifti.write(path, voxels, image.affine)
        return
    grid = _grid_of(Path(like), layout, image, "voxels")
    header_source = Path(like) if suffix(like) in stored.NIFTI else None
    nifti.write(path, orientation_of(grid.affine).from_ras(voxels), grid.affine, like=header_source)


def _grid_of(like: Path, layout: Layout, volume: Volume, what: str) -> Geometry:
    """The grid of a stored image, which a volume in RAS+ must lie on."""
    grid = stored.geometry(like, layout)
    expected, found = orientation_of(grid.affine).geometry_to_ras(grid), Geometry(volume.shape, volume.affine)
    if not expected.matches(found):
        raise DataError(
            f"the {what} do not lie on the grid of the image",
            file=like,
            found=found,
            expected=expected,
            code="grids-differ",
        )
    return grid


def _read_channels(path: Path, layout: Layout) -> tuple[Array, Geometry]:
    """One file as float32 (M, X, Y, Z) in RAS+ order."""
    voxels, geometry = stored.image(path, layout)
    orientation = orientation_of(geometry.affine)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        channels = [_in_order(orientation.to_ras(channel), np.dtype(np.float32)) for channel in voxels]
    for channel in channels:
        _check_finite(path, channel)
    together = channels[0][None] if len(channels) == 1 else np.stack(channels)
    return together, orientation.geometry_to_ras(geometry)


def _in_order(voxels: Array, dtype: np.dtype[Any]) -> Array:
    """The voxels in C order, as they are if they already are."""
    if voxels.flags.c_contiguous and voxels.dtype == dtype:
        return voxels
    ordered = np.empty(voxels.shape, dtype)
    # Files run x first, arrays z first. Few planes at a time stay in the cache: 3 times as fast as one copy.
    for start in range(0, voxels.shape[2], _PLANES):
        ordered[..., start : start + _PLANES] = voxels[..., start : start + _PLANES]
    return ordered


def _writer(name: str) -> ModuleType:
    """A format whose library takes long to import, or is an extra."""
    return importlib.import_module(f"labelwise.formats.{name}")


def _label_format(path: Path, wanted: str | None) -> str:
    ends = {".rtstruct.dcm": "rtstruct", ".dcm": "dicom-seg", ".nrrd": "nrrd"}
    ends |= dict.fromkeys(stored.NIFTI, "nifti")
    named = next((kind for end, kind in ends.items() if path.name.lower().endswith(end)), None)
    known = wanted if wanted in _DICOM and named in (None, *_DICOM) else named
    if known is None or wanted not in (None, known):
        raise ConfigError(
            "the name of the file does not fit the format"
            if wanted
            else "labels are not written in this format",
            file=path,
            expected=f"a name ending in {LABEL_FORMATS.get(wanted or '') or ', '.join(LABEL_FORMATS.values())}",
            code="unknown-format",
        )
    return known


def _check_target(path: Path) -> None:
    if suffix(path) not in stored.NIFTI:
        raise ConfigError(
            "images are written as NIfTI only", file=path, expected="a name ending in .nii.gz or .nii"
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
        code="not-finite",
    )


def _as_integers(path: Path, values: Array) -> Array:
    """Floating-point labels as int32, if every one is a whole number."""
    _check_finite(path, values)
    whole = np.rint(values)
    wrong = (np.abs(values - whole) > _INTEGRAL_WITHIN) | (np.abs(whole) >= np.iinfo(np.int32).max)
    if wrong.any():
        strange = np.unique(values[wrong])
        examples = ", ".join(f"{value:g}" for value in strange[:5])
        if len(strange) > _MOST_BETWEEN:
            raise DataError(
                "this label file looks like a scan: it holds intensities",
                file=path,
                found=f"{len(strange):,} different values that are not whole, {examples}, ...",
                expected="one integer per class",
                do="put the label map in its place: the file may be a copy of the image",
            )
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
