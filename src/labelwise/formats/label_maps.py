"""Telling label maps from scans where both lie in one place: by the name of a file, then by its voxels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labelwise.anatomy import find
from labelwise.errors import DataError
from labelwise.formats import read_image, stored
from labelwise.formats.stored import stem, suffix

LABEL_FOLDERS = ("labels", "label", "labelstr", "masks", "mask", "segmentations", "segmentation", "seg", "gt")
MOST_VALUES = 128  # of a label map of one scan; images, also of 8 bits, have more


def label_maps_among(files: Sequence[Path]) -> dict[Path, str]:
    """Those of the files in some folders that are label maps -> what shows it.

    A file that names its values is one. Of the others those are read that are called like labels, like a structure, or
    like another file with something added to its name: they are label maps if they hold a few whole numbers and 0.
    """
    stems = {(file.parent, stem(file)) for file in files}
    found: dict[Path, str] = {}
    for file in files:
        name = stem(file)
        longer = any((file.parent, name[: sign.start()]) in stems for sign in re.finditer(r"[_.-]", name))
        structure = within(file, file.parent).removesuffix(suffix(file))
        try:
            if names := stored.value_names(file):
                found[file] = f"names of structures: {', '.join(list(names.values())[:5])}"
            elif (label_words(file) or longer or find(structure)) and (shown := _shown(file)):
                found[file] = shown
        except DataError:  # whoever reads it as a scan says what is wrong with it
            continue
    return found


def _shown(file: Path) -> str:
    """What shows that the voxels of a file are labels; empty if they are not."""
    values = np.unique(read_image([file]).data)
    few = len(values) <= MOST_VALUES and values[0] == 0
    return f"whole numbers only, 0 to {values[-1]:g}" if few and (values == np.rint(values)).all() else ""


def label_words(file: Path) -> set[str]:
    """The words in a file name that say labels, such as seg or mask."""
    return set(re.split(r"[^a-z]+", stem(file).lower())) & set(LABEL_FOLDERS)


def within(file: Path, place: Path) -> str:
    """The name of a file without that of its case, which is that of a folder."""
    return file.name.replace(place.name, "").strip("_-. ").lower()
