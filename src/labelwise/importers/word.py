"""WORD: 16 organs of the whole abdomen in CT, planned for radiotherapy.

    imagesTr/word_0002.nii.gz       100 scans, with labelsTr/word_0002.nii.gz
    imagesVal/word_0001.nii.gz      20 scans, with labelsVal/
    imagesTs/word_0014.nii.gz       30 scans; labelsTs/ comes from a second archive

Both adrenal glands are one class. The official parts are the splits.

Source
    Luo et al., "WORD: A large scale dataset, benchmark and clinical applicable study for abdominal organ
    segmentation from CT image", Medical Image Analysis 2022, arXiv 2111.02403.
"""

from __future__ import annotations

import re
from pathlib import Path

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import DataError
from labelwise.formats import stem
from labelwise.importers.listing import existing_folder
from labelwise.importers.paired import SPLITS_OF_FOLDERS, Pairs, files_by_place, label_space
from labelwise.types import BACKGROUND

LOOKS_FOR = (
    "imagesTr/word_0002.nii.gz and labelsTr/word_0002.nii.gz; imagesVal, labelsVal, imagesTs, labelsTs"
)
VALUES = {
    0: BACKGROUND,
    1: "liver",
    2: "spleen",
    3: "left kidney",
    4: "right kidney",
    5: "stomach",
    6: "gallbladder",
    7: "esophagus",
    8: "pancreas",
    9: "duodenum",
    10: "colon",
    11: "intestine",
    12: "adrenal glands",
    13: "rectum",
    14: "bladder",
    15: "left femoral head",
    16: "right femoral head",
}
STRUCTURES = tuple(VALUES.values())[1:]
NAME = re.compile(r"word_\d{4}")


def matches(folder: Path) -> bool:
    """Whether a folder holds scans of this data set."""
    return any(kind == "images" for kind, _, _ in files_by_place(folder, NAME))


def scan(folder: Path | str, *, data_set: str = "word") -> Manifest:
    """The manifest of the data set, with its official splits.

    Errors
        DataError   the folder is missing or empty, has no scan, or two files of one scan
    """
    folder = existing_folder(folder)
    parts = _parts(folder)
    cases = [case for split, pairs in parts.items() for case in pairs.cases(STRUCTURES, data_set, split)]
    if not cases:
        raise DataError("no scan of WORD here", file=folder, expected=LOOKS_FOR)
    return Manifest(label_space(VALUES), {data_set: DataSet(data_set, VALUES, "ct")}, tuple(cases))


def _parts(folder: Path) -> dict[str, Pairs]:
    parts = {split: Pairs() for split in SPLITS_OF_FOLDERS.values()}
    for kind, split, file in files_by_place(folder, NAME):
        parts[split].add(kind, stem(file), file)
    return parts
