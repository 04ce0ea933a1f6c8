"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through SimpleITK. LPS becomes RAS here and nowhere else.

A .seg.nrrd of 3D Slicer is a NRRD whose header names its segments: a label value in one of several layers, because
segments may overlap.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from labelwise.errors import DataError
from labelwise.formats.geometry import Geometry, as_geometry, check_inside, check_size
from labelwise.formats.layout import Overlap
from labelwise.formats.segments import Canvas, Tally, empty, in_order, values_of
from labelwise.types import Array

_WITH_SEPARATE_DATA = (".nhdr", ".mhd")  # headers whose voxels lie in another file
_META_IMAGE = (".mha", ".mhd")
_MOST_AXES = 8
_LONGEST_HEADER = 65536
_CHUNK = 65536  # compressed bytes: at most 66 MB of voxels at a time
_SEGMENT_KEY = re.compile(r"Segment(\d+)_(\w+)")
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0))


def read_geometry(path: Path) -> Geometry:
    """The grid of the file with its axes as stored, in RAS mm; reads the header only."""
    return _geometry(path, _read_header(path))


def is_flat(path: Path) -> bool:
    """Whether a file holds an image of two axes, and not a volume of one slice."""
    return bool(_read_header(path).GetDimension() == 2)


def read(path: Path) -> tuple[Array, Geometry]:
    """Voxels (I, J, K), axes as stored, and their grid.

    Errors
        DataError   damaged file, several frames or channels, singular affine
    """
    reader = _read_header(path)
    geometry = _geometry(path, reader)
    return _execute(path, reader).T.reshape(geometry.shape), geometry


def segment_names(path: Path) -> tuple[str, ...]:
    """The names of the segments of a .seg.nrrd in the order of the file; empty if its header names none."""
    return tuple(dict.fromkeys(segment.name for segment in _segments(_read_header(path)).values()))


def value_names(path: Path) -> dict[int, str]:
    """Label value -> name, as the header of a .seg.nrrd says; empty if it says nothing, or has several layers."""
    reader = _read_header(path)
    return (
        {segment.value: segment.name for segment in _segments(reader).values()}
        if _layers(reader) == 1
        else {}
    )


def has_layers(path: Path) -> bool:
    """Whether the segments of a .seg.nrrd lie in several layers, because they overlap."""
    reader = _read_header(path)
    return _layers(reader) > 1 and bool(_segments(reader))


def read_segments(
    path: Path, segments: Sequence[str], *, overlap: Overlap = "later", tally: Tally | None = None
) -> tuple[Array, Geometry]:
    """Labels (I, J, K), axes as stored, and their grid: the n-th of the named segments becomes n.

    A segment that the file does not hold says nothing. Where segments overlap, the later name counts, or the smaller
    segment.

    Errors
        DataError   as `read`; none of the segments is there
    """
    reader = _read_header(path)
    known = _segments(reader)
    value_of = values_of(path, segments, {number: segment.name for number, segment in known.items()})
    grid = as_geometry(path, reader.GetSize(), _affine(reader))
    layers = _execute(path, reader).T.reshape(-1, *grid.shape)
    canvas = Canvas(empty(grid, segments, overlap), tally, overlap)

    def mask(number: int) -> Array:
        segment = known[number]
        if segment.layer >= len(layers):
            raise _unreadable(path, f"segment {segment.name} in layer {segment.layer} of {len(layers)}")
        return np.asarray(layers[segment.layer] == segment.value)

    sizes: Counter[int] | None = None
    if overlap == "smaller":
        sizes = Counter()
        for number, value in value_of.items():
            sizes[value] += int(np.count_nonzero(mask(number)))
    for value in in_order(set(value_of.values()), sizes):
        for number in (number for number in value_of if value_of[number] == value):
            canvas.draw(value, mask(number))
    return canvas.labels, grid


def data_files(path: Path) -> list[Path]:
    """The files beside a .nhdr or .mhd that hold its voxels, as far as they are there; none for other files."""
    named = _named_files(path) if path.suffix.lower() in _WITH_SEPARATE_DATA else []
    return [file for file in named if file.is_file()]


def _named_files(path: Path) -> list[Path]:
    """The files that a header names as those of its voxels, there or not; none if they follow the header."""
    with path.open("rb") as file:
        begin = file.read(_LONGEST_HEADER)
    if begin.startswith(b"NRRD"):
        begin = re.split(rb"\r?\n\r?\n", begin, maxsplit=1)[0]
    header = begin.decode("utf-8", "replace")
    entry = re.search(
        r"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*(.*)$", header, re.MULTILINE | re.IGNORECASE
    )
    if entry is None or (named := entry[1].strip()).upper() == "LOCAL":
        return []
    if named.startswith("LIST"):
        return [path.parent / line.strip() for line in header[entry.end() :].splitlines() if line.strip()]
    if "%" in named:  # slice_%03d.raw 1 40 1
        pattern = path.parent / re.sub(r"(%\d*d)+", "*", named.split()[0])
        return sorted(pattern.parent.glob(pattern.name)) or [pattern]
    return [path.parent / named]


