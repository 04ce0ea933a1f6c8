"""What the header of a DICOM file says about its frames. Nothing that tells who the patient is leaves this module.

Identifiers (patient, study, series, frame of reference) are kept as fingerprints: two are equal or not, and no
message can show them. pydicom quotes values in its warnings and errors, so it is made silent here, and its words are
not repeated.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.errors import DataError, ResourceError
from labelwise.formats import stored
from labelwise.formats.once import once_per_file

try:
    import pydicom
except ImportError as error:
    raise ResourceError(
        "DICOM files need packages that are not installed",
        do="pip install 'labelwise[dicom]'",
        code="extra-missing",
    ) from error

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it writes the values of tags
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # likewise

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    struct.error,
    pydicom.errors.InvalidDicomError,
    pydicom.errors.BytesLengthException,
)
"""What pydicom and its decoders raise on damaged files. Their texts may hold patient data: never repeat them."""

# What tells apart images at one place: phases, time points, echoes, diffusion weights, magnitude and phase.
TELLING = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "TriggerTime",
    "ImageType",
    "AcquisitionTime",
    "ContentTime",
)
_OF_SERIES = (
    "Modality",
    "SOPClassUID",
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "FrameOfReferenceUID",
    "ReferencedFrameOfReferenceSequence",
)
_OF_PLACE = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "NumberOfFrames",
)
_OF_PIXELS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "PlanarConfiguration",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
_TAGS = [*dict.fromkeys((*TELLING, *_OF_SERIES, *_OF_PLACE, *_OF_PIXELS))]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_ALWAYS_IMAGES = {
    _STORAGE + kind for kind in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")
}  # CT, MR, PET
_SECONDARY_CAPTURE = _STORAGE + "7"  # and its multi-frame kinds .1 to .4
Vector = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One image plane: where it lies, and what its stored values mean."""

    file: Path
    index: int  # in the file, from 0
    position: Vector  # (3,) mm LPS, centre of the first pixel
    orientation: Vector  # (6,) directions in which columns and rows are counted, LPS
    spacing: Vector  # (2,) mm between columns, between rows
    thickness: float  # mm, or 0 if not given
    slope: float
    intercept: float
    telling: tuple[str, ...]  # values of TELLING


