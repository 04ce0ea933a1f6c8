"""The store: prepared scans on disk, of which a patch is read without reading the scan.

    store/
        plan.json                   how the scans were prepared
        index.json                  case id -> name of its folder
        cases/<content hash>/
            image.b2nd              (M, X, Y, Z) float16, or float32 where that would be too coarse
            labels.b2nd             (X, Y, Z) uint8 class indices or IGNORE; missing if there is no label file
            points.safetensors      voxels of each structure, int32 (N, 3): where patches may be centred; 0 names any
                                    labelled voxels of a scan that is annotated in parts only
            case.json               shape, spacing, undo, sizes and checksums of the files, share of labelled voxels
            checksum                that of case.json

A folder is named by what went into it, so it never has to be changed: a scan, its label file or the plan
changed, and the name changes too. It appears complete or not at all.

Labels are stored as the label file gives them, before any structure is hidden. One store therefore serves every
manifest that `simulate` makes of a data set: what a case does not know is erased when a patch is read.

Every byte has a checksum (CRC-32), which is compared when it is read first: see `labelwise.loading.checked`.

Precision: float16 keeps 11 bits, a relative error of at most 0.05 %, which is far below the noise of a scan.
Beyond +-2048 it could no longer hold every whole number, so such images (raw HU) are kept as float32; and so
are images whose contrast is small beside their values, or that are so small that float16 runs out of digits.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from labelwise.atomic import atomic_path, write_json, write_new_json
from labelwise.documents import read_json
from labelwise.errors import DataError
from labelwise.loading.checked import CheckedArray, array_sums, read_sealed, sealed
from labelwise.preprocess.pipeline import Plan, Undo
from labelwise.preprocess.resample import resample_labels
from labelwise.types import IGNORE, SPARSE_FROM, Array, Volume

FORMAT = 2
IMAGE, LABELS, POINTS = "image.b2nd", "labels.b2nd", "points.safetensors"
FACTS, CHECKSUM = "case.json", "checksum"
POINTS_PER_CLASS = 1000
CHUNK = (64, 64, 64)  # what is compressed together
BLOCK = (16, 32, 32)  # what is decompressed together
# LZ4 unpacks three times as fast as Zstandard, and its thorough form LZ4HC makes files a sixth smaller than LZ4:
# on the LA scans 38 MB, where Zstandard needs 27 and no compression 48. High and low bytes of the floats are
# compressed apart; labels are read 3 times faster as they are.
_CODEC, _LEVEL = blosc2.Codec.LZ4HC, 9
_BYTES_APART, _PLAIN = blosc2.Filter.SHUFFLE, blosc2.Filter.NOFILTER
AS_STORED = np.arange(256, dtype=np.uint8)  # the table of someone who knows every class
FLOAT16_WHOLE_NUMBERS = 2048.0
MOST_ROUNDING = 0.01  # mean error of float16, as a part of the standard deviation of the scan
# An open case holds two file descriptors, and 1024 per process is a usual limit.
MAX_OPEN_CASES = 200

Corner = tuple[int, int, int]


def annotated_table(annotated: Array) -> Array:
    """(256,) uint8: what a stored label says to someone who knows only the `annotated` (C,) classes.

    Structures that are not annotated become 0, and so do regions, whose classes are not told apart; without any
    annotated structure everything becomes IGNORE.
    """
    table = AS_STORED.copy()
    table[1 : len(annotated)][~annotated[1:]] = 0
    table[len(annotated) : IGNORE] = 0
    return table if annotated.any() else np.full_like(table, IGNORE)


class StoredCase:
    """A prepared scan, open for reading. Belongs to one process: do not pickle it, ask the `Store` for it.

    Errors
        DataError   a file is missing or damaged (in every method)
    """

    def __init__(self, folder: Path, case_id: str = ""):
        self.folder = folder
        self.case_id = case_id
        with self._reporting_damage():
            facts = read_facts(folder)
            self.shape: Corner = tuple(facts["shape"])
            self.spacing_mm: tuple[float, float, float] = tuple(facts["spacing_mm"])
            self.modalities: int = facts["modalities"]
            self.missing: tuple[int, ...] = tuple(facts.get("missing", ()))  # those that were not taken
            self.has_labels: bool = LABELS in facts["sizes"]
            self._undo: Any = facts["undo"]
            self._checksums: dict[str, Any] = facts["checksums"]
            self._slices: dict[str, tuple[int, int]] | None = facts.get("slices")
            self.is_sparse: bool = self.has_labels and facts["known"] <= 1 - SPARSE_FROM

    @cached_property
    def undo(self) -> Undo:
        """How a label map of this scan gets back to the grid of the file."""
        return Undo.from_json(self._undo)

    @cached_property
    def places(self) -> tuple[Array, Array, Array]:
        """Along each axis, which voxel of the scan the labels of a prepared voxel come from (`resample_labels`)."""
        kept = zip(self.undo.start, self.undo.stop, self.shape, strict=True)
        x, y, z = (
            low + resample_labels(np.arange(high - low)[:, None, None], (size, 1, 1)).ravel()
            for low, high, size in kept
        )
        return x, y, z

    @cached_property
    def points(self) -> dict[int, Array]:
        """Class index -> (N, 3) int32 voxels of that structure; of all structures in the file, also hidden ones.

        Where the scan is annotated in parts only, 0 names labelled voxels of any class.
        """
        with self._reporting_damage():
            content = (self.folder / POINTS).read_bytes()
            if zlib.crc32(content) != self._checksums[POINTS]:
                raise ValueError(f"{POINTS}: the checksum does not fit")
            return {int(name): points for name, points in load(content).items()}

    @property
    def slices(self) -> dict[int, tuple[int, int]]:
        """Class index -> first and last slice along z that holds it, of all structures in the file.

        Errors
            DataError   the scan was prepared before this was noted
        """
        if self._slices is None:
            raise DataError(
                "the prepared scan does not say which slices hold which structure",
                case=self.case_id or None,
                file=self.folder,
                do="delete the store and repeat `labelwise prepare`, or set sampling.slices = 'all'",
            )
        return {int(index): ends for index, ends in self._slices.items()}

    def read_image(self, corner: Corner, out: Array) -> None:
        """Fill `out` (M, *size) float32 with the patch that begins at `corner`; 0 beyond the scan.

        0 is the mean intensity after normalisation, and what the sliding window pads with.
        """
        with self._reporting_damage():
            _read(self._image, self.shape, corner, out, fill=0)

    def read_labels(self, corner: Corner, out: Array, table: Array) -> None:
        """Fill `out` (*size) uint8 with labels seen through `annotated_table`; IGNORE beyond the scan."""
        seen_as = table.tobytes()
        seen = self._values.translate(seen_as)
        if not self.has_labels or seen == bytes([IGNORE]) * len(seen):
            out.fill(IGNORE)
            return
        changed = None if seen == self._values else seen_as
        with self._reporting_damage():
            _read(self._labels, self.shape, corner, out, fill=IGNORE, table=changed)

    def image(self) -> Array:
        """(M, X, Y, Z) float32, the whole scan."""
        out = np.empty((self.modalities, *self.shape), np.float32)
        self.read_image((0, 0, 0), out)
        return out

    def labels(self, table: Array) -> Array:
        """(X, Y, Z) uint8, the whole label map seen through `table`."""
        out = np.empty(self.shape, np.uint8)
        self.read_labels((0, 0, 0), out, table)
        return out

    @cached_property
    def _values(self) -> bytes:
        """What may stand in the label file."""
        return AS_STORED.tobytes() if self._slices is None else bytes([0, *map(int, self._slices), IGNORE])

    @cached_property
    def _image(self) -> CheckedArray:
        return CheckedArray(self.folder / IMAGE, self._checksums[IMAGE])

    @cached_property
    def _labels(self) -> CheckedArray:
        return CheckedArray(self.folder / LABELS, self._checksums[LABELS])

    @contextmanager
    def _reporting_damage(self) -> Iterator[None]:
        try:
            yield
        # blosc2 raises RuntimeError for files it cannot open and for blocks it cannot decompress.
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                "the prepared scan is damaged or only half there",
                case=self.case_id or None,
                file=self.folder,
                found=f"{type(error).__name__}: {error}",
                do="delete this folder and repeat `labelwise prepare`; the other scans are kept",
                code="unreadable",
            ) from error


class Store:
    """A folder of prepared scans. Opens a scan when it is asked for; each process opens its own.

    Example
        store = Store("my_data/store")
        patch = np.empty((1, 64, 64, 48), np.float32)
        store.case("patient_007").read_image((10, 20, 0), patch)
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._open: dict[str, StoredCase] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # The index goes along: a worker must see what this process sees, whatever others enter meanwhile.
        index = {"keys": self.keys} if "keys" in vars(self) else {}
        return {"folder": self.folder, "_open": {}, "_process": -1, **index}

    @cached_property
    def keys(self) -> dict[str, str]:
        """Case id -> content hash of all prepared scans."""
        keys: dict[str, str] = self._read_json("index.json")
        return keys

    @property
    def plan(self) -> Plan:
        """How the scans were prepared."""
        return Plan.from_json(self._read_json("plan.json"))

    def case(self, case_id: str) -> StoredCase:
        """The prepared scan of a case.

        Errors
            DataError   the case was not prepared, or its folder is damaged
        """
        if self._process != os.getpid():  # handles do not survive a fork
            self._open, self._process = {}, os.getpid()
        found = self._open.pop(case_id, None) or self._opened(case_id)
        self._open[case_id] = found  # at the end: the first entry is the one not used for longest
        if len(self._open) > MAX_OPEN_CASES:
            del self._open[next(iter(self._open))]
        return found

    def case_folder(self, key: str) -> Path:
        """Where the scan with this content hash lies."""
        return self.folder / "cases" / key

    def has(self, key: str) -> bool:
        """Is the scan with this content hash there, and are its files as long as they were written?"""
        try:
            read_facts(self.case_folder(key))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def set_plan(self, plan: Plan) -> None:
        """Say how the scans are prepared; the file is left alone if it says so already."""
        path = self.folder / "plan.json"
        if not path.exists() or self.plan != plan:
            write_json(path, sealed(plan.to_json()))

    def begin(self, plan: Plan) -> Plan:
        """Say how the scans of a new store are prepared; of several programs that begin it, the first decides."""
        return plan if write_new_json(self.folder / "plan.json", sealed(plan.to_json())) else self.plan

    def add_keys(self, keys: Mapping[str, str]) -> None:
        """Enter prepared scans into the index."""
        known = self.keys if (self.folder / "index.json").exists() else {}
        self.keys = known | dict(keys)
        self._open.clear()
        if self.keys != known:
            write_json(self.folder / "index.json", sealed(self.keys))

    def _opened(self, case_id: str) -> StoredCase:
        if case_id not in self.keys:
            raise DataError(
                "the case is not in the store", case=case_id, file=self.folder, do="run `labelwise prepare`"
            )
        return StoredCase(self.case_folder(self.keys[case_id]), case_id)

    def _read_json(self, name: str) -> Any:
        try:
            return read_sealed(self.folder / name)
        except (OSError, ValueError) as error:
            raise DataError(
                "this is not a store of prepared scans, or it is not finished",
                file=self.folder / name,
                found=f"{type(error).__name__}: {error}",
                do="delete this file if it is there, and run `labelwise prepare`; prepared scans are kept",
            ) from error


