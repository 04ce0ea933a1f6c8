"""RTSTRUCT: structures as closed planar contours, read onto the voxels of the image and traced from label maps.

A voxel belongs to a region if its centre lies inside an odd number of the region's contours in its slice, so that holes
may be contours of their own or be joined by keyholes. Written are keyholes, one contour for each connected part.
"""

from __future__ import annotations

import datetime
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import contourpy
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

import labelwise
from labelwise.atomic import atomic_path
from labelwise.errors import DataError
from labelwise.formats.concepts import Concept, concepts_of
from labelwise.formats.dicom.header import fingerprint
from labelwise.formats.dicom.reference import (
    LPS_TO_RAS,
    WITHIN_VOXELS,
    Picture,
    Source,
    new_uid,
    open_source,
    understood,
)
from labelwise.formats.geometry import Geometry
from labelwise.formats.layout import Overlap
from labelwise.formats.segments import Canvas, Tally, empty, in_order, values_of
from labelwise.types import Array

_log = logging.getLogger("labelwise")
_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired; what PS3.3 C.8.8.5 demands
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_SAME_POINT_MM = 0.01
_SERIES_NUMBER = 7101
# What belongs to the patient and the study, not to the images of the series.
_COPIED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyInstanceUID",
    "StudyDescription",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
Points = NDArray[np.float64]  # (N, 2): column, row


def names(path: Path) -> tuple[str, ...]:
    """The names of the regions in the order of the file.

    Errors
        DataError   not an RTSTRUCT, or damaged
    """
    with understood(path):
        return tuple(dict.fromkeys(_regions(_opened(path)).values()))


def referenced_series(path: Path) -> str | None:
    """The fingerprint (as of `header.fingerprint`) of the series that was drawn on; None if the file is silent."""
    with understood(path):
        for frame in _opened(path).get("ReferencedFrameOfReferenceSequence") or []:
            for study in frame.get("RTReferencedStudySequence") or []:
                for series in study.get("RTReferencedSeriesSequence") or []:
                    return fingerprint(series.get("SeriesInstanceUID")) or None
    return None


def read(
    path: Path,
    segments: Sequence[str],
    grid: Geometry,
    *,
    overlap: Overlap = "later",
    tally: Tally | None = None,
) -> Array:
    """(I, J, K) on `grid`, axes as stored: the n-th of the named regions becomes n.

    A region that the file does not hold says nothing. Where regions overlap, the later name counts, or the smaller
    region. Contours outside the image are left out with a warning, points and open contours too; of the latter the
    tally knows.

    Errors
        DataError   damaged file; none of the regions is there; contours that do not lie in slices of the image
    """
    tally = Tally() if tally is None else tally
    with understood(path):
        data = _opened(path)
        contours = _contours(path, data, values_of(path, segments, _regions(data)), tally)
    pictures, lost = {}, 0
    for value in contours:
        in_voxels = [_in_voxels(points, grid) for points in contours[value]]
        pictures[value], outside = _drawn(path, in_voxels, grid)
        lost += outside
    canvas = Canvas(empty(grid, segments, overlap), tally, overlap)
    sizes = None
    if overlap == "smaller":
        sizes = {
            value: sum(int(mask.sum()) for mask in drawn.masks.values()) for value, drawn in pictures.items()
        }
    for value in in_order(pictures, sizes):
        planes = np.moveaxis(canvas.labels, pictures[value].across, 0)
        for index, mask in pictures[value].masks.items():
            canvas.draw(value, mask, planes[index])
    if lost:
        _log.warning("%s: %d contours lie outside the image and are left out", path.name, lost)
    return canvas.labels


def _opened(path: Path) -> Any:
    data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    if data.get("Modality") != "RTSTRUCT" or "StructureSetROISequence" not in data:
        raise DataError(
            "this is not an RTSTRUCT", file=path, found=f"modality {data.get('Modality') or 'unknown'}"
        )
    return data


def _regions(data: Any) -> dict[int, str]:
    """Number of a region -> its name."""
    return {
        int(item.ROINumber): str(item.get("ROIName") or f"region {item.ROINumber}").strip()
        for item in data.StructureSetROISequence
    }


