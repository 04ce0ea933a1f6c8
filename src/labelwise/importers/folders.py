"""Plain folders: images here, label files there, paired by name; or a folder for each patient; or images alone.

    <folder>/images/<case>.nii.gz          also <case>_0000.nii.gz, _0001, ... for the channels of a case
    <folder>/labels/<case>.nii.gz          an image without a label is an unlabelled case

    <folder>/<site>/images/<case>.nii.gz   the same in a folder for each site or patient
    <folder>/<site>/labels/<case>.nii.gz

    <folder>/<case>/ct.nii.gz              any name; several that are the same in every folder are channels
    <folder>/<case>/seg.nii.gz             a word such as seg, mask or label in its name, or .seg.nrrd

Both may hold folders of folders. Segmentations of 3D Slicer (.seg.nrrd) are labels wherever they lie. Such a data set
does not say whether it is CT or MR, and which classes its integers mean, unless the label files name them (predictions
of labelwise, 3D Slicer, TotalSegmentator): else the user does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from labelwise.anatomy import canonical
from labelwise.cohort.data_set import Modality, value_table
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import DataError, warn_about
from labelwise.formats import Layout, case_of, suffix, value_names
from labelwise.formats.label_maps import LABEL_FOLDERS, label_maps_among, label_words, within
from labelwise.formats.naming import recorded_intensity
from labelwise.formats.stored import SEGMENTATION
from labelwise.importers.described import about
from labelwise.importers.listing import (
    Values,
    annotated_structures,
    class_names,
    existing_folder,
    files_below,
    group_of,
    stated,
)
from labelwise.preprocess.intensity import Intensity
from labelwise.types import Case, LabelSpace

LOOKS_FOR = (
    "images/<case>.nii.gz and labels/<case>.nii.gz, or <case>/<scan> and <case>/<labels>, or scans alone"
)
IMAGE_FOLDERS = ("images", "image", "imagestr", "imgs", "img", "scans", "volumes")
_KIND_WORDS = (*IMAGE_FOLDERS, *LABEL_FOLDERS, "scan", "volume")  # in names of files
MAX_CHANNELS = 8  # more files called _0000, _0001, ... are numbered cases, not channels


def matches(folder: Path) -> bool:
    """Whether there is any scan below a folder."""
    return bool(files_below(folder))


def scan(
    folder: Path | str,
    *,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    modality: Modality | None = None,
    images: Path | str | None = None,
    labels: Path | str | None = None,
    annotated: Iterable[str] | None = None,
    group: str | None = None,
    layout: Layout | None = None,
    data_set: str | None = None,
    without: Collection[Path] = (),
) -> Manifest:
    """The manifest of a folder of images and a folder of labels; all cases are in the training split.

    Parameters
        classes     class name -> value or values in the label files; "background" and "ignore" may be among
                    them. Default: the names in the label files; none where there are no label files
        modality    ct, mr or other. Default: that of the records beside
                    predictions
        images      folder of the images, if its name is not a usual one; relative to `folder` or absolute
        labels      folder of the labels, likewise
        annotated   the classes that labelled cases are annotated for, if not all
        group       regular expression whose match in a case id names the patient
        layout      what h5 files do not say about themselves
        data_set      name of the data set; the folder's if not given
        without     files that belong to others

    Errors
        ConfigError   `classes` or `modality` is missing or wrong
        DataError     no image; no label has an image; two files have the same name; labels lie among the
                      images
    """
    folder = existing_folder(folder)
    image_groups, label_files = _files(folder, images, labels, without)
    _refuse_label_maps([file for files in image_groups.values() for file in files])
    recorded = _recorded(label_files)
    known: Modality | None = "other" if recorded == "normalised" else recorded
    classes, modality = stated(
        classes or _named(label_files),
        modality or known,
        folder,
        labelled=bool(label_files),
    )
    names, name = class_names(classes), data_set or folder.name
    if names[1:] and not label_files:
        warn_about("no label file was found, so no case is annotated for the stated classes", names[1:])
    structures = annotated_structures(annotated, names[1:])
    cases = [
        Case(
            _case_id(key),
            files,
            labels=label_files.get(key),
            annotated=structures if key in label_files else frozenset(),
            group=group_of(_case_id(key), group),
            data_set=name,
            split="train",
        )
        for key, files in image_groups.items()
    ]
    with about(folder):
        normalised = recorded == "normalised"
        table = DataSet(name, value_table(classes), modality, layout or Layout(), normalised=normalised)
        return Manifest(LabelSpace(names), {name: table}, tuple(cases))


# what label files say themselves


def _named(label_files: Mapping[str, Path]) -> Values | None:
    """Class -> value, by the names in all label files; None if a file names nothing.

    Files may number structures differently: each is read by its own names, and the table is that of the first.
    """
    found: dict[str, int] = {}
    taken: set[int] = set()
    for file in label_files.values():
        try:
            named = value_names(file)
        except DataError:  # damaged: `check` says so
            continue
        if not named:
            return None
        for value, name in named.items():
            if value and canonical(name) not in map(canonical, found):
                free = value if value not in taken else max(taken) + 1
                found[name] = free
                taken.add(free)
    return found or None


def _recorded(label_files: Mapping[str, Path]) -> Intensity | None:
    """What the intensities were of all scans that the records beside predictions name."""
    found = {recorded_intensity(file) for file in label_files.values()}
    return next((known for known in get_args(Intensity) if found == {known}), None)


# files


def _files(
    folder: Path, images: Path | str | None, labels: Path | str | None, without: Collection[Path]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    """Image files and label file of each case."""
    image_folder = _subfolder(folder, images, IMAGE_FOLDERS) or folder
    label_folder = _subfolder(folder, labels, LABEL_FOLDERS)
    there = [file for file in files_below(image_folder) if file not in without]
    passed_over = [file for file in there if _below_labels(file, image_folder, label_folder)]
    image_files = [file for file in there if file not in passed_over and label_folder not in file.parents]
    segmentations = [file for file in image_files if suffix(file) == SEGMENTATION]
    image_files = [file for file in image_files if suffix(file) != SEGMENTATION]
    if not image_files:
        raise DataError("there are no images", file=image_folder, expected=LOOKS_FOR)
    in_places = {} if label_folder else _by_place(image_folder, image_files, passed_over)
    warn_about(
        "label files in other folders than the labels are passed over (--labels names their folder)",
        [file.relative_to(folder).as_posix() for file in passed_over if file not in in_places.values()],
    )
    _report_elsewhere(folder, image_folder, label_folder, without)
    if label_folder is not None:
        label_files = _by_name(
            label_folder, [file for file in files_below(label_folder) if file not in without]
        )
    elif in_places:
        label_files = in_places
    else:
        if found := _by_patient(image_folder, image_files, segmentations):
            return found
        if not segmentations:
            _refuse_labels_among(image_files)
        label_files, segmentations = _by_name(image_folder, segmentations), []
    warn_about(
        "segmentations beside the scans are passed over: the labels lie in another folder",
        [file.relative_to(folder).as_posix() for file in segmentations],
    )
    image_groups = _by_case(image_folder, image_files, label_files)
    if label_folder is not None:
        _refuse_choice(folder, label_folder, image_groups, label_files)
    label_files = _called_as_images(image_groups, label_files)
    _report_orphans(image_groups, label_files, label_folder)
    return image_groups, label_files


def _report_elsewhere(
    folder: Path, image_folder: Path, label_folder: Path | None, without: Collection[Path]
) -> None:
    """Name the files beside the folder of images that are no labels."""
    beside = [
        file.relative_to(folder).as_posix()
        for file in files_below(folder)
        if image_folder not in file.parents
        and not _below_labels(file, folder, label_folder)
        and label_folder not in file.parents
        and file not in without
    ]
    warn_about(
        "files in other folders than images and labels are passed over (--images and --labels name these)",
        beside,
    )


def _refuse_label_maps(scans: Sequence[Path]) -> None:
    """Raise a DataError if a label map lies among the scans: it would become a scan without labels."""
    for file, shown in label_maps_among(scans).items():
        raise DataError(
            "a label file seems to lie among the images",
            file=file,
            found=shown,
            do="move images to images/ and labels to labels/, one name for both files of a case; masks of single "
            "structures as <case>/ct.nii.gz and <case>/segmentations/liver.nii.gz",
        )


def _below_labels(file: Path, image_folder: Path, label_folder: Path | None) -> bool:
    """Whether a file lies in a folder of labels that is not the one that was chosen."""
    if label_folder is not None and label_folder in file.parents:
        return False
    return any(part.lower() in LABEL_FOLDERS for part in file.relative_to(image_folder).parts[:-1])


def _refuse_choice(
    folder: Path, label_folder: Path, images: Iterable[str], labels: Mapping[str, Path]
) -> None:
    """Raise a DataError if folders of label files hold labels of the same cases: which are meant is not known."""
    images = set(images)
    if images & set(labels) or not images & {case_of(file) for file in labels.values()}:
        return
    choices = sorted({file.parent.relative_to(folder).as_posix() for file in labels.values()})
    if len(choices) > 1:
        raise DataError(
            "several folders hold labels of the same cases",
            file=label_folder,
            found=", ".join(choices),
            do=f"choose one: --labels {choices[0]}",
        )


def _by_patient(
    folder: Path, images: Sequence[Path], segmentations: Sequence[Path]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]] | None:
    """Image files and label file of each case, where each has a folder of its own; None if that is not so."""
    labels = [*segmentations, *(file for file in images if label_words(file))]
    scans = [file for file in images if file not in labels]
    of_folder: dict[Path, list[Path]] = {}
    for file in scans:
        of_folder.setdefault(file.parent, []).append(file)
    label_of: dict[Path, list[Path]] = {}
    for file in labels:
        label_of.setdefault(file.parent, []).append(file)
    if not labels or folder in of_folder or folder in label_of or not set(label_of) <= set(of_folder):
        return None
    for place, found in label_of.items():
        if len(found) > 1:
            raise DataError(
                "several label files lie in the folder of one case",
                case=place.name,
                file=place,
                found=", ".join(file.name for file in found[:5]),
                do="keep one of them there",
            )
    names = {tuple(sorted(within(file, place) for file in files)) for place, files in of_folder.items()}
    if len(names) > 1 and any(len(files) > 1 for files in of_folder.values()):
        raise DataError(
            "the folders of cases hold different scans: which of them belong together is not known",
            file=folder,
            found="; ".join(", ".join(each) for each in sorted(names)[:3]),
            expected="one scan in each folder, or the same names in all of them, which are channels",
            do="rename them, or write a list: --importer csv",
        )
    keys = {place: place.relative_to(folder).as_posix() for place in sorted(of_folder)}
    warn_about("images without a label are unlabelled cases", [keys[p] for p in keys if p not in label_of])
    return (
        {key: tuple(sorted(of_folder[place])) for place, key in keys.items()},
        {keys[place]: found[0] for place, found in label_of.items()},
    )


def _by_place(folder: Path, images: Sequence[Path], labels: Sequence[Path]) -> dict[str, Path]:
    """Label files by case, where folders of labels lie beside those of the images they belong to."""

    def place(parent: Path, name: str) -> tuple[str, ...]:
        parts = parent.relative_to(folder).parts
        return (*(part for part in parts if part.lower() not in (*IMAGE_FOLDERS, *LABEL_FOLDERS)), name)

    cases = {
        place(files[0].parent, Path(key).name): key for key, files in _by_case(folder, images, {}).items()
    }
    found: dict[str, Path] = {}
    for file in labels:
        if key := cases.get(place(file.parent, _key(file, folder, nested=False))):
            if key in found:
                raise DataError(
                    "two label files of one case", case=_case_id(key), file=file, found=found[key],
                    do="remove one of them, or choose their folder: --labels",
                )  # fmt: skip
            found[key] = file
    return found


def _called_as_images(images: Mapping[str, object], labels: Mapping[str, Path]) -> dict[str, Path]:
    """Label files by case, also where all their names end in _0000 as those of images do, or say what they are."""
    if not labels or set(labels) & set(images):
        return dict(labels)
    if all(name.endswith("_0000") for name in labels):
        return {name.removesuffix("_0000"): file for name, file in labels.items()}
    cases = {_own_words(name): name for name in images}
    named = {_own_words(name): name for name in labels}
    if len(cases) < len(images) or len(named) < len(labels) or not set(cases) & set(named):
        return dict(labels)
    paired = {cases.get(words, name): name for words, name in named.items()}
    warn_about(
        "labels are called otherwise than their images: paired by their names without words such as mask or image",
        [f"{label} with {case}" for case, label in paired.items() if case in images],
    )
    return {case: labels[name] for case, name in paired.items()}


def _own_words(name: str) -> tuple[str, ...]:
    """The words of a file's name but those that say what it is: of ``seg_a-1`` and ``a-1_mask`` a and 1."""
    return tuple(word for word in re.split(r"[\s/_.-]+", name.lower()) if word and word not in _KIND_WORDS)