def write_case(
    folder: Path, image: Volume, labels: Volume | None, undo: Undo, missing: Sequence[int] = ()
) -> None:
    """Write one prepared scan: image (M, X, Y, Z) float32, labels (X, Y, Z) uint8 or None. All or nothing.

    `missing` are the numbers of the channels that were not taken, and are 0.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        image_sums = _write_array(temporary / IMAGE, _in_stored_type(image.data), _BYTES_APART)
        points: dict[int, Array] = {}
        slices: dict[int, tuple[int, int]] = {}
        known, sums = 0.0, {IMAGE: image_sums}
        if labels is not None:
            known = float((labels.data != IGNORE).mean())
            sums[LABELS] = _write_array(temporary / LABELS, labels.data.astype(np.uint8, copy=False), _PLAIN)
            slices = label_slices(labels.data)
            points = label_points(labels.data, seed=_seed(folder.name), in_parts=known <= 1 - SPARSE_FROM)
        # Not by `save_file`, which hides the errors of the system as well.
        packed = save({str(index): voxels for index, voxels in points.items()})
        (temporary / POINTS).write_bytes(packed)
        facts = {
            "format": FORMAT,
            "shape": list(image.shape),
            "modalities": image.data.shape[0],
            "missing": list(missing),
            "spacing_mm": list(image.spacing_mm),
            "undo": undo.to_json(),
            "known": known,
            "slices": slices,
            "sizes": {file.name: file.stat().st_size for file in sorted(temporary.iterdir())},
            "checksums": {**sums, POINTS: zlib.crc32(packed)},
            "versions": {"blosc2": blosc2.__version__, "numpy": np.__version__},
        }
        write_json(temporary / FACTS, facts)
        (temporary / CHECKSUM).write_bytes(_checksum_of(temporary / FACTS))


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of case.json; a ValueError or OSError if it is damaged, or a file beside it is missing or cut."""
    if _checksum_of(folder / FACTS) != (folder / CHECKSUM).read_bytes():
        raise ValueError(f"{FACTS}: the checksum does not fit")
    facts: dict[str, Any] = read_json(folder / FACTS)
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, this version of labelwise reads format {FORMAT}")
    for name, size in facts["sizes"].items():
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
    return facts


