"""The pixels of DICOM files: decoded, and turned from stored words to values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray

from labelwise.errors import DataError
from labelwise.formats.dicom.header import Frame, Pixels, readable
from labelwise.formats.geometry import check_size
from labelwise.types import Array

_JPEG = "1.2.840.10008.1.2.4."
# Decoded by SimpleITK: the decoder of pylibjpeg is GPL. Baseline, extended, lossless, lossless first order.
_BY_SIMPLE_ITK = (_JPEG + "50", _JPEG + "51", _JPEG + "57", _JPEG + "70")
_AIR_HU = -1024
_LARGE = 2.0**15  # whole numbers below it times 16 bits stay within 32
_NEVER_PADDING_HU = (
    -1000,
    3072,
)  # a header that calls such values padding means something else: 0 is often there
_PHYSICAL = ("CT", "PT")  # values with a unit: MONOCHROME1 tells how to show them, not what they mean


def value_type(stored: Iterable[Pixels], frames: Sequence[Frame]) -> np.dtype[Any]:
    """int16 or int32 if the values of all frames are whole numbers that fit, else float32."""
    if any(not (frame.slope.is_integer() and frame.intercept.is_integer()) for frame in frames):
        return np.dtype(np.float32)
    ends = []
    for bits, signed in {(pixels.bits_stored, pixels.signed) for pixels in stored}:
        low = -(2 ** (bits - 1)) if signed else 0
        ends += [low, low + 2**bits - 1]
    scales = {(frame.slope, frame.intercept) for frame in frames}
    values = [end * slope + intercept for end in ends for slope, intercept in scales]
    for kind in (np.int16, np.int32):
        limits = np.iinfo(kind)
        if min(values) >= limits.min and max(values) <= limits.max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def check_length(file: Path, pixels: Pixels, count: int) -> None:
    """Refuse a header that promises more pixels than its file can hold, before they are allocated.

    Errors
        DataError   the file is too short for `count` frames
    """
    num_bytes = count * pixels.rows * pixels.columns * pixels.bits_allocated // 8
    check_size(file, num_bytes, compressed=pixels.compressed)


def read_frames(
    file: Path, pixels: Pixels, frames: Sequence[Frame], modality: str
) -> Iterator[tuple[int, Array]]:
    """The frames of one file, each with its place in `frames`: (rows, columns) values.

    Errors
        DataError   damaged file, too few pixels, or a compression that no installed decoder knows
    """
    stored, rescaled = _stored(file, pixels, max(frame.index for frame in frames) + 1)
    for place, frame in enumerate(frames):
        raw = stored[frame.index]
        yield place, raw if rescaled else _values(raw, pixels, frame, modality)


def same_pixels(first: Frame, second: Frame) -> bool:
    """Whether two files of one frame hold the same pixels, byte by byte, and the same scale."""
    if first.index or second.index or first.file == second.file:
        return False
    contents = []
    for frame in (first, second):
        with readable(frame.file):
            data = pydicom.dcmread(frame.file, force=True, specific_tags=["PixelData"])
            contents.append((frame.slope, frame.intercept, data.PixelData))
    return bool(contents[0] == contents[1])


def _stored(file: Path, pixels: Pixels, count: int) -> tuple[Array, bool]:
    """(frames, rows, columns), and whether the values are rescaled already."""
    shape = (count, pixels.rows, pixels.columns)
    with readable(file):
        data = pydicom.dcmread(file, force=True)
        if not pixels.compressed:
            big = data.original_encoding[1] is False
            words = np.frombuffer(data.PixelData, pixels.dtype.newbyteorder(">" if big else "<"))
            return words[: prod(shape)].reshape(shape), False
        try:
            syntax = data.file_meta.TransferSyntaxUID
            by_itk = syntax in _BY_SIMPLE_ITK
            found = _decoded_by_itk(file) if by_itk else pydicom.pixels.pixel_array(data, raw=True)
        except RuntimeError as error:
            # What pydicom says about missing decoders names packages only; the rest of its words is not repeated.
            if "missing dependencies" not in str(error):
                raise
            raise DataError(
                "no decoder for the compression of this DICOM file is installed",
                file=file,
                found=f"transfer syntax {syntax.name}",
                do="pip install 'labelwise[dicom]'; or decompress the files, for example with dcmdjpeg or gdcmconv",
            ) from None
        return found.reshape(-1, *shape[1:])[:count].reshape(shape), by_itk


def _decoded_by_itk(file: Path) -> Array:
    """(K, J, I) values: slope and intercept are applied."""
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        values: Array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="GDCMImageIO"))
        return values
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)


def _values(raw: Array, pixels: Pixels, frame: Frame, modality: str) -> Array:
    """Stored words -> values: unused bits cleared, MONOCHROME1 turned, rescaled, padding replaced."""
    words = raw if pixels.compressed else _used_bits(raw, pixels)
    values = words
    if pixels.inverted and modality not in _PHYSICAL:
        low = -(2 ** (pixels.bits_stored - 1)) if pixels.signed else 0
        values = 2 * low + 2**pixels.bits_stored - 1 - values.astype(np.int64)
    values = _scaled(values, frame.slope, frame.intercept)
    if pixels.padding is None or not _is_padding(pixels.padding, frame, modality):
        return values
    # The raw word counts too: a padding value may lie outside the bits that are said to be used.
    padded = _between(words, *pixels.padding) | _between(raw, *pixels.padding)
    return np.where(padded, _AIR_HU if modality == "CT" else 0, values) if padded.any() else values


def _used_bits(raw: Array, pixels: Pixels) -> Array:
    above = pixels.bits_allocated - 1 - pixels.high_bit
    below = pixels.high_bit + 1 - pixels.bits_stored
    if not (above or below):
        return raw
    return (raw << above) >> (
        above + below
    )  # to the top and back: drops what is no part of the number, keeps the sign


def _scaled(values: Array, slope: float, intercept: float) -> Array:
    if (slope, intercept) == (1, 0):
        return values
    if slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < _LARGE:
        return values.astype(np.int64 if values.itemsize > 2 else np.int32) * int(slope) + int(intercept)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite voxels are refused by the caller
        return values * np.float64(slope) + intercept


def _is_padding(padding: tuple[int, int], frame: Frame, modality: str) -> bool:
    low, high = _NEVER_PADDING_HU
    ends = [end * frame.slope + frame.intercept for end in padding]
    return modality != "CT" or all(not low < end < high for end in ends)


def _between(values: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    return (values >= low) & (values <= high)
