"""ACDC: right ventricle, myocardium and left ventricle in short-axis cine MR, as h5 volumes.

    <patient>_frameNN.h5            image float32 (Z, Y, X) scaled to 0..1; label; scribble, 4 = unknown
    train.list, val.list            patients or volumes, one level above or beside the files
    test.list                       not in every copy

The patients of train.list train. Without a test.list those of val.list are the test cases, as in the papers
that report on them; with one, they validate. End diastole and end systole of a patient form one group. The
files store no spacing: a voxel counts as 1 mm along each axis, so distances are in voxels.

Source
    Bernard et al., IEEE TMI 2018; files of Luo et al. (SSL4MIS) and, for the scribbles, Valvano et al.,
    IEEE TMI 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from labelwise.data.importers.listing import existing_folder, files_below, find_list, listed, logger
from labelwise.data.manifest import Manifest, Source
from labelwise.data.source import IGNORE_NAME
from labelwise.errors import ConfigError, DataError
from labelwise.formats import Layout, stem
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "<patient>_frameNN.h5, with train.list and val.list beside or above"
ORGANS = ("right ventricle", "myocardium", "left ventricle")
VALUES = dict(enumerate((BACKGROUND, *ORGANS)))
LISTS = {"train.list": "train", "val.list": "test"}
LISTS_WITH_TEST = {"train.list": "train", "val.list": "validation", "test.list": "test"}


def matches(folder: Path) -> bool:
    """Whether a folder holds volumes of this data set."""
    return bool(_volumes(folder))


def scan(
    folder: Path | str, *, labels: Literal["dense", "scribble"] = "dense", source: str = "acdc"
) -> Manifest:
    """The manifest of the data set, training cases in the order of train.list.

    Parameters
        labels      what training cases learn from; the cases of the other splits always have dense labels

    Errors
        ConfigError   `labels` is neither dense nor scribble
        DataError     the folder is missing or empty, has no volume, or a list is missing or names none
    """
    if labels not in ("dense", "scribble"):
        raise ConfigError(f"unknown kind of labels '{labels}'", expected="dense or scribble")
    folder = existing_folder(folder)
    volumes = _volumes(folder)
    if not volumes:
        raise DataError("no volume of ACDC here", file=folder, expected=LOOKS_FOR)
    logger.info("ACDC h5 files store no spacing: a voxel counts as 1 mm, distances are in voxels")
    dense = Source(source, VALUES, "normalised", Layout(axes="zyx"))
    train = _scribbles(source) if labels == "scribble" else dense
    lists = LISTS_WITH_TEST if find_list(folder, "test.list") else LISTS
    cases = [
        Case(
            name,
            (volumes[name],),
            labels=volumes[name],
            annotated=frozenset(ORGANS),
            group=_patient(name),
            source=train.name if split == "train" else dense.name,
            split=split,
        )
        for name, split in listed(folder, lists, _names_of(volumes)).items()
    ]
    sources = {table.name: table for table in (train, dense)}
    return Manifest(LabelSpace((BACKGROUND, *ORGANS)), sources, tuple(cases))


def _scribbles(source: str) -> Source:
    layout = Layout(axes="zyx", label_key="scribble")
    return Source(f"{source}_scribble", {**VALUES, 4: IGNORE_NAME}, "normalised", layout)


def _volumes(folder: Path) -> dict[str, Path]:
    files = files_below(folder, [".h5"])
    return {stem(file): file for file in files if re.fullmatch(r"patient\d+_frame\d+", stem(file))}


def _names_of(volumes: Iterable[str]) -> dict[str, list[str]]:
    """A list may name a volume, or a patient and so all volumes of the patient."""
    names: dict[str, list[str]] = {}
    for name in sorted(volumes):
        names[name] = [name]
        names.setdefault(_patient(name), []).append(name)
    return names


def _patient(name: str) -> str:
    return name.split("_")[0]
