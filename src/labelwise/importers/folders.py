"""Plain folders: images here, label files there, paired by name; or images alone.

    <folder>/images/<case>.nii.gz          also <case>_0000.nii.gz, _0001, ... for the channels of a case
    <folder>/labels/<case>.nii.gz          an image without a label is an unlabelled case

Both may hold folders of folders. Such a data set does not say which classes its integers mean, nor whether it
is CT or MR: the user does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labelwise.cohort.manifest import Manifest, Source
from labelwise.cohort.source import Modality, value_table
from labelwise.errors import DataError, warn_about
from labelwise.formats import Layout, suffix
from labelwise.importers.described import about
from labelwise.importers.listing import (
    annotated_organs,
    class_names,
    existing_folder,
    files_below,
    group_of,
    stated,
)
from labelwise.types import Case, LabelSpace

LOOKS_FOR = "images/<case>.nii.gz and labels/<case>.nii.gz, or scans alone"
IMAGE_FOLDERS = ("images", "image", "imagestr", "imgs", "img", "scans", "volumes")
LABEL_FOLDERS = ("labels", "label", "labelstr", "masks", "mask", "segmentations", "segmentation", "seg", "gt")
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
    source: str | None = None,
) -> Manifest:
    """The manifest of a folder of images and a folder of labels; all cases are in the training split.

    Parameters
        classes     class name -> value or values in the label files; "background" and "ignore" may be among
                    them
        modality    ct, mr, or normalised for intensities that must not be changed
        images      folder of the images, if its name is not a usual one; relative to `folder` or absolute
        labels      folder of the labels, likewise
        annotated   the classes that labelled cases are annotated for, if not all
        group       regular expression whose match in a case id names the patient
        layout      what h5 files do not say about themselves
        source      name of the data set; the folder's if not given

    Errors
        ConfigError   `classes` or `modality` is missing or wrong
        DataError     no image; no label has an image; two files have the same name; labels lie among the
                      images
    """
    classes, modality = stated(classes, modality, folder)
    folder = existing_folder(folder)
    image_folder = _subfolder(folder, images, IMAGE_FOLDERS) or folder
    label_folder = _subfolder(folder, labels, LABEL_FOLDERS)
    image_files = [file for file in files_below(image_folder) if label_folder not in file.parents]
    if not image_files:
        raise DataError("there are no images", file=image_folder, expected=LOOKS_FOR)
    label_files = _by_name(label_folder, files_below(label_folder)) if label_folder else {}
    image_groups = _by_case(image_folder, image_files, label_files)
    if label_folder is None:
        _refuse_labels_among(image_files)
    _report_orphans(image_groups, label_files, label_folder)
    names, name = class_names(classes), source or folder.name
    organs = annotated_organs(annotated, names[1:])
    cases = [
        Case(
            _case_id(key),
            files,
            labels=label_files.get(key),
            annotated=organs if key in label_files else frozenset(),
            group=group_of(_case_id(key), group),
            source=name,
            split="train",
        )
        for key, files in image_groups.items()
    ]
    with about(folder):
        table = Source(name, value_table(classes), modality, layout or Layout())
        return Manifest(LabelSpace(names), {name: table}, tuple(cases))


def _subfolder(folder: Path, given: Path | str | None, usual: Sequence[str]) -> Path | None:
    if given is not None:
        return existing_folder(folder / given)
    inside = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    return next((inside[name] for name in usual if name in inside), None)


def _key(file: Path, folder: Path, nested: bool) -> str:
    path = file.relative_to(folder) if nested else Path(file.name)
    return path.as_posix()[: -len(suffix(file))]


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
        words = re.split(r"[^a-z]+", file.name.lower())
        if found := set(words) & set(LABEL_FOLDERS):
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
    return re.sub(r'[/\\:*?"<>|]', "_", key)
