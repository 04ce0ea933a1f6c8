"""DICOM-SEG: label maps as frames with coded segments, read and written; frames are placed by their position.

Written is the type LABELMAP, one frame for each image with a label, or BINARY, one for each segment of it, where
segments overlap (regions) in any case; read are
both, and FRACTIONAL at half of its greatest value.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

import labelwise
from labelwise.atomic import atomic_path
from labelwise.errors import DataError
from labelwise.formats.concepts import Concept, concepts_of
from labelwise.formats.dicom.header import fingerprint
from labelwise.formats.dicom.reference import (
    Plane,
    Source,
    inside,
    new_uid,
    open_source,
    place,
    understood,
)
from labelwise.formats.geometry import Geometry, check_size
from labelwise.formats.layout import Overlap
from labelwise.formats.segments import Canvas, Tally, empty, in_order, values_of
from labelwise.types import Array

_log = logging.getLogger("labelwise")
logging.getLogger("highdicom").setLevel(logging.WARNING)  # it notes identifiers
_ALGORITHM = "labelwise"
_FAMILY = ("123109", "DCM", "Artificial Intelligence")
_SERIES_NUMBER = 7100  # far from those of scanners


def names(path: Path) -> tuple[str, ...]:
    """The labels of the segments in the order of the file, without the background.

    Errors
        DataError   not a DICOM-SEG, or damaged
    """
    with understood(path):
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        _check_kind(path, data)
        return tuple(dict.fromkeys(_segments(data).values()))


def referenced_series(path: Path) -> str | None:
    """The fingerprint (as of `header.fingerprint`) of the series that was drawn on; None if the file is silent."""
    with understood(path):
        data = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=["ReferencedSeriesSequence"]
        )
        series = data.get("ReferencedSeriesSequence") or []
        return (fingerprint(series[0].get("SeriesInstanceUID")) or None) if series else None


def read(
    path: Path,
    segments: Sequence[str],
    grid: Geometry,
    *,
    overlap: Overlap = "later",
    tally: Tally | None = None,
) -> Array:
    """(I, J, K) on `grid`, axes as stored: the n-th of the named segments becomes n.

    A segment that the file does not hold says nothing. Frames may show only some of the slices, or a part of each.
    Where segments overlap, the later name counts, or the smaller segment.

    Errors
        DataError   damaged file; none of the segments is there; frames without a position, or whose pixels are not
                    voxels of the grid
    """
    with understood(path):
        data = pydicom.dcmread(path, force=True)
        _check_kind(path, data)
        canvas = Canvas(empty(grid, segments, overlap), tally, overlap)
        _fill(path, data, canvas, values_of(path, segments, _segments(data)), grid, overlap)
    return canvas.labels


def _fill(
    path: Path, data: Any, canvas: Canvas, value_of: Mapping[int, int], grid: Geometry, overlap: Overlap
) -> None:
    planes = list(_planes(path, data))
    bits = int(data.BitsAllocated) * int(data.Rows) * int(data.Columns) * len(planes)
    check_size(path, bits // 8, compressed=data.file_meta.TransferSyntaxUID.is_compressed)
    sizes: Counter[int] | None = None
    if overlap == "smaller" and data.SegmentationType != "LABELMAP":
        sizes = Counter()
        for value, _, mask in _masks(data, planes, value_of, sorted(set(value_of.values()))):
            sizes[value] += int(np.count_nonzero(mask))
    placed = outside = 0
    for value, plane, mask in _masks(data, planes, value_of, in_order(set(value_of.values()), sizes)):
        found = place(plane, grid)
        if found is None:
            raise DataError(
                "the frames of the segmentation do not lie on the voxels of the image",
                file=path,
                expected=grid,
                do="use the series that the segmentation was drawn on, or resample the segmentation to its grid",
            )
        if not inside(found, grid):
            outside += 1
            continue
        placed += 1
        view, part = found.window(canvas.labels, plane.shape)
        canvas.draw(value, mask[part], view)
    if outside and not placed:
        raise DataError("the segmentation lies beside the image", file=path, expected=grid)
    if outside:
        _log.warning("%s: %d frames lie outside the image and are left out", path.name, outside)


def _masks(
    data: Any, planes: Sequence[Plane], value_of: Mapping[int, int], order: Sequence[int]
) -> Iterator[tuple[int, Plane, Array]]:
    """Label value, place and mask (rows, columns) of what is wanted, values in the order of `order`."""
    if data.SegmentationType == "LABELMAP":  # no two segments share a pixel
        for plane, frame in zip(planes, pydicom.pixels.iter_pixels(data, raw=True), strict=True):
            for number in np.unique(frame).tolist():
                if number in value_of:
                    yield value_of[number], plane, frame == number
        return
    numbers = _numbers(data, len(planes))
    chosen = [index for index, number in enumerate(numbers) if number in value_of]
    chosen.sort(key=lambda index: order.index(value_of[numbers[index]]))
    least = -(-int(data.get("MaximumFractionalValue") or 1) // 2) if _is_fractional(data) else 1
    if chosen:
        frames = pydicom.pixels.iter_pixels(data, raw=True, indices=chosen)
        for index, frame in zip(chosen, frames, strict=True):
            yield value_of[numbers[index]], planes[index], frame >= least


def _is_fractional(data: Any) -> bool:
    return bool(data.SegmentationType == "FRACTIONAL")


def _check_kind(path: Path, data: Any) -> None:
    if data.get("Modality") != "SEG" or not data.get("SegmentSequence"):
        raise DataError(
            "this is not a DICOM segmentation",
            file=path,
            found=f"modality {data.get('Modality') or 'unknown'}",
        )


def _segments(data: Any) -> dict[int, str]:
    """Segment number -> label; number 0 is the background of a label map."""
    found = {}
    for item in data.SegmentSequence:
        number = int(item.SegmentNumber)
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or [{}]
        label = str(item.get("SegmentLabel") or kinds[0].get("CodeMeaning") or f"segment {number}")
        if number:
            found[number] = label.strip()
    return found


def _planes(path: Path, data: Any) -> Iterator[Plane]:
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    for own in data.get("PerFrameFunctionalGroupsSequence") or []:

        def group(name: str, own: Any = own) -> Any:
            if not (found := own.get(name) or shared.get(name)):
                raise DataError(
                    f"the frames of the segmentation do not say where they lie: {name} is missing",
                    file=path,
                    do="export the segmentation again, from the program that drew it, with plane positions",
                )
            return found[0]

        spacing = group("PixelMeasuresSequence").PixelSpacing
        yield Plane.of(
            group("PlanePositionSequence").ImagePositionPatient,
            group("PlaneOrientationSequence").ImageOrientationPatient,
            (spacing[1], spacing[0]),
            (int(data.Rows), int(data.Columns)),
        )


def _numbers(data: Any, count: int) -> list[int]:
    """The segment that each frame belongs to."""
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = list(data.PerFrameFunctionalGroupsSequence)[:count]
    found = [
        (own.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence"))[0]
        for own in groups
    ]
    return [int(item.ReferencedSegmentNumber) for item in found]


# writing


def write(
    path: Path,
    voxels: Array,
    grid: Geometry,
    like: Path,
    names: Sequence[str],
    *,
    binary: bool = False,
    regions: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write (I, J, K) labels on the stored grid of the series `like`, whole or not at all.

    Arguments
        names   class names by label value; each is a segment, present or not, coded in SNOMED CT where that is known
        binary  the type BINARY instead of LABELMAP, for programs that do not know the latter, which is new
        regions name -> the labels that lie in it: further segments, which overlap the classes, and need BINARY

    Errors
        ConfigError     `like` is not a DICOM series, or no class is named
        DataError       labels without a name; a source series that DICOM cannot refer to
    """
    further = dict(enumerate((regions or {}).values(), start=len(names)))
    concepts = concepts_of(path, [*names, *(regions or {})], voxels)
    source = open_source(like, grid, voxels)
    frames = source.stacked(voxels)
    if further:  # a mask (frames, rows, columns) of each segment
        masks = [np.isin(frames, further.get(value, [value])) for value in concepts]
        frames, concepts = np.stack(masks, axis=-1), dict(enumerate(concepts.values(), start=1))
    elif binary:  # its segments are counted without gaps
        table = np.zeros(max(concepts) + 1, frames.dtype)
        table[list(concepts)] = np.arange(1, len(concepts) + 1)
        frames = table[frames]
        concepts = dict(enumerate(concepts.values(), start=1))
    with atomic_path(path) as temporary:
        with understood(like, "the series has headers that a segmentation cannot refer to"):
            made = _segmentation(source, frames, concepts, binary or bool(further))
        made.save_as(temporary, enforce_file_format=True)