@dataclass(frozen=True)
class Pixels:
    """How the pixels of a file are stored."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    compressed: bool
    inverted: bool  # MONOCHROME1
    padding: tuple[int, int] | None  # stored values, both ends included, of pixels that hold no measurement

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the allocated words, little endian."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.bits_allocated // 8}")


@dataclass(frozen=True)
class Header:
    """The facts of one file. `problem` says why its frames cannot be used, `passed_over` why they are seldom wanted."""

    file: Path
    modality: str
    instance: str  # fingerprints: SOP instance, patient, study, series, frame of reference
    patient: str
    study: str
    series: str
    frame_of_reference: str
    number: str  # of the series
    pixels: Pixels | None  # None: not an image
    frames: tuple[Frame, ...] = field(repr=False)
    problem: str = ""
    passed_over: str = ""


def fingerprint(identifier: object) -> str:
    """16 hexadecimal digits that stand for an identifier, or an empty string for an empty one."""
    text = str(identifier or "").strip().strip("\0")
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


@once_per_file
def read_header(file: Path) -> Header:
    """The facts of a file.

    Errors
        DataError   not a DICOM file, or damaged
    """
    if not file.exists():
        raise DataError("there is no such file", file=file, do="correct its path", code="not-found")
    with readable(file), file.open("rb") as opened:
        if not stored.begins_as_dicom(opened):
            raise DataError("this is no DICOM file", file=file, do="name another file", code="no-dicom")
        data = pydicom.dcmread(opened, stop_before_pixels=True, force=True, specific_tags=_TAGS)
        return _header(file, data)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Silence, and one error for everything that can be wrong with a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UNREADABLE:
            raise DataError(
                "the DICOM file cannot be read: truncated, damaged, or not an image that is understood",
                file=file,
                do="copy or export the file again; or move it out of the folder of the scan",
                code="unreadable",
            ) from None


# headers


def _header(file: Path, data: Any) -> Header:
    references = data.get("ReferencedFrameOfReferenceSequence") or [data]
    names = (data.get("SOPInstanceUID"), data.get("PatientID"), data.get("StudyInstanceUID"))
    instance, patient, study = map(fingerprint, names)
    pixels, problem = _pixels(data)
    frames: tuple[Frame, ...] = ()
    if pixels is not None and not problem:
        frames = _enhanced(file, data) if "PerFrameFunctionalGroupsSequence" in data else _classic(file, data)
        problem = "" if frames else _why_no_frames(data)
    return Header(
        file,
        str(data.get("Modality") or "").upper(),
        instance,
        patient,
        study,
        fingerprint(data.get("SeriesInstanceUID")),
        fingerprint(data.get("FrameOfReferenceUID") or references[0].get("FrameOfReferenceUID")),
        str(data.get("SeriesNumber") or ""),
        pixels,
        frames,
        problem,
        _passed_over(data),
    )


def _pixels(data: Any) -> tuple[Pixels | None, str]:
    meta = getattr(data, "file_meta", {})
    if not data.get("Rows") or not data.get("Columns") or data.get("Modality") in ("SEG", "RTSTRUCT"):
        kind = data.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
        if kind in _ALWAYS_IMAGES:  # cut off before the size of the image
            raise EOFError
        return None, ""
    allocated, signed = int(data.get("BitsAllocated") or 16), bool(data.get("PixelRepresentation"))
    stored = int(data.get("BitsStored") or allocated)
    high, colour = data.get("HighBit"), str(data.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    syntax = str(meta.get("TransferSyntaxUID") or "")
    pixels = Pixels(
        int(data.Rows),
        int(data.Columns),
        allocated,
        stored,
        stored - 1 if high is None else int(high),
        signed,
        bool(syntax) and pydicom.uid.UID(syntax).is_compressed,
        colour == "MONOCHROME1",
        _padding(data, signed, allocated),
    )
    if int(data.get("SamplesPerPixel") or 1) != 1 or not colour.startswith("MONOCHROME"):
        return pixels, "colour images"
    if (
        allocated not in (8, 16, 32)
        or not 1 <= stored <= allocated
        or not stored - 1 <= pixels.high_bit < allocated
    ):
        return pixels, "pixels of an unusual number of bits"
    return pixels, ""


def _padding(data: Any, signed: bool, bits: int) -> tuple[int, int] | None:
    value = data.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = data.get("PixelPaddingRangeLimit")
    ends = [_wrapped(end, signed, bits) for end in (value, value if limit in (None, "") else limit)]
    return min(ends), max(ends)


def _wrapped(value: Any, signed: bool, bits: int) -> int:
    """The value as a word of the pixels: some writers give it with the other sign."""
    number: int = (int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)) % 2**bits
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def _classic(file: Path, data: Any) -> tuple[Frame, ...]:
    """The one frame of a file; none if it has no place."""
    if int(data.get("NumberOfFrames") or 1) != 1:
        return ()
    return _frame(file, 0, data, data, data, data, tuple(str(data.get(name) or "") for name in TELLING))


def _enhanced(file: Path, data: Any) -> tuple[Frame, ...]:
    """The frames of a multi-frame file, from its shared and per-frame functional groups."""
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    frames: list[Frame] = []
    for index, own in enumerate(data.PerFrameFunctionalGroupsSequence):

        def group(name: str, own: Any = own) -> Any:
            return (own.get(name) or shared.get(name) or [{}])[0]

        place, plane = group("PlanePositionSequence"), group("PlaneOrientationSequence")
        measures, scale = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
        content, kind = group("FrameContentSequence"), group("CTImageFrameTypeSequence")
        echo, diffusion = group("MREchoSequence"), group("MRDiffusionSequence")
        telling = (
            content.get("FrameAcquisitionNumber"), content.get("TemporalPositionIndex"), content.get("StackID"),
            echo.get("EffectiveEchoTime"), diffusion.get("DiffusionBValue"), "", kind.get("FrameType"), "", "",
        )  # fmt: skip
        found = _frame(file, index, place, plane, measures, scale, tuple(str(each or "") for each in telling))
        if not found:
            return ()
        frames += found
    return tuple(frames) if len(frames) == int(data.get("NumberOfFrames") or 1) else ()


def _frame(
    file: Path, index: int, place: Any, plane: Any, measures: Any, scale: Any, telling: tuple[str, ...]
) -> tuple[Frame, ...]:
    position = _numbers(place.get("ImagePositionPatient"), 3)
    orientation = _numbers(plane.get("ImageOrientationPatient"), 6)
    spacing = _numbers(measures.get("PixelSpacing"), 2)
    if not (position and orientation and spacing) or min(spacing) <= 0:
        return ()
    slope, intercept = scale.get("RescaleSlope"), scale.get("RescaleIntercept")
    return (
        Frame(
            file,
            index,
            position,
            orientation,
            spacing[::-1],  # stored: between rows first
            abs(float(measures.get("SliceThickness") or 0)),
            1.0 if slope in (None, "") else float(slope),
            0.0 if intercept in (None, "") else float(intercept),
            telling,
        ),
    )


def _numbers(values: Any, count: int) -> Vector:
    """The values as numbers, or nothing if they are not that many finite ones."""
    if values is None or isinstance(values, str) or len(values) != count:
        return ()
    numbers = tuple(float(value) for value in values)
    return numbers if np.isfinite(numbers).all() else ()


def _why_no_frames(data: Any) -> str:
    if int(data.get("NumberOfFrames") or 1) > 1:
        return "several frames in one file that do not all say where they lie"
    return "no position, orientation or spacing of the pixels"


def _passed_over(data: Any) -> str:
    words = {str(word).strip().upper() for word in _as_list(data.get("ImageType"))}
    if any(word.startswith(("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY")) for word in words):
        return "a localiser"
    if str(data.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE) or "SCREEN SAVE" in words:
        return "a secondary capture"
    if "DERIVED" in words and any(_reformatted(word) for word in words):
        return "a reformatted or projected series"
    return ""


def _reformatted(word: str) -> bool:
    return any(part in word for part in ("MPR", "REFORMAT", "PROJECTION", "MIP", "CURVED", "VRT", "VOLREN"))


def _as_list(values: Any) -> list[Any]:
    if values is None or isinstance(values, str):
        return [values or ""]
    return list(values)
