"""Arrays and JSON on disk with checksums (CRC-32): a flipped bit is noticed before anything of it is used.

Each chunk has a checksum of its own, so that reading a patch costs no pass over the file: a chunk is checked when a
process reads it first. What is not in a chunk (head and table of the file) is checked when the file is opened. A JSON
file holds its content and the checksum of that.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from labelwise.documents import read_json
from labelwise.types import Array

_SUM, _CONTENT = "checksum", "content"


def sealed(content: Any) -> dict[str, Any]:
    """A value for JSON, with its checksum."""
    content = json.loads(json.dumps(content))  # as it is going to be read: keys are text
    return {_SUM: _sum_of(content), _CONTENT: content}


def read_sealed(file: Path) -> Any:
    """The content of a JSON file that holds what `sealed` gave; of an earlier version without a checksum, all of it.

    Errors
        OSError, ValueError     the file cannot be read, or its checksum does not fit
    """
    document = read_json(file)
    if not isinstance(document, dict) or not {_SUM, _CONTENT} & set(document):
        return document
    if document.get(_SUM) != _sum_of(document.get(_CONTENT)):
        raise ValueError(f"{file.name}: the checksum does not fit")
    return document[_CONTENT]


def _sum_of(content: Any) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def array_sums(packed: blosc2.NDArray, frame: bytes) -> dict[str, Any]:
    """The checksums of an array, and of the bytes of its file (`frame`) that are in no chunk."""
    begin = end = inside = 0
    sums = []
    for number in range(packed.schunk.nchunks):
        chunk = bytes(packed.schunk.get_chunk(number))
        sums.append(zlib.crc32(chunk))
        # A chunk of equal voxels has no bytes of its own: the table says all of it.
        if (place := frame.find(chunk, end)) >= 0:
            begin, end, inside = begin or place, place + len(chunk), inside + len(chunk)
    if inside != end - begin:  # something else lies between the chunks: then all is checked at once
        begin = end = 0
    return {
        "chunks": sums,
        "between": [begin, end],
        "rest": zlib.crc32(frame[end:], zlib.crc32(frame[:begin])),
    }


class CheckedArray:
    """An array on disk, open for reading.

    Errors
        ValueError      a checksum does not fit (when opened, and in `read`)
    """

    def __init__(self, path: Path, sums: dict[str, Any]):
        self._name = path.name
        _check_rest(path, sums)
        # Mapping files is unreliable under Windows; plain reads give the same values.
        mapping = None if os.name == "nt" else "r"
        self._array: Any = blosc2.open(str(path), mode="r", mmap_mode=mapping, dparams={"nthreads": 1})
        sizes = zip(self._array.shape, self._array.chunks, strict=True)
        self._grid = tuple(-(-size // chunk) for size, chunk in sizes)
        self._sums = np.reshape(np.array(sums["chunks"], dtype=np.int64), self._grid)
        self._unread = np.ones(self._grid, dtype=bool)
        self._all_read = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored numbers."""
        found: np.dtype[Any] = self._array.dtype
        return found

    def read(self, low: Sequence[int], high: Sequence[int]) -> Array:
        """The part from `low` to `high` (exclusive) of the last axes, whole along the others."""
        leading = len(self._grid) - len(low)
        if not self._all_read:
            inner = zip(low, high, self._array.chunks[leading:], strict=True)
            part = (slice(None),) * leading + tuple(slice(a // size, -(-b // size)) for a, b, size in inner)
            if self._unread[part].any():
                self._check(part)
        whole = self._array.shape[:leading]
        start, stop = [0] * leading + [*low], [*whole, *high]
        found = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        # What `[]` of blosc2 ends in, without its keys of all kinds: they take as long as unpacking a small patch.
        self._array.get_slice_numpy(found, (start, stop))
        return found

    def _check(self, part: tuple[slice, ...]) -> None:
        new = np.zeros_like(self._unread)
        new[part] = self._unread[part]
        for number in np.flatnonzero(new).tolist():
            if zlib.crc32(self._array.schunk.get_chunk(number)) != self._sums.flat[number]:
                raise ValueError(f"{self._name}: the checksum of chunk {number} does not fit")
        self._unread[part] = False
        self._all_read = not self._unread.any()


def _check_rest(path: Path, sums: dict[str, Any]) -> None:
    begin, end = sums["between"]
    with path.open("rb") as file:
        found = zlib.crc32(file.read(begin))
        file.seek(end)
        found = zlib.crc32(file.read(), found)
    if found != sums["rest"]:
        raise ValueError(f"{path.name}: the checksum of its head and table does not fit")