def _contours(
    path: Path, data: Any, value_of: Mapping[int, int], tally: Tally
) -> dict[int, list[NDArray[np.float64]]]:
    """Label value -> its closed contours, (N, 3) mm in RAS. A contour that stands there twice counts once.

    A ring that comes back to its first point is closed, whatever its type is called. Of an open contour the area is
    not known: something of the structure is lost. A point has no area, and nothing is lost with it.
    """
    found: dict[int, dict[bytes, NDArray[np.float64]]] = defaultdict(dict)
    points_only, open_ones = 0, Counter[int]()
    for item in data.get("ROIContourSequence") or []:
        value = value_of.get(int(item.ReferencedROINumber))
        for contour in (item.get("ContourSequence") or []) if value is not None else []:
            assert value is not None
            points = np.array(contour.get("ContourData") or [], float).reshape(-1, 3)
            if not np.isfinite(points).all():
                raise DataError("a contour holds points that are not numbers", file=path, code="not-finite")
            if len(points) > 3 and contour.get("ContourGeometricType") not in _CLOSED and _returns(points):
                points = points[:-1]
            elif contour.get("ContourGeometricType") == "POINT" or len(points) < 3:
                points_only += 1
                continue
            elif contour.get("ContourGeometricType") not in _CLOSED:
                open_ones[value] += 1
                continue
            found[value].setdefault(points.tobytes(), points * LPS_TO_RAS)
    for value, number in open_ones.items():
        tally.dropped[value] = f"{number} open contour{'' if number == 1 else 's'}"
    if passed_over := points_only + open_ones.total():
        _log.warning("%s: %d points and open contours are passed over", path.name, passed_over)
    return {value: list(contours.values()) for value, contours in found.items()}


def _returns(points: NDArray[np.float64]) -> bool:
    """Whether the last point of a line is its first one, as exactly as files say it."""
    return bool(np.abs(points[0] - points[-1]).max() < _SAME_POINT_MM)


def _in_voxels(points: NDArray[np.float64], grid: Geometry) -> NDArray[np.float64]:
    to_index = np.linalg.inv(grid.affine)
    return np.asarray(points @ to_index[:3, :3].T + to_index[:3, 3])


class _Drawn(NamedTuple):
    across: int  # the axis along which no contour extends
    masks: dict[int, NDArray[np.bool_]]  # index on it -> the pixels inside


def _drawn(path: Path, contours: Sequence[NDArray[np.float64]], grid: Geometry) -> tuple[_Drawn, int]:
    """One region, slice by slice, and how many of its contours lie in no slice."""
    # All contours of a region are drawn across one axis: that along which none of them extends.
    extents = np.max([np.ptp(contour, axis=0) for contour in contours], axis=0)
    across = int(extents.argmin())
    depths = [float(contour[:, across].mean()) for contour in contours]
    slanted = extents[across] > 2 * WITHIN_VOXELS
    if slanted or any(
        abs(depth - round(depth)) > WITHIN_VOXELS for depth in depths if _near(depth, grid, across)
    ):
        raise DataError(
            "the contours do not lie in the slices of the image",
            file=path,
            found="contours across its slices" if slanted else "contours between its slices",
            expected=grid,
            do="use the series that the contours were drawn on",
        )
    polygons: dict[int, list[Points]] = defaultdict(list)
    for contour, depth in zip(contours, depths, strict=True):
        polygons[round(depth)].append(np.delete(contour, across, axis=1)[:, ::-1])
    shape = tuple(size for axis, size in enumerate(grid.shape) if axis != across)
    there = {index: parts for index, parts in polygons.items() if 0 <= index < grid.shape[across]}
    lost = sum(len(parts) for index, parts in polygons.items() if index not in there)
    return _Drawn(across, {index: fill(parts, (shape[0], shape[1])) for index, parts in there.items()}), lost


def _near(depth: float, grid: Geometry, across: int) -> bool:
    return -0.5 <= depth <= grid.shape[across] - 0.5


# writing


def write(path: Path, voxels: Array, grid: Geometry, like: Path, names: Sequence[str]) -> None:
    """Write the outlines of (I, J, K) labels on the stored grid of the series `like`, whole or not at all.

    Arguments
        names   class names by label value; each is a region, present or not

    Errors
        ConfigError     `like` is not a DICOM series, or no class is named
    """
    concepts = concepts_of(path, names, voxels)
    source = open_source(like, grid, voxels)
    with atomic_path(path) as temporary:
        with understood(like, "the series has headers that contours cannot refer to"):
            made = _structure_set(source, voxels, concepts)
        made.save_as(temporary, enforce_file_format=True)


def _structure_set(source: Source, voxels: Array, concepts: Mapping[int, Concept]) -> Dataset:
    first, now = source.headers[0], datetime.datetime.now()
    data = _new_file()
    for keyword in _COPIED:
        if keyword in first:
            setattr(data, keyword, first[keyword].value)
    data.Modality = "RTSTRUCT"
    data.SeriesInstanceUID = new_uid()
    data.SeriesNumber, data.InstanceNumber = _SERIES_NUMBER, 1
    data.SeriesDescription = "Segmentation"
    data.OperatorsName = ""
    data.Manufacturer = data.ManufacturerModelName = "labelwise"
    data.SoftwareVersions = labelwise.__version__
    data.StructureSetLabel = "Segmentation"
    data.StructureSetDate = data.InstanceCreationDate = now.strftime("%Y%m%d")
    data.StructureSetTime = data.InstanceCreationTime = now.strftime("%H%M%S")
    data.ApprovalStatus = "UNAPPROVED"
    data.ReferencedFrameOfReferenceSequence = [_references(source)]
    data.StructureSetROISequence = [_region(value, each, first) for value, each in concepts.items()]
    contours = _contours_of(source, voxels)
    data.ROIContourSequence = [
        _outline(value, each, contours.get(value, ())) for value, each in concepts.items()
    ]
    data.RTROIObservationsSequence = [_observation(value, each) for value, each in concepts.items()]
    return data


