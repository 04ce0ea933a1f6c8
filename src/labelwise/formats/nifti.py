"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz): the header by nibabel, the voxels by one checked read."""

from __future__ import annotations

import gzip
import html
import json
import logging
import re
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import NDArray

from labelwise.atomic import atomic_path
from labelwise.errors import DataError
from labelwise.formats.geometry import Geometry, as_geometry, check_size
from labelwise.formats.once import once_per_file
from labelwise.types import Array

# Small repairs of headers are many and harmless: seen only by those who ask for them.
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error, HeaderDataError, HeaderTypeError)
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # spatial code of xyzt_units: metres, micrometres; all others are mm
_GEOMETRY_FIELDS = (
    "qform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "sform_code",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)
_HIGHEST_VALUE = 65535
# <Label Key="5" Red="1" ...><![CDATA[liver]]></Label>
_TABLE_ENTRY = re.compile(
    r"<Label\b[^>]*?\bKey=[\"'](\d{1,6})[\"'][^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>", re.DOTALL
)
_SCANNER = 1  # sform code of a new header: coordinates of the scanner


def read_geometry(path: Path, *, channels: bool = False) -> Geometry:
    """The grid of a NIfTI file with its axes as stored; reads the header only.

    The sform counts, else the qform, else nibabel's default for files without either (LAS, centred).

    Errors
        DataError   not a NIfTI file, damaged, several frames, singular affine
    """
    return _geometry(path, _read_header(path), channels)


def other_place(path: Path) -> Geometry | None:
    """The grid that the qform of a file states, where it states another one than the sform, which counts.

    Some programs read one, some the other: labels drawn in one of them lie elsewhere in the next.
    """
    header = _read_header(path)
    if int(header["qform_code"]) <= 0 or int(header["sform_code"]) <= 0:
        return None
    grid = _geometry(path, header, channels=True)
    try:
        affine = np.array(header.get_qform(), dtype=np.float64)
    except _UNREADABLE:
        return None
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    other = Geometry(grid.shape, affine)
    return None if not np.isfinite(affine).all() or grid.matches(other) else other


def is_flat(path: Path) -> bool:
    """Whether a file holds an image of two axes, and not a volume of one slice."""
    return len(_read_header(path).get_data_shape()) == 2


def read(path: Path, *, channels: bool = False) -> tuple[Array, Geometry]:
    """Voxels (I, J, K) with the header's slope and intercept applied, axes as stored, and their grid.

    The whole file is read, so a damaged .nii.gz is found by its checksum. With `channels` the voxels are
    (I, J, K, M): a fourth axis counts the channels of a scan, and is no error.
    """
    header = _read_header(path)
    geometry = _geometry(path, header, channels)
    shape = (*geometry.shape, prod(header.get_data_shape()[3:])) if channels else geometry.shape
    raw = np.empty(prod(shape), header.get_data_dtype())
    try:
        with _open(path) as stream:
            stream.seek(header.get_data_offset())
            num_bytes = cast("int", stream.readinto(raw.view(np.uint8)))  # type: ignore[attr-defined]
            stream.read(1)  # at the end of a .gz: compares the checksum
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if num_bytes != raw.nbytes:
        raise _unreadable(path, f"{num_bytes:,} of {raw.nbytes:,} bytes of voxels")
    return _scaled(raw, *header.get_slope_inter()).reshape(shape, order="F"), geometry


def read_names(path: Path) -> dict[int, str]:
    """Label value -> name, as an extension of the header says; empty if none does.

    Understood are the JSON of `write`, and the label table of Connectome Workbench (CaretExtension), which
    TotalSegmentator writes.
    """
    if not _read_start(path)[1]:
        return {}
    try:
        extensions = nibabel.load(path).header.extensions
    except (*_UNREADABLE, ImageFileError) as error:
        raise _unreadable(path, error) from error
    for extension in extensions:
        content = extension.get_content()
        text = content if isinstance(content, bytes) else str(content).encode()
        named = _names_in_json(text) or _names_in_table(text)
        if named and min(named) >= 0 and max(named) <= _HIGHEST_VALUE:
            return named
    return {}


def _names_in_json(text: bytes) -> dict[int, str]:
    try:
        classes = json.loads(text.rstrip(b"\0"))["classes"]
        return {int(value): str(name) for value, name in classes.items() if name}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # of another program
        return {}


def _names_in_table(text: bytes) -> dict[int, str]:
    if b"<LabelTable" not in text:
        return {}
    found = _TABLE_ENTRY.findall(text.decode("utf-8", "replace"))
    names = {int(key): (quoted or html.unescape(plain)).strip() for key, quoted, plain in found}
    return {value: name for value, name in names.items() if value and name}


def write(
    path: Path,
    voxels: Array,
    affine: NDArray[np.float64],
    *,
    like: Path | None = None,
    names: Sequence[str] = (),
    flat: bool = False,
) -> None:
    """Write (I, J, K) voxels in their own dtype, whole or not at all; `flat` (I, J, 1) voxels as an image of two axes.

    Parameters
        affine   voxel index -> mm in RAS+; becomes qform and sform
        like     a NIfTI file whose qform, sform, codes and units are taken over bit by bit instead
        names    class names, index = label value; kept as JSON in a header extension of type "comment"
    """
    header = _new_header(affine) if like is None else _header_like(_read_header(like))
    header.set_data_dtype(voxels.dtype)
    if flat:
        voxels = voxels[..., 0]
    if names:
        classes = {"classes": {str(value): name for value, name in enumerate(names) if name}}
        header.extensions.append(Nifti1Extension("comment", json.dumps(classes, ensure_ascii=False).encode()))
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    with atomic_path(path) as temporary:
        kind(voxels, None, header).to_filename(temporary)


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_header(path: Path) -> nibabel.Nifti1Header:
    return _read_start(path)[0]


@once_per_file
def _read_start(path: Path) -> tuple[nibabel.Nifti1Header, bool]:
    """The header of a file, and whether it is extended: the first of four bytes behind it is not 0."""
    try:
        with _open(path) as stream:
            block = stream.read(nibabel.Nifti2Header.sizeof_hdr + 4)
        kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
        found = [kind for kind in kinds if kind.may_contain_header(block)]
        if not found or len(block) < found[0].sizeof_hdr:
            raise DataError(
                "this is not a NIfTI file", file=path, do="convert the scan to NIfTI, or rename the file"
            )
        size = found[0].sizeof_hdr
        header, is_extended = found[0](block[:size], check=False), any(block[size : size + 1])
        header.check_fix(logger=_log)
        _check_header(path, header)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return header, is_extended


def _check_header(path: Path, header: nibabel.Nifti1Header) -> None:
    dtype, offset = header.get_data_dtype(), header.get_data_offset()
    header.get_slope_inter()  # raises if the intercept is not finite
    if dtype.kind not in "iuf":
        raise DataError(
            "the voxels are not plain numbers",
            file=path,
            found=f"NIfTI data type {dtype.name}",
            expected="integers or floating-point numbers",
            do="convert colour or complex images to one number per voxel",
        )
    if offset < header.sizeof_hdr:
        raise _unreadable(path, f"voxels said to begin at byte {offset}, inside the header")
    sizes = [int(size) for size in header.get_data_shape()]
    if all(size > 0 for size in sizes):
        check_size(path, offset + prod(sizes) * dtype.itemsize, compressed=path.suffix.lower() == ".gz")


def _geometry(path: Path, header: nibabel.Nifti1Header, channels: bool) -> Geometry:
    try:
        with np.errstate(all="ignore"):  # what a damaged header yields is judged below
            affine = np.array(header.get_best_affine(), dtype=np.float64)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    shape = header.get_data_shape()
    return as_geometry(path, shape[:3] if channels else shape, affine)


def _scaled(raw: Array, slope: float | None, intercept: float | None) -> Array:
    if slope is None or intercept is None or (slope, intercept) == (1, 0):
        return raw
    # 16 bits and a slope fit into float32; wider integers would lose their last digits.
    scaled: Array = raw.astype(np.float32 if raw.itemsize <= 2 else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite voxels are refused by the caller
        np.multiply(scaled, slope, out=scaled)
        np.add(scaled, intercept, out=scaled)
    return scaled


def _new_header(affine: NDArray[np.float64]) -> nibabel.Nifti1Header:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=_SCANNER)
    header.set_sform(affine, code=_SCANNER)
    return header


def _header_like(source: nibabel.Nifti1Header) -> nibabel.Nifti1Header:
    header = type(source)()
    header.set_data_shape((1, 1, 1))
    for field in _GEOMETRY_FIELDS:
        header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]
    return header


def _unreadable(path: Path, found: object) -> DataError:
    return DataError(
        "the NIfTI file cannot be read: truncated or damaged",
        file=path,
        found=found,
        do="copy or export the file again",
        code="unreadable",
    )
