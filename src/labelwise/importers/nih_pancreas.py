"""NIH Pancreas-CT (NIH82): the pancreas in portal venous CT.

    Pancreas-CT/PANCREAS_0001/<study>/<series>/1-001.dcm ...     DICOM; in some copies without the two inner folders
    PANCREAS_0001.nii.gz                                         or NIfTI, at any depth
    TCIA_pancreas_labels-02-05-2017/label0001.nii.gz             in the folder, beside it, or named by `labels`

The headers of the labels are of no use: a label map is stored in the raster order of the DICOM files, its slice k
belongs to the k-th file by name. With DICOM images that decides. With NIfTI images rows or slices may run backwards,
and the voxels decide (see `alignment`). Images 25 and 70 show the scan of case 2 once more and were withdrawn in
2020: where they are present, the three form one group.

Source
    Roth et al., "Data From Pancreas-CT", The Cancer Imaging Archive 2016, doi 10.7937/K9/TCIA.2016.tNB1kqBU.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from labelwise.cohort.alignment import FLIPS, Alignment, Reading, align, data_sets_by_reading
from labelwise.cohort.manifest import Manifest
from labelwise.errors import DataError, LabelwiseError, ResourceError, warn_about
from labelwise.formats import Layout, is_dicom, stem
from labelwise.importers.listing import (
    Unlabelled,
    by_number,
    chosen,
    existing_folder,
    files_below,
    logger,
    split_of_unlabelled,
    subfolders,
)
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "PANCREAS_<n>/ with a DICOM series (or PANCREAS_<n>.nii.gz), and label<n>.nii.gz"
STRUCTURE = "pancreas"
VALUES = {0: BACKGROUND, 1: STRUCTURE}
ENDINGS = (".nii.gz", ".nii")
PATIENT = r"PANCREAS_(\d{4})"
IMAGE, LABEL = rf"{PATIENT}(?:_0000)?", r"label(\d{4})"
LABEL_FOLDER = "TCIA_pancreas_labels*"
REPEATS = (2, 25, 70)  # one scan

HEADERS = Reading("headers")
RASTER = {
    flip: Reading(f"flipped_{flip}" if flip else "raster", Layout(label_grid="image", label_flip=flip))
    for flip in FLIPS
}
RULES: Mapping[str, Reading] = {"headers": HEADERS, "none": RASTER[""], **{f: RASTER[f] for f in FLIPS if f}}
SAID: Mapping[Reading, str] = {
    HEADERS: "by their own headers",
    RASTER[""]: "in the raster order of the image",
    **{
        RASTER[flip]: f"in the raster order of the image, {' and '.join(flip)} backwards"
        for flip in FLIPS
        if flip
    },
}


def matches(folder: Path) -> bool:
    """Whether a folder holds scans under the names of this data set."""
    return next(_patient_folders(folder), None) is not None or any(
        re.fullmatch(IMAGE, stem(file), flags=re.IGNORECASE) for file in files_below(folder, ENDINGS)
    )


def scan(
    folder: Path | str,
    *,
    labels: Path | str | None = None,
    flip: Literal["check", "headers", "none", "y", "z", "yz"] = "check",
    unlabelled: Unlabelled = "leave_out",
    data_set: str = "nih",
) -> Manifest:
    """The manifest of the data set: labelled cases train.

    Parameters
        labels       the folder of the label files, relative to `folder` or absolute; else looked for in and beside it
        flip         how labels lie on NIfTI images: check reads the voxels of each case; or by their headers, or on
                     the stored image with these axes backwards
        unlabelled   whether scans without a label are unlabelled training cases, or take no part

    Errors
        ConfigError     an option has another value
        DataError       the folder is missing or empty, has no scan or no label, or two files of one scan
        ResourceError   there are only DICOM images, and the packages to read them are not installed
    """
    chosen("flip", flip, ("check", *RULES))
    spare = split_of_unlabelled(unlabelled)
    folder = existing_folder(folder)
    images = _images(folder)
    label_files = _labels(folder, labels)
    if not images.keys() & label_files.keys():
        raise DataError(
            "no label belongs to a scan",
            file=folder,
            found=f"{_name(next(iter(images)))}, {next(iter(label_files.values())).name}",
            expected="label0001.nii.gz for PANCREAS_0001",
        )
    readings, unfit = _readings(images, label_files, flip)
    data_sets, data_set_of = data_sets_by_reading(data_set, VALUES, "ct", readings)
    _report(images, label_files, readings, unfit, spare)
    usual = next(iter(data_sets))
    repeats = [number for number in REPEATS if number in images]
    cases = []
    for number, image in images.items():
        believed = number in readings and number not in unfit
        split = "train" if believed else "" if number in unfit else spare
        cases.append(
            Case(
                _name(number),
                (image,),
                label_files.get(number),
                frozenset({STRUCTURE} if believed else ()),
                group=f"{_name(REPEATS[0])}_repeats" if len(repeats) > 1 and number in repeats else "",
                data_set=data_set_of.get(number, usual),
                split=split,
            )
        )
    return Manifest(LabelSpace((BACKGROUND, STRUCTURE)), data_sets, tuple(cases))


# files


def _images(folder: Path) -> dict[int, Path]:
    """Number of a case -> its DICOM series, or its NIfTI file where there is none or it cannot be read."""
    series: dict[int, Path] = {}
    empty = []
    for patient in _patient_folders(folder):
        if place := _series(patient):
            series[_number(patient.name)] = place
        elif not files_below(patient, ENDINGS):
            empty.append(patient.name)
    warn_about("folders without a scan are left out", empty)
    nifti = by_number(files_below(folder, ENDINGS), IMAGE)
    if not series and not nifti:
        raise DataError("no scan of NIH Pancreas-CT here", file=folder, expected=LOOKS_FOR)
    if series.keys() - nifti.keys() and importlib.util.find_spec("pydicom") is None:
        raise ResourceError(
            "the scans are DICOM, and the packages to read DICOM are not installed",
            file=folder,
            do="pip install 'labelwise[dicom]', or convert the scans to PANCREAS_<n>.nii.gz",
            code="extra-missing",
        )
    # DICOM first: its file names say which slice a slice of the labels belongs to.
    found = {**nifti, **series} if importlib.util.find_spec("pydicom") else nifti
    return dict(sorted(found.items()))


def _labels(folder: Path, given: Path | str | None) -> dict[int, Path]:
    if given is not None:
        places = [existing_folder(folder / given)]
    else:
        places = [folder, *sorted(entry for entry in folder.parent.glob(LABEL_FOLDER) if entry.is_dir())]
    for place in places:
        if found := by_number(files_below(place, ENDINGS), LABEL):
            return found
    raise DataError(
        "there are no label files",
        file=places[0],
        expected="label0001.nii.gz, ...",
        do=f"put the folder {LABEL_FOLDER} into that of the scans, or name it: --labels FOLDER",
    )


def _patient_folders(folder: Path) -> Iterator[Path]:
    """Folders called PANCREAS_<n>, at any depth; what lies in them is not searched for others."""
    for inside in subfolders(folder):
        if re.fullmatch(PATIENT, inside.name):
            yield inside
        else:
            yield from _patient_folders(inside)


def _series(patient: Path) -> Path | None:
    """The folder of a patient's DICOM series: of several the one with most files."""
    folders = [patient, *sorted(entry for entry in patient.rglob("*") if entry.is_dir())]
    counts = {folder: len(files) for folder in folders if _first_dicom(files := _files(folder))}
    if len(counts) > 1:
        logger.warning(
            "%s has %d series: the one with most files is taken, %d of %d",
            patient.name, len(counts), max(counts.values()), sum(counts.values()),
        )  # fmt: skip
    return max(counts, key=lambda folder: counts[folder], default=None)