def _new_file() -> Dataset:
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = _STORAGE, new_uid()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.preamble = b"\0" * 128
    return data


def _references(source: Source) -> Dataset:
    first = source.headers[0]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_reference(header) for header in source.headers]
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(header: Any, frame: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def _region(value: int, concept: Concept, first: Any) -> Dataset:
    item = Dataset()
    item.ROINumber = value
    item.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
    item.ROIName = concept.name
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _contours_of(source: Source, voxels: Array) -> dict[int, list[Dataset]]:
    """Label value -> its contours, slice by slice."""
    found: dict[int, list[Dataset]] = defaultdict(list)
    for picture in source.pictures:
        labels = picture.place.window(voxels, picture.plane.shape)[0]
        for value, box in enumerate(find_objects(labels), start=1):
            if box:
                corner = (box[1].start, box[0].start)  # column, row
                found[value] += [_contour(part + corner, picture) for part in trace(labels[box] == value)]
    return found


def _outline(value: int, concept: Concept, contours: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(concept.colour)
    item.ReferencedROINumber = value
    if contours:
        item.ContourSequence = list(contours)
    return item


def _contour(polygon: Points, picture: Picture) -> Dataset:
    plane, item = picture.plane, Dataset()
    points = plane.origin + polygon[:, :1] * plane.along + polygon[:, 1:] * plane.down
    item.ContourImageSequence = [
        _reference(picture.header, picture.frame if "NumberOfFrames" in picture.header else None)
    ]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{mm:.5f}" for mm in (points * LPS_TO_RAS).ravel()]
    return item


def _observation(value: int, concept: Concept) -> Dataset:
    item, code = Dataset(), Dataset()
    item.ObservationNumber = item.ReferencedROINumber = value
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = concept.code
    item.RTROIIdentificationCodeSequence = [code]
    item.RTROIInterpretedType = "" if concept.abnormal else "STRUCTURE"
    item.ROIInterpreter = ""
    return item


# polygons of one slice: pixel (row, column) is the point (column, row); its centre decides


def fill(polygons: Sequence[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns): the pixels whose centre lies inside an odd number of the closed polygons.

    Each row is crossed by the edges at exact places; a pixel is inside if an odd number of them lies to its left. So
    holes may be polygons of their own or be joined by a keyhole, whose two coincident edges cancel. A centre exactly on
    an edge belongs to one side only: neighbouring polygons neither overlap nor leave gaps.
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.int64)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        # Always from the lower to the upper end: an edge that is run twice crosses at the same place twice.
        swap = (start[:, 1] > end[:, 1])[:, None]
        low, high = np.where(swap, end, start), np.where(swap, start, end)
        first = np.clip(np.ceil(low[:, 1]), 0, rows).astype(int)
        last = np.clip(np.ceil(high[:, 1]), 0, rows).astype(int)  # one behind
        counts = last - first
        edge = np.repeat(np.arange(len(polygon)), counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        part = (row - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
        x = low[edge, 0] + part * (high[edge, 0] - low[edge, 0])
        np.add.at(crossings, (row, np.clip(np.ceil(x), 0, columns).astype(int)), 1)
    filled: NDArray[np.bool_] = np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
    return filled


def trace(mask: Array) -> list[Points]:
    """One closed polygon for each connected part of a mask (rows, columns), with holes joined by keyholes.

    Marching squares halfway between the centres of pixels inside and outside: `fill` gives back the same mask.
    """
    padded = np.pad(np.asarray(mask, np.float32), 1)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    # For each part the points of all its rings, and where each ring begins; the outer ring is the first.
    found: Any = generator.filled(0.5, 2.0)
    polygons = []
    for part, bounds in zip(*found, strict=True):
        rings = [_corners(part[begin : end - 1]) - 1 for begin, end in pairwise(bounds)]
        polygons.append(_with_keyholes(rings[0], rings[1:]))
    return polygons


def _corners(ring: Points) -> Points:
    """The ring without points on straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(ring[turns])


def _with_keyholes(outer: Points, holes: Sequence[Points]) -> Points:
    """One ring that runs into each hole and back on a line of no width (PS3.3 C.8.8.6.3)."""
    for hole in holes:
        apart, nearest = cKDTree(outer).query(hole)
        there = int(apart.argmin())
        here = int(nearest[there])
        turned = np.roll(hole, -there, axis=0)
        outer = np.concatenate([outer[: here + 1], turned, turned[:1], outer[here:]])
    return outer
