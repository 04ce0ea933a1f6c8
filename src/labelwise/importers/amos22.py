"""AMOS22: 15 abdominal organs in CT and MR.

    imagesTr/amos_0001.nii.gz       with labelsTr/amos_0001.nii.gz; 200 CT and 40 MR
    imagesVa/, labelsVa/            100 CT and 20 MR
    imagesTs/                       without labels
    dataset.json, readme.md         not read: the table of values is below, whatever they call the aorta

An id below 500 is a CT, one from 500 on an MR (they begin at 507): two data sets with a modality each. Organs
may be absent, and bladder and prostate or uterus lie outside the field of view of some scans.

Source
    Ji et al., "AMOS: A Large-Scale Abdominal Multi-Organ Benchmark", NeurIPS 2022, arXiv 2206.08023. Lists:
    Wang and Li, "Dual-debiased Heterogeneous Co-training" (DHC), MICCAI 2023, arXiv 2305.09193; the lists of
    the code of GuidedNet, arXiv 2408.04914.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from labelwise.cohort.data_set import Modality
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import stem
from labelwise.importers.listing import chosen, existing_folder
from labelwise.importers.paired import (
    SPLITS_OF_FOLDERS,
    Pairs,
    by_published_lists,
    files_by_place,
    label_space,
)
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = "imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz; imagesVa, labelsVa, imagesTs"
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
    10: "pancreas",
    11: "right adrenal gland",
    12: "left adrenal gland",
    13: "duodenum",
    14: "bladder",
    15: "prostate or uterus",
}
STRUCTURES = tuple(VALUES.values())[1:]
FIRST_MR = 500
NAME = re.compile(r"amos_\d{4}")
MODALITIES: tuple[Modality, ...] = ("ct", "mr")

OFFICIAL, GUIDEDNET = "official", "guidednet"
DHC_VALIDATION = (27, 66, 97, 109, 116, 124, 153, 154, 159, 197, 214, 215, 297, 336, 337, 349, 353, 381, 538, 540,
                   554, 585, 592, 599)  # fmt: skip
DHC_LABELLED = {
    "dhc_2": (17, 77, 358, 361),
    "dhc_5": (78, 158, 170, 192, 391, 396, 410, 514, 548, 578),
    "dhc_10": (
        9,
        42,
        110,
        125,
        138,
        143,
        147,
        149,
        166,
        177,
        230,
        248,
        264,
        321,
        341,
        361,
        510,
        558,
        590,
        595,
        597,
    ),
}
GUIDEDNET_LISTS = {  # of the labelled CT: 180, 60, 60; the first 18 and 90 of train are the labelled ones
    "train": (
        24, 367, 326, 90, 9, 72, 126, 290, 352, 128, 362, 206, 197, 401, 212, 323, 353, 281, 215, 45, 176, 280, 406,
        184, 286, 192, 106, 64, 202, 88, 334, 171, 259, 311, 308, 52, 289, 235, 129, 29, 255, 339, 350, 32, 48, 30,
        194, 361, 159, 92, 67, 123, 78, 18, 292, 86, 71, 237, 166, 195, 200, 105, 278, 231, 140, 79, 109, 218, 108,
        147, 233, 111, 299, 226, 89, 115, 173, 133, 358, 15, 158, 284, 33, 19, 348, 190, 14, 56, 283, 23, 112, 363,
        257, 249, 403, 272, 42, 238, 199, 124, 309, 287, 380, 198, 47, 143, 217, 156, 304, 63, 25, 410, 144, 371, 50,
        44, 397, 149, 247, 378, 203, 408, 85, 364, 296, 310, 186, 153, 254, 288, 27, 396, 321, 366, 69, 180, 196, 214,
        391, 104, 223, 248, 51, 83, 116, 373, 137, 330, 344, 351, 177, 356, 167, 135, 372, 392, 38, 181, 328, 4, 204,
        155, 43, 98, 405, 313, 409, 341, 346, 58, 6, 388, 132, 387, 188, 377, 365, 318, 258, 138,
    ),
    "validation": (
        268, 216, 117, 390, 376, 228, 66, 282, 333, 97, 152, 22, 160, 10, 179, 332, 191, 230, 404, 245, 61, 8, 60,
        379, 119, 384, 141, 225, 142, 400, 49, 172, 154, 370, 99, 185, 383, 84, 118, 94, 174, 317, 219, 162, 239, 368,
        5, 293, 398, 125, 193, 175, 264, 307, 131, 381, 279, 395, 297, 276,
    ),
    "test": (
        36, 349, 399, 342, 77, 207, 57, 127, 13, 1, 87, 294, 402, 302, 157, 70, 337, 34, 320, 357, 189, 273, 150, 170,
        54, 336, 73, 121, 41, 316, 208, 76, 81, 59, 120, 242, 385, 7, 75, 40, 301, 161, 224, 102, 136, 103, 250, 263,
        274, 16, 21, 244, 374, 11, 35, 134, 17, 325, 113, 110,
    ),
}  # fmt: skip


def matches(folder: Path) -> bool:
    """Whether a folder holds scans of this data set."""
    return any(kind == "images" for kind, _, _ in files_by_place(folder, NAME))


def scan(
    folder: Path | str,
    *,
    modality: Literal["both", "ct", "mr"] = "both",
    split: str = OFFICIAL,
    data_set: str = "amos22",
) -> Manifest:
    """The manifest: the data sets `<data set>_ct` and `<data set>_mr`.

    Parameters
        modality   which scans are taken
        split      official (Tr trains, Va validates, Ts tests); dhc_2, dhc_5 or dhc_10 (24 scans of Tr validate,
                   Va tests, the 4, 10 or 21 labelled scans first); guidednet (labelled CT as 180, 60 and 60)

    Errors
        ConfigError   an option has another value, or the split needs scans that `modality` leaves out
        DataError     the folder is missing or empty, has no scan, or two files of one scan
    """
    chosen("modality", modality, ("both", *MODALITIES))
    chosen("split", split, (OFFICIAL, *DHC_LABELLED, GUIDEDNET))
    if split in DHC_LABELLED and modality != "both":
        raise ConfigError(
            f"split = '{split}' mixes CT and MR", found=f"modality = {modality}", do="take both"
        )
    if split == GUIDEDNET and modality == "mr":
        raise ConfigError(f"split = '{split}' holds CT only", found=f"modality = {modality}", do="take ct")
    folder = existing_folder(folder)
    taken: Sequence[Modality] = MODALITIES if modality == "both" else (modality,)
    parts = _parts(folder, ("ct",) if split == GUIDEDNET else taken)
    cases = [
        case
        for (part, kind), pairs in parts.items()
        for case in pairs.cases(STRUCTURES, f"{data_set}_{kind}", part)
    ]
    if not cases:
        raise DataError(
            "no scan of AMOS22 here", file=folder, found=f"modality = {modality}", expected=LOOKS_FOR
        )
    if split != OFFICIAL:
        cases = _dealt(cases, split)
    names = dict.fromkeys(case.data_set for case in cases)
    kinds = {f"{data_set}_{kind}": kind for kind in MODALITIES}
    data_sets = {name: DataSet(name, VALUES, kinds[name]) for name in kinds if name in names}
    return Manifest(label_space(VALUES), data_sets, tuple(cases))


def _parts(folder: Path, kinds: Sequence[Modality]) -> dict[tuple[str, Modality], Pairs]:
    """Files by split and modality."""
    parts: dict[tuple[str, Modality], Pairs] = {
        (split, kind): Pairs() for split in SPLITS_OF_FOLDERS.values() for kind in kinds
    }
    for kind, split, file in files_by_place(folder, NAME):
        modality: Modality = "mr" if _number(stem(file)) >= FIRST_MR else "ct"
        if modality in kinds:
            parts[split, modality].add(kind, stem(file), file)
    return parts


def _dealt(cases: Sequence[Case], split: str) -> list[Case]:
    """The cases in the order and splits of published lists; unlabelled ones stay where they are."""
    by_id = {case.id: case for case in cases if case.annotated}
    lists = GUIDEDNET_LISTS if split == GUIDEDNET else _dhc_lists(by_id.values(), split)
    names = {part: [_name(number) for number in numbers] for part, numbers in lists.items()}
    split_of = by_published_lists(names, {name: [name] for name in by_id})
    dealt = [replace(by_id[name], split=part) for name, part in split_of.items()]
    return dealt + [replace(case, split="") for case in cases if not case.annotated]


def _dhc_lists(cases: Iterable[Case], split: str) -> Mapping[str, Sequence[int]]:
    """Scans of Tr train, but for 24; the labelled ones come first. Va tests."""
    train = sorted(_number(case.id) for case in cases if case.split == "train")
    test = sorted(_number(case.id) for case in cases if case.split == "validation")
    labelled = DHC_LABELLED[split]
    others = [number for number in train if number not in {*labelled, *DHC_VALIDATION}]
    return {"train": (*labelled, *others), "validation": DHC_VALIDATION, "test": test}


def _name(number: int) -> str:
    return f"amos_{number:04d}"


def _number(name: str) -> int:
    return int(name.removeprefix("amos_"))