def _segmentation(source: Source, frames: Array, concepts: Mapping[int, Concept], binary: bool) -> Any:
    version = labelwise.__version__
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_ALGORITHM, family=CodedConcept(*_FAMILY), version=version, source=_ALGORITHM
    )
    return Segmentation(
        source_images=source.headers,
        pixel_array=frames,
        segmentation_type="BINARY" if binary else "LABELMAP",
        # Runs of equal labels shrink to nearly nothing; single bits are always stored as they are.
        transfer_syntax_uid=ExplicitVRLittleEndian if binary else RLELossless,
        segment_descriptions=[_description(value, concept, algorithm) for value, concept in concepts.items()],
        series_instance_uid=new_uid(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer=_ALGORITHM,
        manufacturer_model_name=_ALGORITHM,
        software_versions=version,
        device_serial_number="0",
        series_description="Segmentation",
        content_label="SEGMENTATION",
        specific_character_set="ISO_IR 192",
    )


def _description(value: int, concept: Concept, algorithm: Any) -> Any:
    description = SegmentDescription(
        segment_number=value,
        segment_label=concept.name,
        segmented_property_category=CodedConcept(*concept.category),
        segmented_property_type=CodedConcept(*concept.code),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_rgb(*concept.colour),
    )
    if concept.side:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept(*concept.side)]
    return description
