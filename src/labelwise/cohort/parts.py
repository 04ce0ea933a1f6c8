"""Where in a scan a class is annotated, if not all over it: the column `parts` of manifest.csv, and its voxels.

    liver=slices 40-60;spleen=slices 12 20 31;kidneys=box 10-80 * 40-60;pancreas=drawn

    slices      along z, the first is 0 and lies at the patient's feet (RAS+); ranges with both ends
    box         along x, y and z; `*` is the whole axis
    drawn       only the voxels that are drawn in the label file, of any annotated class: scribbles
    all=        the same part for every annotated class

Elsewhere nothing is known of these classes, whatever the label file holds there. It is not rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from labelwise.cohort.text import Row
from labelwise.errors import DataError, did_you_mean
from labelwise.types import IGNORE, Array, Box, Case, LabelSpace, Part, Range

ALL = "all"
SLICES, BOX, DRAWN, WHOLE = "slices", "box", "drawn", "*"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_EXPECTED = "slices 40-60, box 10-80 20-90 40-60 (x, y, z; * is a whole axis), or drawn"


def read_parts(row: Row, label_space: LabelSpace, annotated: Collection[str]) -> tuple[Part, ...]:
    """The cell of a row.

    Errors
        DataError   an unknown class, one that is not annotated or stands twice, or a part that cannot be understood
    """
    parts: dict[tuple[Box, ...], set[str]] = {}
    seen: set[str] = set()
    for item in row.items("parts"):
        name, _, text = item.partition("=")
        name = name.strip()
        if name != ALL and name not in label_space.structures:
            row.refuse(
                "parts",
                f"unknown class '{name}'{did_you_mean(name, label_space.structures)}",
                expected=f"CLASS=PART, joined by ';', of all or {', '.join(label_space.structures)}",
            )
        structures = set(annotated) if name == ALL else {name}
        if not structures or not structures <= set(annotated):
            row.refuse(
                "parts",
                f"'{name}' is not annotated in this case, so it is not annotated in a part of it",
                do="add it to the column 'annotated', or take it out here",
            )
        if structures & seen:
            row.refuse(
                "parts",
                f"'{min(structures & seen)}' has two parts",
                do="write one, which may have several ranges",
            )
        seen |= structures
        parts.setdefault(_boxes(row, text.strip()), set()).update(structures)
    return tuple(Part(frozenset(structures), boxes) for boxes, structures in parts.items())


def parts_cell(case: Case, label_space: LabelSpace) -> str:
    """The parts of a case as a cell, in the order of the classes."""
    text = {structure: part_text(part) for part in case.parts for structure in part.structures}
    return ";".join(
        f"{structure}={text[structure]}" for structure in label_space.structures if structure in text
    )


def part_text(part: Part) -> str:
    """A part as it stands in the cell: `slices 40-60`."""
    if not part.boxes:
        return DRAWN
    if all(x is None and y is None for x, y, _ in part.boxes):
        return " ".join([SLICES, *(_range_text(z) for *_, z in part.boxes)])
    return f"{BOX} " + ", ".join(" ".join(map(_range_text, box)) for box in part.boxes)


def part_key(part: Part) -> list[str]:
    """What a part says, as plain values that are equal for equal parts."""
    return [*sorted(part.structures), part_text(part)]


def annotated_everywhere(case: Case) -> frozenset[str]:
    """The classes that are annotated all over the scan."""
    return case.annotated.difference(*(part.structures for part in case.parts))


def by_part(case: Case) -> list[tuple[frozenset[str], Part | None]]:
    """The annotated classes of a case, by where they are annotated: those of the whole scan (None) first."""
    everywhere = annotated_everywhere(case)
    known: list[tuple[frozenset[str], Part | None]] = [(part.structures, part) for part in case.parts]
    return [(everywhere, None), *known] if everywhere or not known else known


def inside(part: Part, places: Sequence[Array]) -> NDArray[np.bool_]:
    """(X, Y, Z) bool: the voxels of boxes.

    Shapes
        places      (X,), (Y,), (Z,) number of the voxel of the scan along each axis
    """
    mask = np.zeros([len(along) for along in places], np.bool_)
    for box in part.boxes:
        x, y, z = (
            np.ones(len(along), np.bool_) if ends is None else (ends[0] <= along) & (along <= ends[1])
            for ends, along in zip(box, places, strict=True)
        )
        mask |= x[:, None, None] & y[:, None] & z
    return mask


def known_in(labels: Array, part: Part | None, places: Sequence[Array] | None = None) -> Array:
    """Class indices (X, Y, Z) of a case as its `part` knows them: IGNORE elsewhere; None is the whole scan.

    Shapes
        places      as in `inside`; None: the voxels of the scan themselves
    """
    if part is None:
        return labels
    along = [np.arange(size) for size in labels.shape] if places is None else places
    known = inside(part, along) if part.boxes else labels > 0
    return np.where(known, labels, IGNORE).astype(labels.dtype)


def known_parts(labels: Array, case: Case, label_space: LabelSpace) -> Array:
    """Class indices (X, Y, Z) of a case, IGNORE where the class of a voxel is not known in one of its parts.

    A voxel keeps the class that is known there. Others stay background only where all annotated classes are known.

    Errors
        DataError   a part lies beyond the scan
    """
    found = labels
    for part in case.parts:
        require_within(case, part, labels.shape)
        own = np.isin(labels, [0, *map(label_space.index, part.structures)])
        found = np.where(own & (known_in(labels, part) == IGNORE), IGNORE, found).astype(labels.dtype)
    return found


def drawn_beyond(
    labels: Array, case: Case, structures: Collection[str], label_space: LabelSpace
) -> frozenset[str]:
    """Those of `structures` of which class indices (X, Y, Z) show something beyond the boxes of their part."""
    places = [np.arange(size) for size in labels.shape]
    wider = set[str]()
    for part in case.parts:
        if part.boxes and (known := part.structures.intersection(structures)):
            found = set(np.unique(labels[~inside(part, places)]).tolist())
            wider |= {structure for structure in known if label_space.index(structure) in found}
    return frozenset(wider)


def require_within(case: Case, part: Part, shape: Iterable[int]) -> None:
    """Raise a DataError if a part lies beyond a scan of `shape` voxels."""
    shape = tuple(shape)
    for box in part.boxes:
        for axis, ends, size in zip("xyz", box, shape, strict=True):
            if ends is not None and ends[1] >= size:
                raise DataError(
                    f"{', '.join(sorted(part.structures))} is said to be annotated beyond the scan",
                    case=case.id,
                    file=case.labels,
                    found=f"{part_text(part)}; the scan has {size} voxels along {axis}",
                    expected=f"voxels 0 to {size - 1}",
                    do="correct the column 'parts': the first slice is 0",
                )


def _boxes(row: Row, text: str) -> tuple[Box, ...]:
    kind, _, rest = text.partition(" ")
    if text == DRAWN:
        return ()
    if kind == SLICES and rest.split():
        return tuple((None, None, _range(row, word)) for word in rest.split())
    boxes = [box.split() for box in rest.split(",")]
    if kind != BOX or any(len(words) != 3 for words in boxes):
        row.refuse("parts", f"the part '{text}' cannot be understood", expected=_EXPECTED)
    return tuple((_range(row, x), _range(row, y), _range(row, z)) for x, y, z in boxes)


def _range(row: Row, word: str) -> Range:
    if word == WHOLE:
        return None
    found = _RANGE.fullmatch(word)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if low > high:
        row.refuse(
            "parts", f"'{word}' is no range of voxels", expected="40-60, the first not above the last; or 40"
        )
    return low, high


def _range_text(ends: Range) -> str:
    if ends is None:
        return WHOLE
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"
