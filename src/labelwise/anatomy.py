"""Names of anatomical structures: spellings, left and right, and the codes that clinical systems know them by.

The table is anatomy.csv beside this file. Codes are SNOMED CT; a structure without a verified code has none. A code
says nothing of the side: `laterality` does, as in DICOM. Class names that the table does not know are used as they are.
Colours are those of 3D Slicer (GenericAnatomyColors), in which both of a pair, and
all vertebrae of one region, look alike.
"""

from __future__ import annotations

import colorsys
import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

Side = Literal["", "left", "right"]

_SIDES: Mapping[str, Side] = {
    **dict.fromkeys(("left", "lt", "l"), "left"),
    **dict.fromkeys(("right", "rt", "r"), "right"),
}
_TABLE = Path(__file__).with_suffix(".csv")

Colour = tuple[int, int, int]
"""Red, green, blue; 0 to 255."""

_GOLDEN = 0.618034  # hues at this distance on the circle stay apart, however many there are
_ALIKE = 48  # colours at a smaller distance are hard to tell apart on a grey scan
_TINTS = (0.4, -0.4, 0.7, -0.65)  # towards white, or black


@dataclass(frozen=True)
class Structure:
    """One row of the table."""

    name: str  # the canonical name
    synonyms: tuple[str, ...]
    code: str  # SNOMED CT; empty if none was verified
    meaning: str  # what SNOMED CT calls it
    laterality: Side  # of one of a pair: the left kidney
    whole: str  # the class that joins both of a pair: kidneys
    side: Side  # where a structure that is no pair lies in nearly everybody: the liver at the right
    colour: Colour

    @property
    def partner(self) -> str:
        """The same structure of the other side; empty for what is no pair."""
        if not self.laterality:
            return ""
        other = "right" if self.laterality == "left" else "left"
        return re.sub(rf"\b{self.laterality}\b", other, self.name)


def find(name: str) -> Structure | None:
    """The structure of this name or synonym; case and signs between words do not matter.

    ``kidney_left``, ``Left Kidney`` and ``left-kidney`` are the same.
    """
    return _by_spelling().get(_spelling(name))


def canonical(name: str) -> str:
    """The canonical name of a structure, or the name itself if it is not in the table."""
    found = find(name)
    return found.name if found else name


def is_pair(name: str) -> bool:
    """Whether a class joins a structure of the left and of the right.

    Example
        >>> is_pair("kidneys"), is_pair("left kidney"), is_pair("liver")
        (True, False, False)
    """
    return any(same(name, one.whole) for one in structures().values() if one.whole)


def named_side(name: str) -> Side:
    """The side that a class is named by; empty for one that has none, or whose mirror image is no other structure.

    Names that the table does not know are judged by their words: ``Parotid_L`` is left.

    Example
        >>> named_side("kidney_left"), named_side("left ventricle"), named_side("liver"), named_side("Parotid_R")
        ('left', '', '', 'right')
    """
    found = find(name)
    if found is not None:
        return found.laterality or (found.side if found.side in _words(found.name) else "")
    sides = {_SIDES[word] for word in _words(name) if word in _SIDES}
    return sides.pop() if len(sides) == 1 else ""


def other_sides(names: Iterable[str]) -> dict[str, str]:
    """Class -> the same of the other side, for all of `names` that are named by a side; empty if it is not there.

    Example
        >>> other_sides(["liver", "left kidney", "kidney_right", "Parotid_L"])
        {'left kidney': 'kidney_right', 'kidney_right': 'left kidney', 'Parotid_L': ''}
    """
    sided = {name: side for name in names if (side := named_side(name))}
    keys = {name: (_without_side(name), side) for name, side in sided.items()}
    by_key = {key: name for name, key in keys.items()}
    return {
        name: by_key.get((rest, "right" if side == "left" else "left"), "")
        for name, (rest, side) in keys.items()
    }


def _without_side(name: str) -> str:
    return " ".join(word for word in _words(canonical(name)) if word not in _SIDES)


def same(name: str, other: str) -> bool:
    """Whether two names mean one structure, whatever their spelling."""
    return _spelling(canonical(name)) == _spelling(canonical(other))


def colours_of(named: Mapping[int, str], *, apart: bool = False) -> dict[int, Colour]:
    """Label value -> the colour in which 3D Slicer paints a structure of that name; others have a hue of their own.

    Arguments
        apart   for pictures: a structure that looks like one before it, as the right kidney like the left one, is shown
                lighter or darker, as long as there are tints left

    Example
        >>> colours_of({1: "left kidney", 2: "right kidney"})
        {1: (185, 102, 83), 2: (185, 102, 83)}
        >>> colours_of({1: "left kidney", 2: "right kidney"}, apart=True)
        {1: (185, 102, 83), 2: (213, 163, 152)}
    """
    chosen: dict[int, Colour] = {}
    for value, name in named.items():
        known = find(name)
        own = known.colour if known else _own_colour(value)
        tints = (own, *(_tinted(own, tint) for tint in _TINTS)) if apart else (own,)
        nearest = [min((math.dist(one, other) for other in chosen.values()), default=_ALIKE) for one in tints]
        clear = next((place for place, distance in enumerate(nearest) if distance >= _ALIKE), None)
        chosen[value] = tints[nearest.index(max(nearest)) if clear is None else clear]
    return chosen


def _own_colour(value: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(value * _GOLDEN % 1, 0.6, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _tinted(colour: Colour, share: float) -> Colour:
    red, green, blue = (
        round(part + share * (255 - part) if share > 0 else part * (1 + share)) for part in colour
    )
    return red, green, blue


@cache
def structures() -> Mapping[str, Structure]:
    """All structures by canonical name, in the order of the table."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["name"]: _structure(row) for row in rows}


def _structure(row: Mapping[str, str]) -> Structure:
    red, green, blue = bytes.fromhex(row["colour"])
    return Structure(
        name=row["name"],
        synonyms=tuple(filter(None, row["synonyms"].split(";"))),
        code=row["code"],
        meaning=row["meaning"],
        laterality=cast("Side", row["laterality"]),
        whole=row["whole"],
        side=cast("Side", row["side"]),
        colour=(red, green, blue),
    )


@cache
def _by_spelling() -> Mapping[str, Structure]:
    return {
        _spelling(name): structure
        for structure in structures().values()
        for name in (structure.name, *structure.synonyms)
    }


def _words(name: str) -> list[str]:
    return _spelling(name).split()


def _spelling(name: str) -> str:
    """Words in lower case; both spellings of tumour and of edema are one."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
    return words.replace("tumour", "tumor").replace("oedema", "edema")
