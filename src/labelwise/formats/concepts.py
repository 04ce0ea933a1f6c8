"""What a class is called outside: its SNOMED CT code, its side, its colour."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelwise import anatomy
from labelwise.errors import ConfigError, DataError
from labelwise.types import BACKGROUND, Array

OWN_SCHEME = "99LABELWISE"  # "99" marks a scheme of one's own (PS3.3 8.2)
SIDES = {
    "left": ("7771000", "SCT", "Left"),
    "right": ("24028007", "SCT", "Right"),
    "both": ("51440002", "SCT", "Right and left"),
}
STRUCTURE = ("123037004", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")

_ABNORMAL_WORDS = re.compile(
    r"tumou?r|lesion|cyst|o?edema|necrosis|neoplasm|metasta|carcinoma|cancer|infarct"
)
_NAME_THEM = "name the classes by label value: --classes liver=1,spleen=2"
_LONGEST = 64  # letters of a name in DICOM (LO)


@dataclass(frozen=True)
class Concept:
    """A class as clinical systems know it."""

    name: str
    code: tuple[str, str, str]  # value, scheme, meaning
    abnormal: bool
    side: tuple[str, str, str] | None
    colour: anatomy.Colour

    @property
    def category(self) -> tuple[str, str, str]:
        """The code of what kind of thing it is."""
        return ABNORMAL if self.abnormal else STRUCTURE


def concepts_of(path: Path, names: Sequence[str], voxels: Array) -> Mapping[int, Concept]:
    """Label value -> concept, for class names by label value; the background and empty names have none.

    Errors
        ConfigError     no class is named
        DataError       labels that have no name
    """
    found = {
        value: _concept(name, value)
        for value, name in enumerate(names)
        if value and name and name != BACKGROUND
    }
    if not found:
        raise ConfigError(
            "this format knows labels by names, and no class is named",
            file=path,
            do=_NAME_THEM,
        )
    if unnamed := sorted(set(np.unique(voxels).tolist()) - {0, *found}):
        raise DataError(
            "the label map holds values that have no name",
            file=path,
            found=", ".join(map(str, unnamed[:8])),
            expected=", ".join(f"{value} {concept.name}" for value, concept in found.items()),
            do=_NAME_THEM,
        )
    return found


def _concept(name: str, value: int) -> Concept:
    known = anatomy.find(name)
    if known is None or not known.code:
        code = (hashlib.sha256(name.encode()).hexdigest()[:12], OWN_SCHEME, name[:_LONGEST])
    else:
        code = (known.code, "SCT", known.meaning[:_LONGEST])
    return Concept(
        name[:_LONGEST],
        code,
        _ABNORMAL_WORDS.search(name.lower()) is not None,
        SIDES.get(_side(known)) if known else None,
        anatomy.colours_of({value: name})[value],
    )


def _side(known: anatomy.Structure) -> str:
    is_pair = any(other.whole == known.name for other in anatomy.structures().values())
    return known.laterality or ("both" if is_pair else "")