def label_points(
    labels: Array, *, seed: int, limit: int = POINTS_PER_CLASS, in_parts: bool = False
) -> dict[int, Array]:
    """Class index -> (N, 3) int32: up to `limit` random voxels of every structure in (X, Y, Z) `labels`.

    For a scan that is annotated `in_parts`, 0 names labelled voxels of any class.
    """
    flat = labels.ravel()
    where = np.flatnonzero((flat > 0) & (flat < IGNORE))
    order = np.argsort(flat[where], kind="stable")  # a radix sort for bytes
    indices, first = np.unique(flat[where][order], return_index=True)
    found = dict(zip(indices.tolist(), np.split(where[order], first[1:]), strict=False))
    generator = np.random.default_rng(seed)
    if in_parts and (labelled := np.flatnonzero(flat != IGNORE)).size:
        found[0] = labelled
    points = {}
    for index, voxels in found.items():
        chosen = generator.choice(voxels, min(limit, len(voxels)), replace=False)
        points[index] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
    return points


def label_slices(labels: Array) -> dict[int, tuple[int, int]]:
    """Class index -> first and last slice along z that holds it, in (X, Y, Z) `labels` uint8."""
    seen = np.zeros((256, labels.shape[2]), bool)
    seen[labels, np.arange(labels.shape[2])] = True
    structures = np.flatnonzero(seen[1:IGNORE].any(axis=1)) + 1
    first, last = seen.argmax(axis=1), labels.shape[2] - 1 - seen[:, ::-1].argmax(axis=1)
    return {int(structure): (int(first[structure]), int(last[structure])) for structure in structures}


