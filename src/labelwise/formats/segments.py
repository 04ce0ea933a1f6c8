"""Labels that are known by names: the n-th name that is asked for becomes the label value n.

Structures of a file may overlap, voxels of a label map do not. `Canvas` draws one structure after the other and counts
what each loses, so that nobody learns from a tumour that the liver covers. Or overlaps are kept: the n-th name is the
bit 2^(n - 1), and each combination that occurs is a value of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labelwise.errors import DataError
from labelwise.formats.geometry import Geometry
from labelwise.formats.layout import Overlap
from labelwise.types import Array

MOST_KEPT = 16  # names of which every combination has a value


@dataclass
class Tally:
    """What was read of the structures of one file, by label value."""

    drawn: Counter[int] = field(default_factory=Counter)  # voxels of each structure, before others cover it
    lost: Counter[tuple[int, int]] = field(default_factory=Counter)  # (structure, what covers it) -> voxels
    dropped: dict[int, str] = field(default_factory=dict)  # structure -> what of it could not be read
    counted: bool = False  # whether the file knows its structures by names, so that they were counted

    def count(self, labels: Array) -> None:
        """Count the structures of a label map (I, J, K) in which they cannot overlap."""
        self.counted = True
        for plane in np.moveaxis(labels, -1, 0):
            counts = np.bincount(plane.ravel(order="K"))
            self.drawn.update(
                {value: int(counts[value]) for value in np.flatnonzero(counts).tolist() if value}
            )

    def left(self, value: int) -> int:
        """Voxels of a structure in the label map."""
        return self.drawn[value] - sum(voxels for (loser, _), voxels in self.lost.items() if loser == value)

    def losses(self, names: Mapping[int, str]) -> list[str]:
        """A sentence for each pair of structures that overlap, those of one name apart."""
        return [
            f"'{names[loser]}' and '{names[winner]}' overlap in {voxels:,} voxel{'' if voxels == 1 else 's'}, "
            f"which count as '{names[winner]}' ({voxels / self.drawn[loser]:.0%} of '{names[loser]}')"
            for (loser, winner), voxels in sorted(self.lost.items())
            if names[loser] != names[winner]
        ]


class Canvas:
    """A label map on which structures are drawn; where they overlap the later one counts, or both are kept."""

    def __init__(self, labels: Array, tally: Tally | None = None, overlap: Overlap = "later"):
        self.labels, self.tally = labels, Tally() if tally is None else tally
        self.tally.counted = True
        self._kept = overlap == "kept"

    def draw(self, value: int, mask: Array, view: Array | None = None) -> None:
        """Give a value to the voxels of a mask; `view` is the part of `labels` under it, default: the whole."""
        view = self.labels if view is None else view
        beneath = view[mask]
        if self._kept:
            view[mask] = beneath | 1 << (value - 1)
            return
        counts = np.bincount(beneath)
        for other in np.flatnonzero(counts).tolist():
            if other == value:
                continue
            self.tally.drawn[value] += int(counts[other])
            if other:
                self.tally.lost[other, value] += int(counts[other])
        view[mask] = value


def in_order(values: Iterable[int], sizes: Mapping[int, int] | None) -> list[int]:
    """The order in which structures are drawn: by value, or the larger first, so that the smaller lies on top."""
    if sizes is None:
        return sorted(values)
    return sorted(values, key=lambda value: (-sizes.get(value, 0), value))


def values_of(path: Path, wanted: Sequence[str], known: Mapping[int, str]) -> dict[int, int]:
    """Number of a segment in the file -> label value, of the segments that are wanted; `known` are their names.

    Errors
        DataError   none of the names is there
    """
    values = {name: value for value, name in enumerate(wanted, start=1)}
    found = {number: values[name] for number, name in known.items() if name in values}
    if not found:
        raise DataError(
            "none of the segments is there",
            file=path,
            found=", ".join([*known.values()][:8]) or "no segments",
            expected=", ".join(wanted[:8]),
        )
    return found


def empty(grid: Geometry, wanted: Sequence[str], overlap: Overlap = "later") -> Array:
    """(I, J, K) zeros, in the order of files, of the smallest type that holds a value for each name, or combination.

    Errors
        DataError   more names than overlaps can be kept of
    """
    if overlap == "kept" and len(wanted) > MOST_KEPT:
        raise DataError(
            f"overlaps are kept among {MOST_KEPT} structures at most",
            found=f"{len(wanted)} structures",
            do="import those that matter only, or let one count where two overlap: --overlap smaller",
            code="too-many-structures",
        )
    highest = 2 ** len(wanted) - 1 if overlap == "kept" else len(wanted)
    return np.zeros(grid.shape, np.uint8 if highest < 256 else np.uint16, order="F")


def combined(value: int, names: Sequence[str]) -> tuple[str, ...]:
    """The names that a kept value combines."""
    return tuple(name for number, name in enumerate(names) if value >> number & 1)