def _files(folder: Path) -> list[Path]:
    """The files of a folder as a person would number them: 1-2 before 1-10."""
    files = [entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return sorted(
        files, key=lambda file: [int(n) if n.isdecimal() else n for n in re.split(r"(\d+)", file.name)]
    )


def _first_dicom(files: list[Path]) -> Path | None:
    return next((file for file in files if is_dicom(file)), None)


def _number(name: str) -> int:
    return int(name[-4:])


def _name(number: int) -> str:
    return f"PANCREAS_{number:04d}"


# how labels lie on images


def _readings(
    images: Mapping[int, Path], labels: Mapping[int, Path], flip: str
) -> tuple[dict[int, Reading], list[int]]:
    """How each labelled case is read, and the cases whose labels fit in no way."""
    both = [number for number in images if number in labels]
    to_check = [number for number in both if not images[number].is_dir()] if flip == "check" else []
    if to_check:
        logger.info("reading %d NIfTI images to see how their labels lie", len(to_check))
    readings: dict[int, Reading] = {}
    unfit, doubtful = [], []
    for number in both:
        if images[number].is_dir():
            readings[number] = RASTER["z"] if _names_run_down(images[number]) else RASTER[""]
        elif flip != "check":
            readings[number] = RULES[flip]
        else:
            found = _aligned(images[number], labels[number])
            readings[number] = HEADERS if found.headers else RASTER[found.flip or ""]
            unfit += [number] if found.flip is None else []
            doubtful += [] if found.certain else [number]
    warn_about("labels that fit about as well with another flip; look at them", [_name(n) for n in doubtful])
    return readings, unfit


def _aligned(image: Path, labels: Path) -> Alignment:
    """What the voxels say; of files that cannot be read nothing, which `check` explains."""
    try:
        return align(image, labels)
    except LabelwiseError:
        return Alignment()


def _names_run_down(series: Path) -> bool:
    """Whether the last file by name lies below the first, along the normal by which slices are sorted.

    Only the headers of these two files are read.
    """
    header = importlib.import_module("labelwise.formats.dicom.header")
    files = _files(series)
    ends = [_first_dicom(files), _first_dicom(files[::-1])]
    try:
        (first, *_), (last, *_) = (header.read_header(file).frames for file in ends)
    except (LabelwiseError, ValueError):  # damaged, or without a place: the reader will say so
        return False
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    return bool(np.dot(normal, np.subtract(last.position, first.position)) < 0)


def _report(
    images: Mapping[int, Path],
    labels: Mapping[int, Path],
    readings: Mapping[int, Reading],
    unfit: list[int],
    spare: str,
) -> None:
    orphans = [number for number in labels if number not in images]
    withdrawn = [number for number in orphans if number in REPEATS]
    warn_about("labels of withdrawn scans are left out", [f"label{number:04d}" for number in withdrawn])
    warn_about(
        "labels without a scan are left out",
        [f"label{number:04d}" for number in orphans if number not in REPEATS],
    )
    part = "train without labels" if spare else "take no part"
    warn_about(f"scans without labels {part}", [_name(number) for number in images if number not in labels])
    for reading in dict.fromkeys(readings.values()):
        members = [number for number, own in readings.items() if own == reading and number not in unfit]
        warn_about(f"labels read {SAID[reading]}", [_name(number) for number in members])
    warn_about(
        "labels that lie on soft tissue with no flip, or cannot be read, take no part",
        [_name(number) for number in unfit],
    )
    repeats = [_name(number) for number in REPEATS if number in images]
    if len(repeats) > 1:
        warn_about("one scan, several cases: they form one group", repeats)
