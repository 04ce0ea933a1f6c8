"""The raw layout of nnU-Net v2, and the Medical Segmentation Decathlon's, from which it came.

    dataset.json                    channel_names, labels (name -> integer), file_ending
    imagesTr/<case>_0000.nii.gz     one file per channel
    labelsTr/<case>.nii.gz          a training image without a label is an unlabelled case
    imagesTs/, labelsTs/            test cases
    splits_final.json               list of {"train": [...], "val": [...]}, for the option `fold`

Images and labels may lie elsewhere, if dataset.json lists them under "dataset". splits_final.json lies beside
dataset.json, or where nnU-Net keeps it: nnUNet_preprocessed/<data set>/ beside nnUNet_raw/.

The label ``ignore`` marks voxels about which nothing is known. Regions (lists of several integers) overlap, classes
of a label space do not. They are passed over: voxels that only a region names are none of the other classes, and
count as background. Or, as an option, they become disjoint classes by their differences: of whole [1, 2, 3] and
core [2, 3] there remain "whole without core" = 1 and core = 2, 3, and whole is a region of the label space: both of
them. The order in which nnU-Net draws regions
(regions_class_order) is about its predictions, and so are the names of its readers: label files do not depend on
them.

Source
    nnU-Net, documentation/dataset_format.md, region_based_training.md and manual_data_splits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from labelwise.cohort.data_set import IGNORE_NAME, Modality, value_table
from labelwise.cohort.manifest import DataSet, Manifest, absolute
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.formats import SUFFIXES, stem
from labelwise.importers.described import (
    Kind,
    about,
    channel_names,
    classes_by_name,
    kind_of,
    label_space,
    read_json,
)
from labelwise.importers.licences import licence_in
from labelwise.importers.listing import (
    annotated_structures,
    channel_files,
    class_names,
    existing_folder,
    files_below,
    group_of,
    logger,
)
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = "dataset.json, imagesTr/<case>_0000.nii.gz and labelsTr/<case>.nii.gz"
FOLDERS = (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))
Regions = Literal["skip", "differences"]
Listed = tuple[str, Mapping[int, Path], Path | None, str]  # case, image files by channel, label file, split


def matches(folder: Path) -> bool:
    """Whether a folder holds a data set of nnU-Net."""
    return (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir()


def scan(
    folder: Path | str,
    *,
    fold: int | None = None,
    regions: Regions = "skip",
    annotated: Iterable[str] | None = None,
    group: str | None = None,
    modality: Modality | None = None,
    data_set: str | None = None,
) -> Manifest:
    """The manifest of a data set in the layout of nnU-Net.

    Parameters
        fold        fold of splits_final.json whose "val" cases validate; labelled cases it does not name take
                    no part
        regions     "differences" makes disjoint classes of regions that lie in each other, and keeps the regions as
                    names for several of them; "skip" passes them over
        annotated   the classes that labelled cases are annotated for, if not all
        group       regular expression whose match in a case id names the patient, for example ``patient\\d+``
        modality    instead of the one read from channel_names; see `described.kind_of`
        data_set      name of the data set; the folder's if not given

    Errors
        DataError     no dataset.json or it is garbled, no image, a missing channel
        ConfigError   an option names a class or fold that does not exist
    """
    folder = existing_folder(folder)
    file = folder / "dataset.json"
    dataset = read_json(file, LOOKS_FOR)
    channels, classes = _channel_names(dataset, file), _classes(dataset, file, regions)
    space = label_space(
        classes, file, _named_regions(dataset, classes, file) if regions == "differences" else None
    )
    name = data_set or folder.name
    with about(file):
        kind = Kind(modality) if modality else kind_of(channels)
        table = DataSet(
            name, value_table(classes), kind.modality, licence=licence_in(dataset), normalised=kind.normalised
        )
    structures = annotated_structures(annotated, space.structures)
    cases = [
        Case(
            case_id,
            _all_channels(case_id, files, len(channels)),
            labels=label,
            annotated=structures if label else frozenset(),
            group=group_of(case_id, group),
            data_set=name,
            split=split,
        )
        for case_id, files, label, split in _cases(folder, dataset, _ending(dataset, file))
    ]
    if not cases:
        raise DataError("there are no images", file=folder / "imagesTr", expected="<case>_0000.<ending>")
    with about(file):
        manifest = Manifest(space, {name: table}, tuple(cases))
    return manifest if fold is None else _with_fold(manifest, _splits_file(folder), fold)


def _cases(folder: Path, dataset: Mapping[str, Any], ending: str) -> Iterator[Listed]:
    if listed := dataset.get("dataset"):
        yield from _named_files(folder, listed)
    for images, labels, split in FOLDERS:
        if listed and split == "train":
            continue
        label_files = {stem(file): file for file in _files(folder / labels, ending)}
        if label_files and all(name.endswith("_0000") for name in label_files):
            logger.warning("%s: the names of all label files end in _0000, as those of images do", labels)
            label_files = {name.removesuffix("_0000"): file for name, file in label_files.items()}
        for case_id, files in sorted(channel_files(_files(folder / images, ending)).items()):
            yield case_id, files, label_files.pop(case_id, None), split
        warn_about(f"{labels}: label files without an image are left out", sorted(label_files))


def _named_files(folder: Path, listed: Any) -> Iterator[Listed]:
    """Training cases whose files dataset.json names: {"case": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}."""
    for case_id, files in listed.items() if isinstance(listed, dict) else [("", listed)]:
        images = files.get("images") if isinstance(files, dict) else None
        label = files.get("label") if isinstance(files, dict) else None
        if (
            not images
            or not isinstance(images, list)
            or not all(isinstance(f, str) for f in (*images, label or ""))
        ):
            raise DataError(
                "dataset.json does not name the files of a case",
                case=case_id or None,
                file=folder / "dataset.json",
                found=files,
                expected='"dataset": {"case": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}',
            )
        channels = {number: absolute(folder / image) for number, image in enumerate(images)}
        yield case_id, channels, absolute(folder / label) if label else None, "train"


def _files(folder: Path, ending: str) -> list[Path]:
    return files_below(folder, [ending]) if folder.is_dir() else []


def _channel_names(dataset: Any, file: Path) -> list[str]:
    found = dataset.get("channel_names", dataset.get("modality")) if isinstance(dataset, dict) else None
    if not isinstance(found, dict) or not (names := channel_names(found)):
        raise DataError("dataset.json names no channels", file=file, expected='"channel_names": {"0": "CT"}')
    return names


def _classes(dataset: Mapping[str, Any], file: Path, regions: Regions) -> dict[str, int | Sequence[int]]:
    if regions not in ("skip", "differences"):
        raise ConfigError(
            f"unknown treatment of regions '{regions}'", expected="skip or differences", code="unknown-name"
        )
    labels = classes_by_name(dataset.get("labels"), file)
    if regions == "differences":
        return _differences(labels, file)
    overlapping = {name: values for name, values in labels.items() if len(values) > 1}
    classes = {name: values[0] for name, values in labels.items() if name not in overlapping}
    if len(class_names(classes)) < 2:
        raise DataError(
            "dataset.json names no class beside the background",
            file=file,
            found=dataset.get("labels"),
            do="name at least one class by a single integer: regions are passed over; or make disjoint classes of "
            "them: --set regions=differences"
            if overlapping
            else None,
        )
    return _without_regions(classes, overlapping)


def _without_regions(
    classes: Mapping[str, int], regions: Mapping[str, list[int]]
) -> dict[str, int | Sequence[int]]:
    """The classes; the background gets the values that only regions name, with a message."""
    known = {*classes.values(), classes.get(BACKGROUND, 0)}
    rest = sorted({value for values in regions.values() for value in values} - known)
    if regions:
        logger.warning(
            "regions are passed over, classes may not overlap: %s%s",
            ", ".join(regions),
            f"; what only they name is background: {', '.join(map(str, rest))} (--set regions=differences makes "
            "classes of it)"
            if rest
            else "",
        )
    return {**classes, BACKGROUND: [classes.get(BACKGROUND, 0), *rest]} if rest else dict(classes)


def _differences(labels: Mapping[str, list[int]], file: Path) -> dict[str, int | Sequence[int]]:
    """Disjoint classes: each region without the regions that lie in it, called "A without B and C".

    Errors
        DataError   two regions overlap, and neither lies in the other
    """
    kept = {name: values for name, values in labels.items() if name in (BACKGROUND, IGNORE_NAME)}
    regions = {name: set(values) for name, values in labels.items() if name not in kept}
    classes: dict[str, int | Sequence[int]] = dict(kept)
    empty = []
    for name, values in regions.items():
        inside = {}
        for other, theirs in regions.items():
            if other == name or not values & theirs or values < theirs:
                continue
            if not theirs < values:
                raise DataError(
                    f"the regions '{name}' and '{other}' overlap, and neither lies in the other",
                    file=file,
                    found=f"{sorted(values)}, {sorted(theirs)}",
                    do="leave out --set regions=differences, or remove one of them",
                )
            inside[other] = theirs
        rest = sorted(values.difference(*inside.values()))
        # Only the largest of the regions inside: core, not the enhancing part of the core.
        largest = [
            part for part, mine in inside.items() if not any(mine < other for other in inside.values())
        ]
        if rest:
            classes[f"{name} without {' and '.join(largest)}" if largest else name] = rest
        else:
            empty.append(name)
    logger.warning(
        "regions become disjoint classes by their differences: %s",
        "; ".join(f"{name} = {value}" for name, value in classes.items() if name not in kept),
    )
    warn_about("regions that are the union of others are no classes of their own", empty)
    return classes


def _named_regions(
    dataset: Mapping[str, Any], classes: Mapping[str, int | Sequence[int]], file: Path
) -> dict[str, list[str]]:
    """The regions that are no class themselves -> the classes that lie in them."""
    values = {
        name: {numbers} if isinstance(numbers, int) else {*numbers}
        for name, numbers in classes.items()
        if name not in (BACKGROUND, IGNORE_NAME)
    }
    return {
        region: [name for name, numbers in values.items() if numbers <= {*inside}]
        for region, inside in classes_by_name(dataset.get("labels"), file).items()
        if region not in classes
    }


def _ending(dataset: Mapping[str, Any], file: Path) -> str:
    ending = str(dataset.get("file_ending", ".nii.gz"))
    if ending not in SUFFIXES:
        raise DataError(
            f"files ending in '{ending}' cannot be read",
            file=file,
            expected=", ".join(SUFFIXES),
            code="unreadable",
        )
    return ending


def _splits_file(folder: Path) -> Path:
    """splits_final.json beside dataset.json, else where nnU-Net keeps it."""
    preprocessed = folder.parent.parent / "nnUNet_preprocessed" / folder.name / "splits_final.json"
    beside = folder / "splits_final.json"
    return preprocessed if preprocessed.is_file() and not beside.is_file() else beside


def _all_channels(case_id: str, files: Mapping[int, Path], number: int) -> tuple[Path, ...]:
    if sorted(files) != list(range(number)):
        raise DataError(
            "the channels of the case are not those of dataset.json",
            case=case_id,
            file=next(iter(files.values())).parent,
            found=", ".join(files[channel].name for channel in sorted(files)[:8]),
            expected=f"{number} file{'s' if number > 1 else ''}, _0000 to _{number - 1:04d}",
        )
    return tuple(files[channel] for channel in range(number))


def _with_fold(manifest: Manifest, file: Path, fold: int) -> Manifest:
    folds = read_json(file, LOOKS_FOR)
    if not isinstance(folds, list) or not all(map(_is_fold, folds)):
        raise DataError(
            f"{file.name} is not a list of folds", file=file, expected='[{"train": ["a"], "val": ["b"]}, ...]'
        )
    if not 0 <= fold < len(folds):
        raise ConfigError(f"there is no fold {fold}", found=file, expected=f"0 to {len(folds) - 1}")
    split = dict.fromkeys(folds[fold]["train"], "train") | dict.fromkeys(folds[fold]["val"], "validation")
    known = {case.id for case in manifest.split("train")}
    warn_about(f"{file.name} names cases that are not there", sorted(set(split) - known))
    cases = [
        replace(case, split=split.get(case.id, "")) if case.split == "train" and case.labels else case
        for case in manifest.cases
    ]
    warn_about(
        f"labelled cases that fold {fold} does not name take no part",
        [case.id for case in cases if not case.split],
    )
    return manifest.replace_cases(cases)


def _is_fold(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    lists = [entry.get("train"), entry.get("val")]
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
