"""The raw layout of nnU-Net v2, and the Medical Segmentation Decathlon's, from which it came.

    dataset.json                    channel_names, labels (name -> integer), file_ending
    imagesTr/<case>_0000.nii.gz     one file per channel
    labelsTr/<case>.nii.gz          a training image without a label is an unlabelled case
    imagesTs/, labelsTs/            test cases
    splits_final.json               list of {"train": [...], "val": [...]}, for the option `fold`

The label ``ignore`` marks voxels about which nothing is known. Regions (lists of several integers) are passed
over: classes of a label space do not overlap. Voxels that only a region names are none of the other classes,
and count as background.

Source
    nnU-Net, documentation/dataset_format.md and documentation/manual_data_splits.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelwise.data.importers.listing import (
    annotated_organs,
    channel_files,
    class_names,
    existing_folder,
    files_below,
    group_of,
    logger,
    report,
    value_table,
)
from labelwise.data.manifest import Manifest, Source
from labelwise.data.source import Modality
from labelwise.data.text import read_text
from labelwise.errors import ConfigError, DataError
from labelwise.formats import SUFFIXES, stem
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "dataset.json, imagesTr/<case>_0000.nii.gz and labelsTr/<case>.nii.gz"
FOLDERS = (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))


def matches(folder: Path) -> bool:
    """Whether a folder holds a data set of nnU-Net."""
    return (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir()


def scan(
    folder: Path | str,
    *,
    fold: int | None = None,
    annotated: Iterable[str] | None = None,
    group: str | None = None,
    modality: Modality | None = None,
    source: str | None = None,
) -> Manifest:
    """The manifest of a data set in the layout of nnU-Net.

    Parameters
        fold        fold of splits_final.json whose "val" cases validate; labelled cases it does not name take
                    no part
        annotated   the classes that labelled cases are annotated for, if not all
        group       regular expression whose match in a case id names the patient, for example ``patient\\d+``
        modality    instead of the one read from channel_names (CT -> ct, noNorm -> normalised, else mr)
        source      name of the data set; the folder's if not given

    Errors
        DataError     no dataset.json or it is garbled, no image, a missing channel
        ConfigError   an option names a class or fold that does not exist
    """
    folder = existing_folder(folder)
    dataset = _read_json(folder / "dataset.json")
    channels, classes = _channel_names(dataset, folder), _classes(dataset, folder)
    names = class_names(classes)
    name = source or folder.name
    table = Source(name, value_table(classes), modality or _modality(channels))
    organs = annotated_organs(annotated, names[1:])
    cases = [
        Case(
            case_id,
            _all_channels(case_id, files, len(channels)),
            labels=label,
            annotated=organs if label else frozenset(),
            group=group_of(case_id, group),
            source=name,
            split=split,
        )
        for case_id, files, label, split in _listing(folder, _ending(dataset, folder))
    ]
    if not cases:
        raise DataError("there are no images", file=folder / "imagesTr", expected="<case>_0000.<ending>")
    manifest = Manifest(LabelSpace(names), {name: table}, tuple(cases))
    return manifest if fold is None else _with_fold(manifest, folder / "splits_final.json", fold)


def _listing(folder: Path, ending: str) -> Iterator[tuple[str, Mapping[int, Path], Path | None, str]]:
    """Case, image files by channel, label file, split."""
    for images, labels, split in FOLDERS:
        label_files = {stem(file): file for file in _files(folder / labels, ending)}
        for case_id, files in sorted(channel_files(_files(folder / images, ending)).items()):
            yield case_id, files, label_files.pop(case_id, None), split
        report(f"{labels}: label files without an image are left out", sorted(label_files))


def _files(folder: Path, ending: str) -> list[Path]:
    return files_below(folder, [ending]) if folder.is_dir() else []


def _read_json(file: Path) -> Any:
    text = read_text(file, missing=f"{file.name} is missing", do=f"this importer looks for {LOOKS_FOR}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file.name} cannot be read: {error}", file=file, expected="JSON") from error


def _channel_names(dataset: Any, folder: Path) -> list[str]:
    names = dataset.get("channel_names", dataset.get("modality")) if isinstance(dataset, dict) else None
    if not isinstance(names, dict) or not names:
        raise DataError(
            "dataset.json names no channels",
            file=folder / "dataset.json",
            expected='"channel_names": {"0": "CT"}',
        )
    return [str(name) for name in names.values()]


def _modality(channels: list[str]) -> Modality:
    kinds = {name.lower() for name in channels}
    if kinds == {"ct"}:
        return "ct"
    if kinds == {"nonorm"}:
        return "normalised"
    if "ct" in kinds:
        logger.warning("the channels %s are not all CT: each is normalised by itself", ", ".join(channels))
    return "mr"


def _classes(dataset: Mapping[str, Any], folder: Path) -> dict[str, int | list[int]]:
    labels = dataset.get("labels")
    if isinstance(labels, dict) and all(isinstance(name, str) for name in labels.values()):
        labels = {
            name: int(value) for value, name in labels.items() if value.isdecimal()
        }  # as in the Decathlon
    if not isinstance(labels, dict) or not labels:
        raise DataError(
            "dataset.json names no labels",
            file=folder / "dataset.json",
            expected='"labels": {"background": 0, "liver": 1}',
        )
    labels = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in labels.items()
    }
    regions = {name: value for name, value in labels.items() if isinstance(value, list)}
    classes = {name: value for name, value in labels.items() if name not in regions}
    if wrong := {name: value for name, value in labels.items() if not all(map(_is_integer, _listed(value)))}:
        raise DataError("a label is not an integer", file=folder / "dataset.json", found=wrong)
    if len(class_names(classes)) < 2:
        raise DataError(
            "dataset.json names no class beside the background",
            file=folder / "dataset.json",
            found=dataset.get("labels"),
            do="name at least one class by a single integer: regions are passed over" if regions else None,
        )
    return _without_regions(classes, regions)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_integer(value: Any) -> bool:
    return type(value) is int  # True and False are integers, too, but no label


def _without_regions(
    classes: Mapping[str, int], regions: Mapping[str, list[int]]
) -> dict[str, int | list[int]]:
    """The classes; the background gets the values that only regions name, with a message."""
    known = {*classes.values(), classes.get(BACKGROUND, 0)}
    rest = sorted({value for values in regions.values() for value in values} - known)
    if regions:
        logger.warning(
            "regions are passed over, classes may not overlap: %s%s",
            ", ".join(regions),
            f"; what only they name is background: {', '.join(map(str, rest))}" if rest else "",
        )
    return {**classes, BACKGROUND: [classes.get(BACKGROUND, 0), *rest]} if rest else dict(classes)


def _ending(dataset: Mapping[str, Any], folder: Path) -> str:
    ending = str(dataset.get("file_ending", ".nii.gz"))
    if ending not in SUFFIXES:
        raise DataError(
            f"files ending in '{ending}' cannot be read",
            file=folder / "dataset.json",
            expected=", ".join(SUFFIXES),
        )
    return ending


def _all_channels(case_id: str, files: Mapping[int, Path], number: int) -> tuple[Path, ...]:
    if sorted(files) != list(range(number)):
        raise DataError(
            "the channels of the case are not those of dataset.json",
            case=case_id,
            file=next(iter(files.values())).parent,
            found=", ".join(files[channel].name for channel in sorted(files)),
            expected=f"{number} file{'s' if number > 1 else ''}, _0000 to _{number - 1:04d}",
        )
    return tuple(files[channel] for channel in range(number))


def _with_fold(manifest: Manifest, file: Path, fold: int) -> Manifest:
    folds = _read_json(file)
    if not isinstance(folds, list) or not all(map(_is_fold, folds)):
        raise DataError(
            f"{file.name} is not a list of folds", file=file, expected='[{"train": ["a"], "val": ["b"]}, ...]'
        )
    if not 0 <= fold < len(folds):
        raise ConfigError(f"there is no fold {fold}", found=file, expected=f"0 to {len(folds) - 1}")
    split = dict.fromkeys(folds[fold]["train"], "train") | dict.fromkeys(folds[fold]["val"], "validation")
    known = {case.id for case in manifest.split("train")}
    report(f"{file.name} names cases that are not there", sorted(set(split) - known))
    cases = [
        replace(case, split=split.get(case.id, "")) if case.split == "train" and case.labels else case
        for case in manifest.cases
    ]
    report(
        f"labelled cases that fold {fold} does not name take no part",
        [case.id for case in cases if not case.split],
    )
    return manifest.replace_cases(cases)


def _is_fold(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    lists = [entry.get("train"), entry.get("val")]
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
