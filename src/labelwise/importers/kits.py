"""KiTS19, KiTS21 and KiTS23: kidneys, kidney tumours and cysts in contrast-enhanced CT.

    data/case_00000/imaging.nii.gz                      KiTS19 and KiTS21; dataset/case_00000/... in KiTS23
    data/case_00000/segmentation.nii.gz                 KiTS19 and KiTS23
    data/case_00000/aggregated_MAJ_seg.nii.gz           KiTS21
    data/case_00210/imaging.nii.gz                      test cases have no labels

Both kidneys are one class. Arrays are stored slices first. The headers of the first release name these axes
x, y, z: such files are read as what they are. Image and labels of a case may come from two releases, so the
labels take the grid of the image.

Source
    Heller et al., Medical Image Analysis 2021 (KiTS19); Heller et al., arXiv 2307.01984 (KiTS21).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from labelwise.cohort.alignment import Reading, data_sets_by_reading, headers_agree, stored_grid
from labelwise.cohort.manifest import Manifest
from labelwise.errors import DataError, warn_about
from labelwise.formats import Geometry, Layout, stem
from labelwise.importers.listing import (
    Tumour,
    Unlabelled,
    class_names,
    existing_folder,
    files_below,
    lesion_class,
    split_of_unlabelled,
)
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "case_<n>/imaging.nii.gz and segmentation.nii.gz (or aggregated_MAJ_seg.nii.gz)"
STRUCTURE, TUMOUR, CYST = "kidneys", "kidney tumour", "kidney cyst"
ENDINGS = (".nii.gz", ".nii")
IMAGE, LABELS = "imaging", ("segmentation", "aggregated_MAJ_seg")
CURRENT = Reading("current", Layout(label_grid="image"))
FIRST_RELEASE = Reading("first_release", Layout(label_grid="image", slices_first=True))


def matches(folder: Path) -> bool:
    """Whether a folder holds cases of this data set, be it without images."""
    return any(_case_of(file) and stem(file) in (IMAGE, *LABELS) for file in files_below(folder, ENDINGS))


def scan(
    folder: Path | str,
    *,
    tumour: Tumour = "background",
    cyst: Tumour = "organ",
    unlabelled: Unlabelled = "leave_out",
    data_set: str = "kits",
) -> Manifest:
    """The manifest of the data set: labelled cases train.

    Parameters
        tumour       what tumours count as: organ (kidneys), background, ignore, or class (kidney tumour)
        cyst         what cysts count as, likewise (kidney cyst); KiTS19 has them in the kidney
        unlabelled   whether cases without labels are unlabelled training cases, or take no part

    Errors
        ConfigError   an option has another value
        DataError     the folder is missing or empty, has no case, or the images were not downloaded
    """
    values = {
        0: BACKGROUND,
        1: STRUCTURE,
        2: lesion_class("tumour", tumour, STRUCTURE, TUMOUR),
        3: lesion_class("cyst", cyst, STRUCTURE, CYST),
    }
    spare = split_of_unlabelled(unlabelled)
    folder = existing_folder(folder)
    files = _files(folder)
    images, labels = files[IMAGE], {**files[LABELS[1]], **files[LABELS[0]]}
    if not images:
        raise _no_images(folder, labels)
    readings = {
        name: FIRST_RELEASE if is_first_release(stored_grid(image)) else CURRENT
        for name, image in images.items()
    }
    _report(images, labels, readings, spare)
    data_sets, data_set_of = data_sets_by_reading(data_set, values, "ct", readings)
    names = class_names(dict.fromkeys(values.values()))
    cases = [
        Case(
            name,
            (image,),
            labels.get(name),
            frozenset(names[1:]) if name in labels else frozenset(),
            data_set=data_set_of[name],
            split="train" if name in labels else spare,
        )
        for name, image in images.items()
    ]
    return Manifest(LabelSpace(names), data_sets, tuple(cases))


def is_first_release(grid: Geometry | None) -> bool:
    """Whether a header calls slices, rows, columns x, y, z: a diagonal one whose last two axes are in the slice.

    The axes in the slice share one voxel size, and one number of voxels in all scans but case_00160.
    """
    if grid is None:
        return False
    axes = grid.affine[:3, :3]
    if not np.allclose(axes, np.diag(np.diag(axes)), atol=1e-6):
        return False
    thickness, row, column = grid.spacing_mm
    if not np.isclose(row, column, rtol=1e-4):
        return False
    slices, rows, columns = grid.shape
    return not np.isclose(thickness, row, rtol=1e-4) or slices != rows == columns


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """Kind of file -> name of the case -> file, cases in order."""
    found: dict[str, dict[str, Path]] = {kind: {} for kind in (IMAGE, *LABELS)}
    for file in files_below(folder, ENDINGS):
        case = _case_of(file)
        if case and (kind := stem(file)) in found:
            if case in found[kind]:
                raise DataError(
                    "two files hold the same scan",
                    case=case,
                    file=file,
                    found=found[kind][case],
                    do="remove one of them",
                )
            found[kind][case] = file
    return {kind: dict(sorted(files.items())) for kind, files in found.items()}


def _case_of(file: Path) -> str:
    """The folder of a case, above the file or above a folder into which the file was unpacked."""
    for folder in (file.parent, file.parent.parent):
        if re.fullmatch(r"case_\d{5}", folder.name):
            return folder.name
        if stem(folder) != stem(file):
            break
    return ""


def _no_images(folder: Path, labels: Mapping[str, Path]) -> DataError:
    if not labels:
        return DataError("no case of KiTS here", file=folder, expected=LOOKS_FOR)
    return DataError(
        "the labels are there, the images are not: a clone of the repository holds labels only",
        file=folder,
        found=f"{len(labels)} label files, no imaging.nii.gz",
        do="fetch the images with the download program of that repository (get_imaging), then import again",
    )


def _report(
    images: Mapping[str, Path], labels: Mapping[str, Path], readings: Mapping[str, Reading], spare: str
) -> None:
    warn_about("labels without imaging.nii.gz are left out", [name for name in labels if name not in images])
    part = "train without labels" if spare else "take no part"
    warn_about(f"cases without labels {part}", [name for name in images if name not in labels])
    first = [name for name, reading in readings.items() if reading is FIRST_RELEASE]
    warn_about("headers of the first release call slices, rows, columns x, y, z; read as slices first", first)
    disagree = [n for n, image in images.items() if n in labels and not headers_agree(image, labels[n])]
    warn_about("headers of labels disagree with their image, whose grid counts", disagree)
