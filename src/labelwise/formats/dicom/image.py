"""DICOM series as volumes: which files belong to a path, their voxels, and their grid.

A path is a folder, in which one series is chosen, or one file of a series. The files of a series lie in the folder of
that file or below it; or, where a DICOMDIR lies above them, anywhere below the folder of the DICOMDIR.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelwise.errors import DataError
from labelwise.formats import stored
from labelwise.formats.dicom.header import Header, fingerprint, read_header
from labelwise.formats.dicom.pixels import check_length, read_frames, same_pixels, value_type
from labelwise.formats.dicom.series import Series, series_of
from labelwise.formats.geometry import Geometry, as_geometry
from labelwise.types import Array

__all__ = [
    "LabelObject",
    "Series",
    "choose",
    "files_of",
    "fingerprint",
    "label_objects_in",
    "listing",
    "modality",
    "path_of",
    "read",
    "read_geometry",
    "series_in",
]

logger = logging.getLogger("labelwise")

_DIRECTORY = "DICOMDIR"
_LEVELS = 4  # of folders below a DICOMDIR: patient, study, series, and one to spare
_SHOWN = 20


@dataclass(frozen=True)
class LabelObject:
    """A DICOM-SEG or RTSTRUCT file, and by which fingerprints it may be found to belong to a series."""

    file: Path
    modality: str  # SEG or RTSTRUCT
    patient: str
    study: str
    frame_of_reference: str


def series_in(folder: Path | str) -> list[Series]:
    """All series of images below a folder, in the order of their first paths; headers are read once.

    Files that are not DICOM, DICOMDIR, and objects without pixels of their own are passed over; damaged DICOM files
    are reported by a warning.

    Errors
        DataError   there is no such folder
    """
    return series_of(_headers(Path(folder)), same_pixels)


def label_objects_in(folder: Path | str) -> list[LabelObject]:
    """All DICOM-SEG and RTSTRUCT files below a folder, sorted by path."""
    return [
        LabelObject(h.file, h.modality, h.patient, h.study, h.frame_of_reference)
        for h in _headers(Path(folder), warn=False)
        if h.modality in ("SEG", "RTSTRUCT")
    ]


def choose(found: Sequence[Series]) -> list[Series]:
    """The series with most slices; several if they have the same number.

    Localisers, secondary captures, reformatted series and single images do not count where there are others, and
    other modalities do not where there is CT or MR.
    """
    wanted = [series for series in found if series.usable]
    for preferred in (_is_scan, _is_ct_or_mr):
        wanted = [series for series in wanted if preferred(series)] or wanted
    most = max((series.num_slices for series in wanted), default=0)
    return [series for series in wanted if series.num_slices == most]


def _is_scan(series: Series) -> bool:
    return not series.passed_over


def _is_ct_or_mr(series: Series) -> bool:
    return series.modality in ("CT", "MR")


def path_of(series: Series, among: Sequence[Series]) -> Path:
    """The path by which a series can be read again: its folder if nothing else lies there, else one of its files.

    Errors
        DataError   its files lie in several folders together with those of other series
    """
    folder = _common_folder(series)
    if [other for other in among if any(folder in file.parents for file in other.files)] == [series]:
        return folder
    first = min(series.files, key=lambda file: (len(file.parts), file))
    root = _root(first)
    if all(root in file.parents for file in series.files):
        return first
    raise DataError(
        "the files of a DICOM series lie in several folders among those of other series",
        file=folder,
        found=str(series),
        do="move each series to a folder of its own, or put the DICOMDIR back above them",
    )


def files_of(path: Path) -> list[Path]:
    """The files of the series that a path means, in the order of their slices."""
    return list(_series(Path(path)).files)


def modality(path: Path) -> str:
    """CT, MR, SEG, RTSTRUCT ...: of a file, or of the series that is chosen in a folder."""
    path = Path(path)
    return _series(path).modality if path.is_dir() else read_header(path).modality


def read_geometry(path: Path) -> Geometry:
    """The grid of a series: columns, rows and slices as stored, in RAS mm; reads headers only.

    Errors
        DataError   no series here, or several to choose among; missing or repeated slices, unequal distances
    """
    series = _series(Path(path))
    return _grid(Path(path), series)


def read(path: Path) -> tuple[Array, Geometry]:
    """Voxels (I, J, K) = (columns, rows, slices), slices in the order of their positions, and their grid.

    Values are those of the scanner: slope and intercept of each slice are applied. int16 or int32 if they are whole
    numbers, else float32.

    Errors
        DataError   as `read_geometry`; damaged pixels, or a compression without a decoder
    """
    path = Path(path)
    series = _series(path)
    grid = _grid(path, series)
    for note in series.notes:
        logger.warning("%s: %s", path, note)
    columns, rows, slices = series.size
    places: dict[Path, list[int]] = {}
    for place, frame in enumerate(series.frames):
        places.setdefault(frame.file, []).append(place)
    pixels_of = {file: pixels for file in places if (pixels := read_header(file).pixels) is not None}
    for file, pixels in pixels_of.items():
        check_length(file, pixels, len(places[file]))
    voxels = np.empty((slices, rows, columns), value_type(pixels_of.values(), series.frames))
    for file, pixels in pixels_of.items():
        frames = [series.frames[place] for place in places[file]]
        with np.errstate(
            over="ignore"
        ):  # what float32 cannot hold becomes infinite, and is refused by the caller
            for number, values in read_frames(file, pixels, frames, series.modality):
                voxels[places[file][number]] = values
    return voxels.T, grid


def listing(found: Sequence[Series], folder: Path) -> str:
    """Numbered lines, one for each series: what it is, and the path of its first file below the folder."""
    lines = []
    for number, series in enumerate(found, start=1):
        first = min(series.files)
        shown = first.relative_to(folder) if first.is_relative_to(folder) else first
        lines.append(f"{number}: {series}, {shown}")
    return "\n            ".join(lines[:_SHOWN] + [f"and {len(lines) - _SHOWN} more"] * (len(lines) > _SHOWN))


def _grid(path: Path, series: Series) -> Geometry:
    if series.grid is None:
        raise DataError(
            f"the series cannot be read: {series.problem}", file=path, do=series.do or None, code="unreadable"
        )
    return as_geometry(path, series.grid.shape, series.grid.affine)


def _series(path: Path) -> Series:
    """The series that a path means."""
    if path.is_dir():
        return _chosen(path)
    header = read_header(path)
    if header.pixels is None:
        raise DataError(
            "this DICOM file holds no image", file=path, found=f"modality {header.modality or 'unknown'}"
        )
    path = path.absolute()
    headers = [other for other in _headers(_root(path), warn=False) if other.series == header.series]
    for series in series_of(headers, same_pixels):
        if path in series.files or any(frame.file == path for frame in series.frames):
            return series
    # A copy of a slice that was left out: its series is that of the others with its UID.
    raise DataError(
        "the file repeats a slice of its series",
        file=path,
        do="name another file of the series, or delete this one",
    )


def _chosen(folder: Path) -> Series:
    found = series_in(folder)
    best = choose(found)
    scans = [series for series in found if series.usable and not series.passed_over] or found
    if len(best) == 1 and len({(series.patient, series.study) for series in scans}) == 1:
        return best[0]
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError("there is no DICOM series in this folder", file=folder, do="correct its path")
    raise DataError(
        "several DICOM series lie in this folder" if best else "no DICOM series in this folder can be read",
        file=folder,
        found=listing(found, folder.absolute()),
        expected="one series, or one with more slices than the others",
        do="name a file of the series that is meant, or move it to a folder of its own",
    )


def _headers(folder: Path, *, warn: bool = True) -> list[Header]:
    if not folder.is_dir():
        raise DataError("there is no such folder", file=folder, do="correct its path", code="not-found")
    headers, damaged = [], []
    for file in _files_below(folder.absolute()):
        try:
            headers.append(read_header(file))
        except DataError as error:
            damaged += [] if error.code == "no-dicom" else [file.name]
    if damaged and warn:
        names = ", ".join(damaged[:3]) + (" ..." if len(damaged) > 3 else "")
        logger.warning("%s: damaged DICOM files are passed over: %d (%s)", folder, len(damaged), names)
    return headers


def _files_below(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in (_DIRECTORY, "__MACOSX"):
            continue
        if entry.is_dir():
            if not (entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve())):
                yield from _files_below(entry)
        elif not stored.suffix(entry):
            yield entry


def _root(file: Path) -> Path:
    """The folder below which the other files of a series are looked for."""
    for folder in file.absolute().parents[: _LEVELS + 1]:
        if (folder / _DIRECTORY).is_file():
            return folder
    return file.absolute().parent


def _common_folder(series: Series) -> Path:
    """The innermost folder below which all files lie."""
    first, *others = sorted({file.parent for file in series.files})
    while not all(first in (other, *other.parents) for other in others):
        first = first.parent
    return first
