"""BTCV, "Multi-Atlas Labeling Beyond the Cranial Vault", abdomen: 13 organs in portal-venous CT.

    RawData/Training/img/img0001.nii.gz         30 scans: 0001 to 0010 and 0021 to 0040
    RawData/Training/label/label0001.nii.gz
    RawData/Testing/img/img0061.nii.gz          20 scans without labels: 0061 to 0080
    RegData/                                    registered copies of the same scans: never read

Images are `img<id>`, labels `label<id>`, wherever they lie, so copies packed as imagesTr and labelsTr are read
too. Gallbladder or right kidney is absent in some patients.

Source
    Landman et al., MICCAI 2015 (Synapse syn3193805). Lists: Chen et al., "TransUNet", arXiv 2102.04306;
    Wang and Li, "Dual-debiased Heterogeneous Co-training" (DHC), MICCAI 2023, arXiv 2305.09193.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import DataError
from labelwise.formats import stem
from labelwise.importers.listing import chosen, existing_folder, files_below
from labelwise.importers.paired import Pairs, by_published_lists, label_space
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = "img0001.nii.gz and label0001.nii.gz, in Training/img and Training/label or imagesTr and labelsTr"
VALUES = {
    0: BACKGROUND,
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "esophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "portal and splenic vein",
    11: "pancreas",
    12: "right adrenal gland",
    13: "left adrenal gland",
}
STRUCTURES = tuple(VALUES.values())[1:]
FIRST_TEST = 61  # ids from here on have no public labels
NAME = re.compile(r"(img|label)(\d{4})")
REGISTERED = "regdata"

LABELLED = (*range(1, 11), *range(21, 41))
_TRANSUNET_TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
_DHC = {
    "train": (1, 2, 3, 5, 8, 9, 21, 22, 23, 24, 27, 28, 29, 30, 31, 32, 34, 37, 38, 39),
    "validation": (6, 25, 26, 40),
    "test": (4, 7, 10, 33, 35, 36),
}
_DHC_LABELLED = {10: (23, 28), 20: (2, 23, 34, 39), 40: (2, 9, 21, 23, 27, 31, 32, 37)}


def _first(numbers: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    return (*numbers, *(number for number in others if number not in numbers))


# The n labelled training scans of a paper come first: `keep_labelled` with that n chooses them.
SPLITS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "transunet": {
        "train": tuple(number for number in LABELLED if number not in _TRANSUNET_TEST),
        "test": _TRANSUNET_TEST,
    },
    **{
        f"dhc_{percent}": {**_DHC, "train": _first(labelled, _DHC["train"])}
        for percent, labelled in _DHC_LABELLED.items()
    },
}
OFFICIAL = "official"


def matches(folder: Path) -> bool:
    """Whether a folder holds a labelled scan of this data set."""
    found = [(kind, name) for kind, name, _ in _files(folder)]
    return any(kind == "images" and ("labels", name) in found for kind, name in found)


def scan(folder: Path | str, *, split: str = OFFICIAL, data_set: str = "btcv") -> Manifest:
    """The manifest of the data set.

    Parameters
        split    official (the labelled scans train, the others test), transunet (18 train, 12 test), or
                 dhc_10, dhc_20, dhc_40 (20 train, 4 validate, 6 test; the 2, 4 or 8 labelled ones first)

    Errors
        ConfigError   there is no such split
        DataError     the folder is missing or empty, has no scan, or two files of one scan
    """
    chosen("split", split, (OFFICIAL, *SPLITS))
    folder = existing_folder(folder)
    pairs = _pairs(folder)
    if not pairs.images:
        raise DataError("no scan of BTCV here", file=folder, expected=LOOKS_FOR)
    train, test = Pairs(), Pairs()
    for name, image in pairs.images.items():
        (test if _number(name) >= FIRST_TEST else train).images[name] = image
    for name, labels in pairs.labels.items():
        (test if _number(name) >= FIRST_TEST else train).labels[name] = labels
    cases = [*train.cases(STRUCTURES, data_set, "train"), *test.cases(STRUCTURES, data_set, "test")]
    if split != OFFICIAL:
        cases = _dealt(cases, SPLITS[split])
    return Manifest(label_space(VALUES), {data_set: DataSet(data_set, VALUES, "ct")}, tuple(cases))


def _pairs(folder: Path) -> Pairs:
    pairs = Pairs()
    for kind, name, file in _files(folder):
        pairs.add(kind, name, file)
    return pairs


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """images or labels, case id, file."""
    for file in files_below(folder, (".nii.gz", ".nii")):
        match = NAME.fullmatch(stem(file))
        inside = file.relative_to(folder).parts
        if match and not any(part.lower() == REGISTERED for part in inside):
            yield "images" if match[1] == "img" else "labels", _name(int(match[2])), file


def _name(number: int) -> str:
    return f"img{number:04d}"


def _number(name: str) -> int:
    return int(name.removeprefix("img"))


def _dealt(cases: list[Case], lists: Mapping[str, tuple[int, ...]]) -> list[Case]:
    by_id = {case.id: case for case in cases}
    names = {split: [_name(number) for number in numbers] for split, numbers in lists.items()}
    split_of = by_published_lists(names, {name: [name] for name in by_id})
    return [replace(by_id[name], split=split) for name, split in split_of.items()]
