"""What a client sends becomes files of a job: under names of our own, and no larger than allowed.

Of the name of an uploaded file only the ending is used. An archive may hold one DICOM series, at any depth.
"""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from labelwise.errors import DataError
from labelwise.formats import is_dicom, suffix
from labelwise.serve.limits import Limits

SCANS = (".nii.gz", ".nii", ".nrrd", ".mha")  # formats that keep voxels and header in one file
LABELS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")
_ZIP, _END, _END64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"
_LONGEST_END = 22 + 65535  # bytes of the last record of an archive, with the longest comment
_MOST_DIRECTORY_BYTES = 16 * 2**20  # its table of contents is read into memory
_CHUNK = 2**20
_EXPECTED = f"one file that ends in {', '.join(SCANS)}, or a .zip with a DICOM series"


def store_scan(files: Sequence[tuple[str, BinaryIO]], folder: Path, limits: Limits) -> int:
    """Write the files of one scan, each with the name that the client gave it, into a new folder.

    A file for each channel, in their order; or one archive with a DICOM series, or one DICOM file.

    Returns
        how many files of an archive are no DICOM, and were passed over

    Errors
        DataError   no file, another kind of file, a damaged archive, or one with links, a password or too much in it
    """
    folder.mkdir(mode=0o700)
    if not files:
        raise DataError("the request holds no scan", expected=f"the part 'scan' with {_EXPECTED}")
    for number, (name, file) in enumerate(files):
        begin = file.read(len(_ZIP))
        file.seek(0)
        channel = "scan" if len(files) == 1 else f"scan_{number:04}"
        if begin == _ZIP and len(files) == 1:
            return unpack(file, folder, limits)
        _store(name, file, folder / channel)
    return 0


def store_label(name: str, file: BinaryIO, target: Path) -> Path:
    """Write a label file; the ending of its name is added to that of `target`.

    Errors
        DataError   another kind of file
    """
    if (ending := suffix(name)) not in LABELS:
        raise DataError(
            "this is no label file with a grid",
            found=ending or "a file of another kind, such as bare voxels",
            expected=f"a file that ends in {', '.join(LABELS)}",
            code="unknown-format",
        )
    target = target.with_name(target.name + ending)
    with target.open("xb") as stream:
        shutil.copyfileobj(file, stream, _CHUNK)
    return target


def _store(name: str, file: BinaryIO, target: Path) -> None:
    kind = suffix(name)
    if kind and kind not in SCANS:
        raise DataError(f"files that end in {kind} are not taken", expected=_EXPECTED, code="unknown-format")
    target = target.with_name(target.name + (kind or ".dcm"))
    with target.open("xb") as stream:
        shutil.copyfileobj(file, stream, _CHUNK)
    if not kind and not is_dicom(target):
        raise DataError("the uploaded file is of no known kind", expected=_EXPECTED, code="unknown-format")


def unpack(archive: BinaryIO, folder: Path, limits: Limits) -> int:
    """Write the DICOM files of an archive, numbered; no name of the archive is used. Returns how many are no DICOM.

    Errors
        DataError   damaged, encrypted, with links, with more in it than is allowed, or without DICOM
    """
    _check_directory(archive)
    left, found, passed_over = limits.unpacked_bytes, 0, 0
    try:
        with zipfile.ZipFile(archive) as opened:
            for number, member in enumerate(each for each in opened.infolist() if not each.is_dir()):
                _check_member(member)
                target = folder / f"{number:06}.dcm"
                with opened.open(member) as source:
                    left -= _copy(source, target, left)  # type: ignore[arg-type]
                if is_dicom(target):
                    found += 1
                else:
                    passed_over += 1
                    target.unlink()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of this machine
            raise
        raise DataError("the archive is damaged", do="pack the series again", code="unreadable") from error
    if not found:
        raise DataError("the archive holds no DICOM file", expected=_EXPECTED)
    return passed_over


def _check_directory(archive: BinaryIO) -> None:
    """Refuse a table of contents that would not fit into memory, before it is read."""
    size = archive.seek(0, 2)
    archive.seek(max(0, size - _LONGEST_END))
    tail = archive.read()
    archive.seek(0)
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        raise DataError("the archive is damaged", do="pack the series again", code="unreadable")
    needed = int.from_bytes(tail[place + 12 : place + 16], "little")
    if needed > _MOST_DIRECTORY_BYTES or tail[max(0, place - 20) : place].startswith(_END64):
        raise DataError("the archive holds too many files", do="send one series at a time", code="too-large")


def _check_member(member: zipfile.ZipInfo) -> None:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError("the archive holds a link", do="pack the files themselves")
    if member.flag_bits & 1:
        raise DataError("the archive is encrypted", do="send it without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError("the archive is compressed in a rare way", expected="the usual way of .zip (deflate)")


def _copy(source: BinaryIO, target: Path, left: int) -> int:
    """Bytes that were written; what an archive says of its sizes may be wrong."""
    written = 0
    with target.open("xb") as stream:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > left:
                raise DataError(
                    "the archive unpacks to more than is allowed",
                    do="send one series at a time",
                    code="too-large",
                )
            stream.write(chunk)
    return written
