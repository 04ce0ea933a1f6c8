"""FLARE22: 13 abdominal organs in CT, 50 labelled and 2000 unlabelled scans.

    FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz        50 scans
    FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz
    FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz              2000 scans in two folders
    Tuning/images/FLARETs_0001_0000.nii.gz, labels/FLARETs_0001.nii.gz      50 scans that validate

Folders have other names on mirrors, so files are found by their own names and paired by id; images lose the
ending `_0000`. The kidneys are the values 2 and 13. The gallbladder is absent in some patients.

Source
    Ma et al., "Unleashing the strengths of unlabelled data in deep learning-assisted pan-cancer abdominal organ
    quantification: the FLARE22 challenge", Lancet Digital Health 2024, arXiv 2308.05862.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.formats import stem, suffix
from labelwise.importers.listing import existing_folder, files_below, logger
from labelwise.importers.paired import Pairs, label_space
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = (
    "FLARE22_Tr_0001_0000.nii.gz and FLARE22_Tr_0001.nii.gz; Case_00001_0000.nii.gz in a folder FLARE22..."
)
VALUES = {
    0: BACKGROUND,
    1: "liver",
    2: "right kidney",
    3: "spleen",
    4: "pancreas",
    5: "aorta",
    6: "inferior vena cava",
    7: "right adrenal gland",
    8: "left adrenal gland",
    9: "gallbladder",
    10: "esophagus",
    11: "stomach",
    12: "duodenum",
    13: "left kidney",
}
STRUCTURES = tuple(VALUES.values())[1:]
NAME = re.compile(r"((FLARE22_Tr|FLARETs)_\d{4}|Case_\d{5})(_0000)?")
LABELLED, TUNING, UNLABELLED = "FLARE22_Tr", "FLARETs", "Case"
_LABEL_FOLDER = re.compile(r"(pseudo|label(?!l?ed)|mask|seg).*")  # but not labeled_image or LabeledCase50


def matches(folder: Path) -> bool:
    """Whether a folder holds scans of this data set that no dataset.json describes."""
    if (folder / "dataset.json").is_file():
        return False
    return any(
        kind == "images" and (part != UNLABELLED or _is_of_flare(file, folder))
        for kind, part, _, file in _files(folder)
    )


def scan(folder: Path | str, *, num_unlabelled: int | None = None, data_set: str = "flare22") -> Manifest:
    """The manifest of the data set: labelled cases train first, then the unlabelled ones.

    Parameters
        num_unlabelled   number of unlabelled scans that are taken, the first by id; all of them if not given

    Errors
        ConfigError   the number is negative
        DataError     the folder is missing or empty, has no scan, or two files of one scan
    """
    if num_unlabelled is not None and (type(num_unlabelled) is not int or num_unlabelled < 0):
        raise ConfigError(
            "num_unlabelled is a number of scans", found=num_unlabelled, expected="0, 1, 2, ..."
        )
    folder = existing_folder(folder)
    parts = _parts(folder)
    if not any(pairs.images for pairs in parts.values()):
        raise DataError("no scan of FLARE22 here", file=folder, expected=LOOKS_FOR)
    spare = parts[UNLABELLED]
    warn_about("label files of unlabelled scans are left out: nobody drew them", sorted(spare.labels))
    taken = sorted(spare.images.items())[:num_unlabelled]
    logger.info("FLARE22: %d of %d unlabelled scans are taken", len(taken), len(spare.images))
    cases = [
        *parts[LABELLED].cases(STRUCTURES, data_set, "train"),
        *(Case(name, (image,), data_set=data_set, split="train") for name, image in taken),
        *parts[TUNING].cases(STRUCTURES, data_set, "validation"),
    ]
    if not cases:
        raise DataError("no scan of FLARE22 is left", file=folder, found=f"num_unlabelled = {num_unlabelled}")
    return Manifest(label_space(VALUES), {data_set: DataSet(data_set, VALUES, "ct")}, tuple(cases))


def _parts(folder: Path) -> dict[str, Pairs]:
    """Files of the labelled, the tuning and the unlabelled scans."""
    parts = {LABELLED: Pairs(), TUNING: Pairs(), UNLABELLED: Pairs()}
    for kind, part, name, file in _files(folder):
        parts[part].add(kind, name, file)
    return parts


def _files(folder: Path) -> Iterator[tuple[str, str, str, Path]]:
    """images or labels, part of the data set, case id, file."""
    files = [file for file in files_below(folder, (".nii.gz", ".nii")) if NAME.fullmatch(stem(file))]
    with_ending = {match[1] for file in files if (match := NAME.fullmatch(stem(file))) and match[3]}
    for file in files:
        if match := NAME.fullmatch(stem(file)):
            image = bool(match[3]) or _is_image(file, match[1], with_ending)
            yield "images" if image else "labels", match[2] or UNLABELLED, match[1], file


def _is_image(file: Path, name: str, with_ending: set[str]) -> bool:
    """Whether a file without the ending of images is one nevertheless: mirrors cut it off."""
    home = (file.parent.parent if suffix(file.parent) else file.parent).name.lower()
    if name in with_ending or _LABEL_FOLDER.fullmatch(home):
        return False
    return "image" in home or name.startswith(UNLABELLED)


def _is_of_flare(file: Path, folder: Path) -> bool:
    folders = (folder.name, *file.relative_to(folder).parts[:-1])
    return any(name.lower().startswith("flare22") for name in folders)
