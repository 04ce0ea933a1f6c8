"""The series that labels were drawn on, as DICOM labels refer to it; and how DICOM labels are opened.

Patient and study are copied from the series into the labels, because DICOM demands it: into that file and nowhere else.
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from labelwise.errors import ConfigError, DataError
from labelwise.formats.dicom import image as dicom
from labelwise.formats.dicom.header import UNREADABLE, read_header
from labelwise.formats.geometry import Geometry
from labelwise.types import Array

LPS_TO_RAS = np.array((-1.0, -1.0, 1.0))
WITHIN_VOXELS = 0.25  # a pixel may miss its voxel by this: headers are rounded, and nothing else lies so near

Slices = tuple[slice, slice]

_log = logging.getLogger("labelwise")
_STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_FORMS: Mapping[str, Any] = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_SEXES = ("M", "F", "O", "")


@dataclass(frozen=True, eq=False)
class Plane:
    """Pixel (row, column) lies at ``origin + row * down + column * along``, mm in RAS."""

    origin: NDArray[np.float64]  # (3,)
    along: NDArray[np.float64]  # (3,) from one column to the next
    down: NDArray[np.float64]  # (3,) from one row to the next
    shape: tuple[int, int]  # rows, columns

    @classmethod
    def of(
        cls,
        position: Sequence[float],
        orientation: Sequence[float],
        spacing: Sequence[float],
        shape: tuple[int, int],
    ) -> Plane:
        """From the words of DICOM (LPS); `spacing` is (between columns, between rows), mm."""
        along, down = (np.array(orientation[part], float) for part in (slice(0, 3), slice(3, 6)))
        return cls(
            LPS_TO_RAS * np.array(position, float),
            LPS_TO_RAS * along * float(spacing[0]),
            LPS_TO_RAS * down * float(spacing[1]),
            shape,
        )


@dataclass(frozen=True)
class Place:
    """Where a plane lies among stored voxels (I, J, K)."""

    axes: tuple[int, int, int]  # the stored axes of rows, of columns, and across the plane
    reversed: tuple[bool, bool]  # whether rows, columns run against their axis
    first: tuple[int, int]  # index of the first row and column, counted in their own direction
    slice: int  # index on the axis across

    def window(self, voxels: Array, shape: tuple[int, int]) -> tuple[Array, Slices]:
        """The voxels under a frame of `shape`, as a view (rows, columns), and the part of the frame they are."""
        flat = voxels.transpose(self.axes)[:, :, self.slice]
        flat = flat[tuple(slice(None, None, -1 if turned else 1) for turned in self.reversed)]
        here, there = [], []
        for size, first, length in zip(flat.shape, self.first, shape, strict=True):
            begin, end = max(first, 0), max(min(first + length, size), max(first, 0))
            here.append(slice(begin, end))
            there.append(slice(begin - first, end - first))
        return flat[here[0], here[1]], (there[0], there[1])


def place(plane: Plane, grid: Geometry) -> Place | None:
    """Where a plane lies on a grid; None if its pixels are not voxels of it.

    The slice may lie outside the grid: see `inside`.
    """
    to_index = np.linalg.inv(grid.affine)
    origin = to_index[:3, :3] @ plane.origin + to_index[:3, 3]
    steps = np.stack([to_index[:3, :3] @ plane.down, to_index[:3, :3] @ plane.along])
    whole = np.rint(steps)
    drift = np.abs(steps - whole) * (np.array(plane.shape)[:, None] - 1)
    unit = (np.abs(whole).sum(axis=1) == 1).all()
    if not unit or drift.max() > WITHIN_VOXELS or np.abs(origin - np.rint(origin)).max() > WITHIN_VOXELS:
        return None
    row, column = (int(np.flatnonzero(step)[0]) for step in whole)
    if row == column:
        return None
    across = 3 - row - column
    index = np.rint(origin).astype(int)
    turned = (bool(whole[0, row] < 0), bool(whole[1, column] < 0))
    first = tuple(
        int(grid.shape[axis] - 1 - index[axis] if back else index[axis])
        for axis, back in zip((row, column), turned, strict=True)
    )
    return Place((row, column, across), turned, (first[0], first[1]), int(index[across]))


def inside(found: Place, grid: Geometry) -> bool:
    """Whether the slice of a plane is one of the grid."""
    return 0 <= found.slice < grid.shape[found.axes[2]]


@dataclass(frozen=True)
class Picture:
    """One frame of the source series, and where it lies on the grid of the scan."""

    header: Any  # pydicom.Dataset; of a multi-frame file shared by its frames
    frame: int  # in its file, from 0
    plane: Plane
    place: Place


@dataclass(frozen=True)
class Source:
    """The frames of a series on the grid of the scan, every header with what DICOM needs of it."""

    pictures: tuple[Picture, ...]

    @property
    def headers(self) -> list[Any]:
        """One header for each file, in the order of the pictures."""
        return list({id(picture.header): picture.header for picture in self.pictures}.values())

    def stacked(self, voxels: Array) -> Array:
        """(I, J, K) -> (frames, rows, columns), one frame for each picture."""
        frames = [picture.place.window(voxels, picture.plane.shape)[0] for picture in self.pictures]
        return np.stack(frames)


def open_source(like: Path, grid: Geometry, voxels: Array) -> Source:
    """The series to which `like` belongs.

    Arguments
        grid        of the series, axes as stored
        voxels      (I, J, K) labels on it: those that no image shows are left out, with a warning

    Errors
        ConfigError     `like` is not a DICOM series
        DataError       a damaged file; images that do not lie on the grid
    """
    try:
        files = list(dicom.files_of(like))
    except DataError as error:
        raise ConfigError(
            "DICOM labels are written for a DICOM series",
            file=like,
            found=error.what,
            expected="the folder of a series, or one of its files",
            do="name the series by --like, or write NIfTI or NRRD",
        ) from error
    pictures = []
    for file in files:
        with understood(file):
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        facts = read_header(file)
        for frame in facts.frames:
            shape = (int(header.Rows), int(header.Columns))
            plane = Plane.of(frame.position, frame.orientation, frame.spacing, shape)
            found = place(plane, grid)
            if found and inside(found, grid):
                pictures.append(Picture(header, frame.index, plane, found))
    if not pictures:
        raise DataError("no image of the series lies on the grid of the scan", file=like, expected=grid)
    source = Source(tuple(pictures))
    _warn_of_lost(like, source, voxels)
    _complete(like, source)
    return source


@contextmanager
def understood(
    file: Path, what: str = "the DICOM file cannot be read: truncated or damaged"
) -> Iterator[None]:
    """One error for all that can be wrong with a file. Texts of pydicom may hold patient data: never repeated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UNREADABLE as error:
            if isinstance(error, FileNotFoundError):
                raise DataError(
                    "there is no such file", file=file, do="correct its path", code="not-found"
                ) from None
            raise DataError(what, file=file, do="copy or export the file again") from None