def _subfolder(folder: Path, given: Path | str | None, usual: Sequence[str]) -> Path | None:
    if given is not None:
        return existing_folder(folder / given)
    inside = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    return next((inside[name] for name in usual if name in inside), None)


def _key(file: Path, folder: Path, nested: bool) -> str:
    path = file.relative_to(folder) if nested else Path(file.name)
    return unicodedata.normalize("NFC", path.as_posix()[: -len(suffix(file))])  # macOS writes é as two signs


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Files by their bare name; by their path below the folder if names repeat."""
    nested = len({_key(file, folder, False) for file in files}) < len(files)
    keyed: dict[str, Path] = {}
    for file in files:
        key = _key(file, folder, nested)
        if key in keyed:
            raise DataError(
                "two files have the same name", file=file, found=keyed[key], do="remove one of them"
            )
        keyed[key] = file
    return keyed


def _by_case(folder: Path, files: Sequence[Path], labels: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Image files by case; ``_0000`` and what follows it are channels unless a label has that very name."""
    keyed = _by_name(folder, files)
    cases: dict[str, list[Path]] = {}
    for key, file in sorted(keyed.items()):
        match = None if key in labels else re.fullmatch(r"(.+)_\d{4}", key)
        channel_of = match.group(1) if match and f"{match.group(1)}_0000" in keyed else None
        cases.setdefault(channel_of or key, []).append(file)
    for key, channels in cases.items():
        if len(channels) > MAX_CHANNELS or (len(channels) > 1 and key in keyed):
            raise DataError(
                "are these channels of one scan, or scans of their own?",
                case=_case_id(key),
                file=channels[0].parent,
                found=f"{len(channels)} files, {channels[0].name} to {channels[-1].name}",
                do="end the names of channels in _0000, _0001, ..., and the names of scans in anything else",
            )
    return {key: tuple(channels) for key, channels in cases.items()}


def _refuse_labels_among(files: Sequence[Path]) -> None:
    for file in files:
        if found := label_words(file):
            raise DataError(
                "a label file seems to lie among the images",
                file=file,
                found=f"'{min(found)}' in its name",
                do="move images to images/ and labels to labels/, one name for both files of a case",
            )


def _report_orphans(
    images: Mapping[str, object], labels: Mapping[str, Path], label_folder: Path | None
) -> None:
    orphans = sorted(set(labels) - set(images))
    if labels and len(orphans) == len(labels):
        raise DataError(
            "no label file has the name of an image",
            file=label_folder,
            found=f"label '{orphans[0]}', image '{min(images)}'",
            do="give both files of a case the same name; an image may end in _0000",
        )
    warn_about("label files without an image are left out", orphans)
    if labels:
        warn_about("images without a label are unlabelled cases", sorted(set(images) - set(labels)))


def _case_id(key: str) -> str:
    return "".join("_" if sign in '/\\:*?"<>|' or not sign.isprintable() else sign for sign in key)
