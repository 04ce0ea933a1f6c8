"""LA2018: the left atrium in late-gadolinium MR, raw or in the h5 form that all semi-supervised papers use.

Raw, as the challenge gives it out
    Training Set/<id>/lgemri.nrrd               100 scans, 0.625 mm; laendo.nrrd, 255 = left atrium
    Testing Set/<id>/lgemri.nrrd                54 scans; labels came later, and not with every copy

h5
    2018LA_Seg_Training Set/<id>/mri_norm2.h5   image float32 (X, Y, 88), label uint8 {0, 1}
    train.list, test.list                       80 and 20 ids, one level above or beside the scans

The manifest keeps the order of train.list: the papers' "n labelled scans" are its first n, which
`hide(manifest, "keep_labelled", n=n)` reproduces; raw scans get the same order and splits. There is no validation
set; `split.hold_out` carves one out. The h5 files store no spacing; it is 0.625 mm along each axis. Their
intensities were normalised over the whole scan before it was cropped around the true left atrium, test scans
included: scores do not transfer to uncropped scans.

Source
    2018 Atrial Segmentation Challenge; files and lists of Yu et al., MICCAI 2019 (UA-MT).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import DataError
from labelwise.formats import Layout
from labelwise.importers.listing import chosen, existing_folder, files_below, listed
from labelwise.importers.paired import Pairs, by_published_lists
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = (
    "<id>/mri_norm2.h5, with train.list and test.list beside or above; or <id>/lgemri.nrrd and laendo.nrrd"
)
FILE_NAME = "mri_norm2.h5"
RAW_IMAGE, RAW_LABELS = "lgemri.nrrd", "laendo.nrrd"
STRUCTURE = "left atrium"
VALUES = {0: BACKGROUND, 1: STRUCTURE}
RAW_VALUES = {0: BACKGROUND, 1: STRUCTURE, 255: STRUCTURE}  # 255 as published; some copies are binary
LAYOUT = Layout(axes="xyz", spacing_mm=(0.625, 0.625, 0.625))
LISTS = {"train.list": "train", "test.list": "test"}
SPACE = LabelSpace((BACKGROUND, STRUCTURE))

# The published test list, of the 100 scans of the challenge's training set; the other 80 train in the order of ids.
UAMT_TEST = (
    "UPT6DX9IQY9JAZ7HJKA7", "UTBUJIWZMKP64E3N73YC", "ULHWPWKKLTE921LQLH1P", "V0MZOWJ6MU3RMRCV9EXR",
    "VDOF02M8ZHEAADFMS6NP", "VG4C826RAAKVMV9BQLVD", "VIXBEFTNVHZWKAKURJBN", "VQ2L3WM8KEVF6L44E6G9",
    "WBG9WYZ1B25WDT5WAT8T", "WMDG2EFA6L2SNDZXIRU0", "WNPKE0W404QE9AELX1LR", "WSJB9P4JCXUVHBOYFVWL",
    "WW8F5CO4S4K5IM5Z7EXX", "X18LU5AOBNNDMLTA0JZL", "XYDLYJ5CS19FDBVLJIPI", "Y7ZU0B2APPF54WG6PDMF",
    "YDKD1HVHSME6NVMA8I39", "Z9GMG63CJLL0VW893BB1", "ZIJLJAVQV3FJ6JSQOH1E", "ZQPMJ4XEC5A4BISD45P1",
)  # fmt: skip


def matches(folder: Path) -> bool:
    """Whether a folder holds scans of this data set, raw or as h5."""
    return bool(files_below(folder, [FILE_NAME]) or files_below(folder, [RAW_IMAGE]))


def scan(
    folder: Path | str,
    *,
    split: Literal["lists", "uamt", "challenge"] | None = None,
    data_set: str = "la2018",
) -> Manifest:
    """The manifest of the data set.

    Parameters
        split    lists: train.list and test.list, in their order (h5; the default there). uamt: the published 80
                 and 20 scans of the training set, in the same order (raw; the default there). challenge: the
                 training set trains, the testing set tests (raw)

    Errors
        ConfigError   `split` has another value, or one that this form of the data set does not have
        DataError     the folder is missing or empty, has no scan or both forms, or a list is missing or names no
                      scan in it
    """
    folder = existing_folder(folder)
    files = {file.parent.name: file for file in files_below(folder, [FILE_NAME])}
    raw = _raw(folder)
    has_raw = any(part.images for part in raw.values())
    if files and has_raw:
        raise DataError(
            "two forms of LA2018 lie here",
            file=folder,
            found=f"{FILE_NAME} and {RAW_IMAGE}",
            do="name the folder that holds one of them",
        )
    if has_raw:
        split = split or "uamt"
        chosen("split", split, ("uamt", "challenge"))
        return _from_raw(raw, split, data_set)
    if not files:
        raise DataError("no scan of LA2018 here", file=folder, expected=LOOKS_FOR)
    chosen("split", split or "lists", ("lists",))
    split_of = listed(folder, LISTS, {name: [name] for name in files})
    cases = [
        Case(name, (files[name],), files[name], frozenset({STRUCTURE}), data_set=data_set, split=split)
        for name, split in split_of.items()
    ]
    return Manifest(SPACE, {data_set: DataSet(data_set, VALUES, "mr", LAYOUT, normalised=True)}, tuple(cases))


def _raw(folder: Path) -> dict[str, Pairs]:
    """Scans of the training and the testing set, by the name of the folder that holds them."""
    parts = {"train": Pairs(), "test": Pairs()}
    for file in files_below(folder, [RAW_IMAGE, RAW_LABELS]):
        if file.name.lower() in (RAW_IMAGE, RAW_LABELS):
            split = "test" if file.parent.parent.name.lower().startswith("test") else "train"
            kind = "images" if file.name.lower() == RAW_IMAGE else "labels"
            parts[split].add(kind, file.parent.name, file)
    return parts


def _from_raw(parts: Mapping[str, Pairs], split: str, data_set: str) -> Manifest:
    cases = [case for part, pairs in parts.items() for case in pairs.cases([STRUCTURE], data_set, part)]
    if split == "uamt":
        cases = list(_published(cases))
    return Manifest(SPACE, {data_set: DataSet(data_set, RAW_VALUES, "mr")}, tuple(cases))


def _published(cases: Iterable[Case]) -> Iterable[Case]:
    by_id = {case.id: case for case in cases}
    train = [name for name, case in sorted(by_id.items()) if case.split == "train" and name not in UAMT_TEST]
    split_of = by_published_lists({"train": train, "test": UAMT_TEST}, {name: [name] for name in by_id})
    return (replace(by_id[name], split=part) for name, part in split_of.items())