def _in_stored_type(image: Array) -> Array:
    """The image as float16 if that loses no contrast, else as float32."""
    exact = image.astype(np.float32, copy=False)
    if max(-float(exact.min()), float(exact.max())) > FLOAT16_WHOLE_NUMBERS:
        return exact
    rounded = exact.astype(np.float16)
    error = float(np.abs(rounded - exact).mean())
    return rounded if error <= MOST_ROUNDING * float(exact.std()) else exact


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def _checksum_of(file: Path) -> bytes:
    return f"{zlib.crc32(file.read_bytes()):08x}\n".encode()


def _write_array(path: Path, array: Array, blosc_filter: blosc2.Filter) -> dict[str, Any]:
    """Write an array; returns its checksums."""
    leading = (1,) * (array.ndim - 3)
    chunk = tuple(min(sides) for sides in zip(leading + CHUNK, array.shape, strict=True))
    block = tuple(min(sides) for sides in zip(leading + BLOCK, chunk, strict=True))
    compression = {
        "codec": _CODEC, "clevel": _LEVEL, "filters": [blosc_filter], "nthreads": 1,
    }  # fmt: skip
    packed = blosc2.asarray(
        np.ascontiguousarray(array), chunks=chunk, blocks=block, cparams=compression, contiguous=True
    )
    # Not by blosc2 itself: it does not say that a disk is full.
    frame = packed.to_cframe()
    path.write_bytes(frame)
    return array_sums(packed, frame)


def _read(
    stored: CheckedArray,
    shape: Corner,
    corner: Corner,
    out: Array,
    *,
    fill: float,
    table: bytes | None = None,
) -> None:
    """Fill `out` with the patch at `corner` of `stored`, and what lies beyond the scan with `fill`."""
    size = out.shape[-3:]
    low = [max(begin, 0) for begin in corner]
    high = [min(begin + n, limit) for begin, n, limit in zip(corner, size, shape, strict=True)]
    empty = any(a >= b for a, b in zip(low, high, strict=True))
    if empty or [b - a for a, b in zip(low, high, strict=True)] != list(size):
        out.fill(fill)
    if not empty:
        patch = stored.read(low, high)
        x, y, z = (slice(a - begin, b - begin) for a, b, begin in zip(low, high, corner, strict=True))
        target = out[..., x, y, z]
        if table is None:  # torch turns float16 into float32 ten times as fast as NumPy
            torch.from_numpy(target).copy_(torch.from_numpy(patch))
        else:  # `bytes.translate` is twice as fast as NumPy's `take`
            target[...] = np.frombuffer(patch.tobytes().translate(table), np.uint8).reshape(patch.shape)
