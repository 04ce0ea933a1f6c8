"""LiTS: liver and liver tumours in contrast-enhanced CT.

    Training Batch 1/volume-0.nii ... volume-27.nii         with segmentation-0.nii ...
    Training Batch 2/volume-28.nii ... volume-130.nii       with segmentation-28.nii ...
    test-volume-0.nii ... test-volume-69.nii                without labels

Files are found by name at any depth, compressed or not, also where an archive unpacks `x.nii` as a folder. The
headers of image and labels can disagree; the labels take the grid of the image. Volumes 28 to 47 come from
3D-IRCADb with an identity affine and a false voxel size of 1 mm: they take no part unless `suspect` says so.

Source
    Bilic et al., "The Liver Tumor Segmentation Benchmark (LiTS)", Medical Image Analysis 2023.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from labelwise.cohort.alignment import headers_agree, stored_grid
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import DataError, warn_about
from labelwise.formats import Geometry, Layout, stem
from labelwise.importers.listing import (
    Tumour,
    Unlabelled,
    by_number,
    chosen,
    class_names,
    existing_folder,
    files_below,
    lesion_class,
    split_of_unlabelled,
)
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "volume-<n>.nii and segmentation-<n>.nii"
STRUCTURE, TUMOUR = "liver", "liver tumour"
ENDINGS = (".nii", ".nii.gz")
VOLUME, SEGMENTATION, TEST_VOLUME = r"volume-(\d+)", r"segmentation-(\d+)", r"test-volume-(\d+)"


def matches(folder: Path) -> bool:
    """Whether a folder holds labelled volumes of this data set."""
    names = [stem(file) for file in files_below(folder, ENDINGS)]
    return all(
        any(re.fullmatch(kind, name, flags=re.IGNORECASE) for name in names)
        for kind in (VOLUME, SEGMENTATION)
    )


def scan(
    folder: Path | str,
    *,
    tumour: Tumour = "organ",
    suspect: Literal["leave_out", "keep"] = "leave_out",
    unlabelled: Unlabelled = "leave_out",
    data_set: str = "lits",
) -> Manifest:
    """The manifest of the data set: labelled volumes train.

    Parameters
        tumour       what tumours count as: organ (liver), background, ignore, or class (liver tumour)
        suspect      whether volumes with a false voxel size take part
        unlabelled   whether volumes without labels are unlabelled training cases, or take no part

    Errors
        ConfigError   an option has another value
        DataError     the folder is missing or empty, has no volume, or two files of one volume
    """
    values = {0: BACKGROUND, 1: STRUCTURE, 2: lesion_class("tumour", tumour, STRUCTURE, TUMOUR)}
    keep, spare = chosen("suspect", suspect, ("leave_out", "keep")) == "keep", split_of_unlabelled(unlabelled)
    folder = existing_folder(folder)
    files = files_below(folder, ENDINGS)
    images, labels = by_number(files, VOLUME), by_number(files, SEGMENTATION)
    tests = by_number(files, TEST_VOLUME)
    if not images and not tests:
        raise DataError("no volume of LiTS here", file=folder, expected=LOOKS_FOR)
    false_size = [number for number, image in images.items() if has_false_size(stored_grid(image))]
    _report(images, labels, tests, false_size, keep=keep, unlabelled=spare)
    left_out = frozenset(() if keep else false_size)
    names = class_names(dict.fromkeys(values.values()))
    cases = [
        Case(
            f"volume-{number}",
            (image,),
            labels.get(number),
            frozenset(names[1:]) if number in labels else frozenset(),
            data_set=data_set,
            split="" if number in left_out else "train" if number in labels else spare,
        )
        for number, image in images.items()
    ]
    cases += [
        Case(f"test-volume-{number}", (image,), data_set=data_set, split=spare)
        for number, image in tests.items()
    ]
    table = DataSet(data_set, values, "ct", Layout(label_grid="image"))
    return Manifest(LabelSpace(names), {data_set: table}, tuple(cases))


def has_false_size(grid: Geometry | None) -> bool:
    """Whether a header says nothing about the scan: axes along the world's, voxels of exactly 1 mm."""
    if grid is None:
        return False
    axes = np.abs(grid.affine[:3, :3])
    return bool(np.allclose(axes, np.eye(3), atol=1e-6))


def _report(
    images: dict[int, Path],
    labels: dict[int, Path],
    tests: dict[int, Path],
    false_size: list[int],
    *,
    keep: bool,
    unlabelled: str,
) -> None:
    def named(numbers: list[int]) -> list[str]:
        return [f"volume-{number}" for number in numbers]

    part = "train without labels" if unlabelled else "take no part"
    warn_about(f"volumes without a segmentation {part}", named([n for n in images if n not in labels]))
    warn_about(f"test volumes {part}", [f"test-volume-{number}" for number in tests])
    warn_about(
        "segmentations without a volume are left out",
        [f"segmentation-{number}" for number in labels if number not in images],
    )
    fate = "kept" if keep else "left out; suspect = keep takes them in"
    warn_about(f"volumes with a false voxel size of 1 mm are {fate}", named(false_size))
    disagree = [n for n, image in images.items() if n in labels and not headers_agree(image, labels[n])]
    warn_about("headers of labels disagree with their image, whose grid counts", named(disagree))
