"""Labels that are known by names: the n-th name that is asked for becomes the label value n.

Structures of a file may overlap, voxels of a label map do not. `Canvas` draws one structure after the other and counts
what each loses, so that nobody learns from a tumour that the liver covers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labelwise.errors import DataError
from labelwise.formats.geometry import Geometry
from labelwise.types import Array


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
    """A label map on which structures are drawn; where they overlap the later one counts."""

    def __init__(self, labels: Array, tally: Tally | None = None):
        self.labels, self.tally = labels, Tally() if tally is None else tally
        self.tally.counted = True

    def draw(self, value: int, mask: Array, view: Array | None = None) -> None:
        """Give a value to the voxels of a mask; `view` is the part of `labels` under it, default: the whole."""
        view = self.labels if view is None else view
        beneath = view[mask]
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


def empty(grid: Geometry, wanted: Sequence[str]) -> Array:
    """(I, J, K) zeros of the smallest type that holds a value for each name."""
    return np.zeros(grid.shape, np.uint8 if len(wanted) < 256 else np.uint16)
