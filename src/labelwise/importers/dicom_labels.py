"""Labels among DICOM series: DICOM-SEG and RTSTRUCT objects, and NIfTI label maps beside."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labelwise.anatomy import canonical
from labelwise.errors import DataError, warn_about
from labelwise.formats import read_geometry, stem
from labelwise.importers.listing import files_below

if TYPE_CHECKING:  # at run time the extra may be missing
    from labelwise.formats.dicom.image import Series

NIFTI = (".nii.gz", ".nii")
LABEL_WORDS = {"label", "labels", "mask", "masks", "seg", "segmentation", "segmentations", "gt"}
_READER = {"SEG": "dicom.seg", "RTSTRUCT": "dicom.rtstruct"}


@dataclass(frozen=True)
class Labels:
    """What is known about the labels of one series."""

    file: Path
    names: tuple[str, ...] = ()  # of the segments; empty: a map of integers


def class_name(segment: str) -> str:
    """The name of a class: canonical if `labelwise.anatomy` knows it, else without the signs that tables need."""
    return canonical(re.sub(r"[;,=\s]+", " ", segment).strip())


def objects_of(folder: Path, found: Sequence[Series], wanted: Sequence[str] | None) -> dict[str, Labels]:
    """Key of a series -> its DICOM-SEG or RTSTRUCT; the one with most of the wanted names if there are several."""
    dicom = importlib.import_module("labelwise.formats.dicom.image")
    labels: dict[str, Labels] = {}
    further, homeless, damaged = [], [], []
    for label in dicom.label_objects_in(folder):
        module = importlib.import_module(f"labelwise.formats.{_READER[label.modality]}")
        shown = label.file.relative_to(folder).as_posix()
        try:
            names = tuple(name for name in module.names(label.file) if _is_wanted(name, wanted))
            reference = module.referenced_series(label.file)
        except DataError:
            damaged.append(shown)
            continue
        owner = _owner(label, reference, found, dicom)
        if owner is None or not names:
            homeless.append(shown)
            continue
        before = labels.get(owner.key)
        if before is None or len(names) > len(before.names):
            labels[owner.key] = Labels(label.file, names)
        if before is not None:
            further.append(shown)
    warn_about("label objects that cannot be read are left out", damaged)
    warn_about("label objects that name no series here, or no wanted structure, are left out", homeless)
    warn_about("label objects beside another of the same series: the one with most names counts", further)
    return labels


def _owner(label: Any, reference: str | None, found: Sequence[Series], dicom: ModuleType) -> Series | None:
    """The series that labels belong to: the one that they refer to, or the one in their frame of reference."""
    usable = [one for one in found if one.usable]
    by_reference = [one for one in usable if reference and one.uid == reference]
    if by_reference:
        return max(by_reference, key=lambda one: one.num_slices)
    same = [
        one
        for one in usable
        if label.frame_of_reference
        and one.frame_of_reference == label.frame_of_reference
        and one.patient == label.patient
    ]
    best = dicom.choose(same)
    return best[0] if len(best) == 1 else None


def maps_on(folder: Path, paths: Mapping[str, Path]) -> dict[str, Labels]:
    """Key of a series -> the label map that lies on its grid; of several fitting series the nearest by path."""
    grids = {key: read_geometry(path) for key, path in paths.items()}
    labels: dict[str, Labels] = {}
    unclear = []
    for file in files_below(folder, NIFTI):
        names = {_folder(path).name for path in paths.values()}
        words = set(re.split(r"[^a-z]+", f"{file.relative_to(folder).as_posix()}".lower()))
        if not words & LABEL_WORDS and stem(file) not in names:
            continue
        try:
            grid = read_geometry(file)
        except DataError:
            unclear.append(file.relative_to(folder).as_posix())
            continue
        near = {key: _nearness(file, paths[key]) for key, own in grids.items() if own.matches(grid)}
        best = [key for key, value in near.items() if value == max(near.values())]
        if len(best) == 1 and best[0] not in labels:
            labels[best[0]] = Labels(file)
        else:
            unclear.append(file.relative_to(folder).as_posix())
    warn_about("NIfTI label files that do not belong to exactly one series are left out", unclear)
    return labels


def _nearness(file: Path, path: Path) -> tuple[bool, int]:
    folder = _folder(path)
    shared = sum(parent in folder.parents or parent == folder for parent in file.parents)
    return folder.name.lower() in stem(file).lower(), shared


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    """Whether a segment is asked for, by its own name or that of its class; a name without letters never is."""
    if wanted is None:
        return bool(class_name(name))
    return name in wanted or class_name(name) in {canonical(each) for each in wanted}
