"""AbdomenCT-1K: liver, kidneys, spleen and pancreas in CT; and its part of 50 scans with 12 organs.

    AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz      1062 scans in three parts, or in imagesTr/
    Mask/Case_00001.nii.gz                              1000 labels, or in labels/
    Organ12_0001_0000.nii.gz, Organ12_0001.nii.gz       50 scans with 12 organs, a data set of their own

Files are found by their names, wherever they lie. Tumours belong to their organ. Spleens are absent in cases 219
and 656. 20 scans from 3D-IRCADb have a false voxel size of 1 mm: they take no part unless `suspect` says so.

Source
    Ma et al., "AbdomenCT-1K: Is Abdominal Organ Segmentation a Solved Problem?", IEEE TPAMI 2022,
    arXiv 2010.14808.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import DataError, warn_about
from labelwise.formats import read_geometry, stem
from labelwise.importers.listing import chosen, existing_folder, files_below
from labelwise.importers.paired import Pairs, kind_and_split, label_space
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = (
    "Case_00001_0000.nii.gz and Case_00001.nii.gz, or Organ12_0001_0000.nii.gz and Organ12_0001.nii.gz"
)
VALUES = {0: BACKGROUND, 1: "liver", 2: "kidneys", 3: "spleen", 4: "pancreas"}
VALUES_OF_12 = {
    **VALUES,
    5: "aorta",
    6: "inferior vena cava",
    7: "stomach",
    8: "gallbladder",
    9: "esophagus",
    10: "right adrenal gland",
    11: "left adrenal gland",
    12: "celiac trunk",
}
FOUR, TWELVE = "Case", "Organ12"
NAME = re.compile(r"((Case)_\d{5}|(Organ12)_\d{4})(_0000)?")
FALSE_SIZE = (78, *range(273, 279), *range(280, 287), 462, *range(574, 579))  # numbers of cases


def matches(folder: Path) -> bool:
    """Whether a folder holds scans of this data set that no dataset.json describes."""
    if (folder / "dataset.json").is_file():
        return False
    matched = (NAME.fullmatch(stem(file)) for file in files_below(folder, (".nii.gz", ".nii")))
    return any(match and match[4] for match in matched)


def scan(
    folder: Path | str,
    *,
    suspect: Literal["leave_out", "keep"] = "leave_out",
    data_set: str = "abdomenct1k",
) -> Manifest:
    """The manifest of the data set: all scans train, those without labels as unlabelled cases; imagesTs/ tests.

    The scans with 12 organs are the data set `<data set>_organ12`, or `<data set>` if there are no others.

    Parameters
        suspect   whether scans with a false voxel size take part

    Errors
        ConfigError   `suspect` is neither leave_out nor keep
        DataError     the folder is missing or empty, has no scan, or two files of one scan
    """
    keep = chosen("suspect", suspect, ("leave_out", "keep")) == "keep"
    folder = existing_folder(folder)
    parts = _parts(folder)
    if not any(pairs.images for pairs in parts.values()):
        raise DataError("no scan of AbdomenCT-1K here", file=folder, expected=LOOKS_FOR)
    name_of_12 = f"{data_set}_organ12" if parts[FOUR].images else data_set
    tables = {FOUR: DataSet(data_set, VALUES, "ct"), TWELVE: DataSet(name_of_12, VALUES_OF_12, "ct")}
    data_sets: dict[str, DataSet] = {}
    cases: list[Case] = []
    for part, pairs in parts.items():
        if found := pairs.cases(tables[part].structures, tables[part].name, "train"):
            cases += found
            data_sets[tables[part].name] = tables[part]
    cases = _without_suspects(_with_test_folder(cases), keep=keep)
    return Manifest(label_space(*(table.values for table in data_sets.values())), data_sets, tuple(cases))


def _parts(folder: Path) -> dict[str, Pairs]:
    parts = {FOUR: Pairs(), TWELVE: Pairs()}
    for file in files_below(folder, (".nii.gz", ".nii")):
        if match := NAME.fullmatch(stem(file)):
            parts[match[2] or match[3]].add("images" if match[4] else "labels", match[1], file)
    return parts


def _with_test_folder(cases: Iterable[Case]) -> list[Case]:
    """Unlabelled scans of imagesTs are there to be predicted, not to be learned from."""
    return [
        replace(case, split="test")
        if not case.annotated and kind_and_split(case.images[0]) == ("images", "test")
        else case
        for case in cases
    ]


def _without_suspects(cases: Iterable[Case], *, keep: bool) -> list[Case]:
    cases = list(cases)
    suspects = {case.id for case in cases if _has_false_size(case)}
    fate = "kept" if keep else "left out; suspect = keep takes them in"
    warn_about(f"scans with a false voxel size of 1 mm are {fate}", sorted(suspects))
    if keep:
        return cases
    return [replace(case, split="") if case.id in suspects else case for case in cases]


def _has_false_size(case: Case) -> bool:
    """Whether a case is one of the 20, and its header was not corrected."""
    if not case.id.startswith(FOUR) or int(case.id.split("_")[1]) not in FALSE_SIZE:
        return False
    try:
        return bool(np.allclose(read_geometry(case.images[0]).spacing_mm, 1.0))
    except DataError:  # damaged: `check` says how
        return True