def new_uid(*sources: str) -> str:
    """A unique identifier of the root for UUIDs; always the same one for the same sources, if there are any."""
    chosen = uuid.uuid5(uuid.NAMESPACE_OID, "/".join(sources)) if sources else uuid.uuid4()
    return f"2.25.{chosen.int}"


def _warn_of_lost(like: Path, source: Source, voxels: Array) -> None:
    axis = source.pictures[0].place.axes[2]
    seen = {picture.place.slice for picture in source.pictures}
    labelled = np.flatnonzero(voxels.any(axis=tuple({0, 1, 2} - {axis})))
    if lost := [index for index in labelled if index not in seen]:
        _log.warning(
            "%s: the labels of %d slices that the series has no image of are left out", like.name, len(lost)
        )


def _complete(like: Path, source: Source) -> None:
    """Fill what DICOM needs and the headers lack; identifiers that are made up are reported."""
    headers, made_up = source.headers, set()
    for number, header in enumerate(headers):
        meta = getattr(header, "file_meta", {})
        if not header.get("SOPClassUID"):
            modality = str(header.get("Modality") or "")
            header.SOPClassUID = meta.get("MediaStorageSOPClassUID") or _STORAGE.get(
                modality, _SECONDARY_CAPTURE
            )
        if not header.get("SOPInstanceUID"):
            stored = meta.get("MediaStorageSOPInstanceUID")
            made_up |= set() if stored else {"image"}
            header.SOPInstanceUID = stored or new_uid(
                "image", str(number), str(source.pictures[0].plane.origin)
            )
    first = headers[0]
    images = sorted(str(header.SOPInstanceUID) for header in headers)
    for level, keyword in (
        ("study", "StudyInstanceUID"),
        ("series", "SeriesInstanceUID"),
        ("frame of reference", "FrameOfReferenceUID"),
    ):
        known = first.get(keyword)
        if not known:
            made_up.add(level)
            known = new_uid(level, *images)
        for header in headers:
            setattr(header, keyword, UID(str(known)))
    for header in headers:
        _fill(header, first, source)
    if made_up:
        _log.warning(
            "%s: the series names no %s; made-up identifiers stand for them, and a viewer may not show "
            "the labels together with the images",
            like.name,
            ", ".join(sorted(made_up)),
        )


def _fill(header: Any, first: Any, source: Source) -> None:
    for keyword in _MAY_BE_EMPTY:
        value = header.get(keyword)
        if value is None or not _well_formed(keyword, value):
            setattr(header, keyword, "")
    if not header.get("SliceThickness") and "SharedFunctionalGroupsSequence" not in header:
        header.SliceThickness = _distance(source)
    if "ImageOrientationPatient" in header:  # rounded anew in each header; `place` has compared them already
        header.ImageOrientationPatient = first.ImageOrientationPatient


def _well_formed(keyword: str, value: Any) -> bool:
    if keyword == "PatientSex":
        return str(value) in _SEXES
    try:
        _FORMS.get(keyword, str)(str(value))
    except ValueError:
        return False
    return True


def _distance(source: Source) -> float:
    """mm between neighbouring images; 1 if there is only one."""
    origins = np.array([picture.plane.origin for picture in source.pictures])
    if len(origins) < 2:
        return 1.0
    return round(float(np.median(np.linalg.norm(np.diff(origins, axis=0), axis=1))), 6)