def _read_header(path: Path) -> SimpleITK.ImageFileReader:
    _check_dimensions(path)
    check_inside(path, map(str, _named_files(path)))
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return reader


def _execute(path: Path, reader: SimpleITK.ImageFileReader) -> Array:
    """The voxels as SimpleITK orders them: (K, J, I), or (K, J, I, components)."""
    _check_compressed(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    voxels: Array = SimpleITK.GetArrayFromImage(image)
    return voxels


@dataclass(frozen=True)
class _Segment:
    name: str
    value: int
    layer: int


def _segments(reader: SimpleITK.ImageFileReader) -> dict[int, _Segment]:
    """What a header says of its segments; files of Slicer before 4.11 keep each in a layer of its own, as 1."""
    facts: dict[int, dict[str, str]] = {}
    for key in reader.GetMetaDataKeys():
        if match := _SEGMENT_KEY.fullmatch(key):
            facts.setdefault(int(match[1]), {})[match[2]] = reader.GetMetaData(key).strip()
    return {
        number: _Segment(fact["Name"], _whole(fact.get("LabelValue"), 1), _whole(fact.get("Layer"), number))
        for number, fact in sorted(facts.items())
        if fact.get("Name")
    }


def _layers(reader: SimpleITK.ImageFileReader) -> int:
    """Number of layers: components of a voxel, or a fourth axis."""
    return int(prod((*reader.GetSize()[3:], reader.GetNumberOfComponents())))


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


def _check_dimensions(path: Path) -> None:
    """ITK trusts a MetaImage header that promises thousands of axes, and ends the process."""
    if path.suffix.lower() not in _META_IMAGE:
        return
    with path.open("rb") as file:
        found = re.search(rb"NDims\s*=\s*(-?\d+)", file.read(_LONGEST_HEADER))
    if found and not 1 <= int(found[1]) <= _MOST_AXES:
        raise _unreadable(path, f"NDims = {found[1].decode()}")


def _check_compressed(path: Path) -> None:
    """ITK waits forever for the end of a damaged zlib stream in a MetaImage."""
    if path.suffix.lower() != ".mha":
        return
    with path.open("rb") as file:
        header = file.read(_LONGEST_HEADER)
        begin = re.search(rb"ElementDataFile\s*=\s*LOCAL[^\n]*\n", header)
        if not begin or not re.search(rb"CompressedData\s*=\s*True", header[: begin.start()], re.IGNORECASE):
            return
        file.seek(begin.end())
        stream = zlib.decompressobj()
        try:
            while not stream.eof and (chunk := file.read(_CHUNK)):
                stream.decompress(chunk)
        except zlib.error as error:
            raise _unreadable(path, error) from error
    if not stream.eof:
        raise _unreadable(path, "the compressed voxels end early")


def _geometry(path: Path, reader: SimpleITK.ImageFileReader) -> Geometry:
    shape = (*reader.GetSize(), reader.GetNumberOfComponents())
    if path.suffix.lower() not in _WITH_SEPARATE_DATA:
        bytes_per_voxel = SimpleITK.Image([1, 1], reader.GetPixelID(), 1).GetSizeOfPixelComponent()
        check_size(path, prod(shape) * bytes_per_voxel, compressed=True)
    return as_geometry(path, shape, _affine(reader))


def _affine(reader: SimpleITK.ImageFileReader) -> NDArray[np.float64]:
    dims = reader.GetDimension()
    used = min(dims, 3)  # a flat image is one slice, a single frame is dropped by the caller
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    direction[:used, :used] = np.reshape(reader.GetDirection(), (dims, dims))[:used, :used]
    spacing[:used] = reader.GetSpacing()[:used]
    origin[:used] = reader.GetOrigin()[:used]
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ (direction * spacing)
    affine[:3, 3] = LPS_TO_RAS @ origin
    return affine


def _unreadable(path: Path, error: Exception | str) -> DataError:
    reason = str(error).strip().splitlines()[-1:]
    return DataError(
        "the file cannot be read: truncated or damaged",
        file=path,
        found="".join(reason),
        do="copy or export the file again",
        code="unreadable",
    )
