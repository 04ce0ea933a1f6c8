"""A JSON file that lists the scans: the Decathlon's dataset.json and MONAI's data lists, of one's own.

    {
      "labels":     {"0": "background", "1": "liver"}       or {"background": 0, "liver": 1}; else `classes`
      "modality":   {"0": "CT"}                             or "CT"; else `modality`
      "training":   [{"image": "a.nii.gz", "label": "a_seg.nii.gz", "fold": 0}, ...]
      "validation": [...],  "test": ["c.nii.gz", ...]
    }

An image may be a list of files, one for each channel; a single file with several channels is known by several names
in "modality". Paths are relative to the JSON file. A bare list of entries is training data.

Source
    Antonelli et al., Nature Communications 2022; MONAI, `load_decathlon_datalist` and the folds of Auto3DSeg.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labelwise.cohort.data_set import MODALITIES, Modality, value_table
from labelwise.cohort.manifest import DataSet, Manifest, absolute
from labelwise.errors import ConfigError, DataError, LabelwiseError, warn_about
from labelwise.formats import Layout, stem
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
    existing_folder,
    files_in,
    group_of,
    logger,
    only_file,
)
from labelwise.types import Case

LOOKS_FOR = 'a .json file with "training": [{"image": ..., "label": ...}, ...]'
LISTS = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ENDINGS = (".json",)
MANY = 3  # paths or names in a message
_LARGEST = 50_000_000  # bytes; a list of a million scans is shorter


class _Entry(NamedTuple):
    where: str  # "training[3]"
    images: tuple[Path, ...]
    label: Path | None
    split: str
    fold: int | None


def matches(folder: Path) -> bool:
    """Whether a folder holds exactly one JSON file that lists scans; or whether a file is one."""
    return len(_lists(folder)) == 1


def scan(
    folder: Path | str,
    *,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    modality: Modality | None = None,
    fold: int | None = None,
    annotated: Iterable[str] | None = None,
    group: str | None = None,
    root: Path | str | None = None,
    data_set: str | None = None,
) -> Manifest:
    """The manifest of the scans that a JSON file lists, in its order.

    Parameters
        folder      the JSON file, or the folder that holds it and no other list
        classes     class name -> value or values in the label files, instead of "labels"
        modality    ct, mr or other, instead of the one read from "modality"
        fold        entries of "training" with this "fold" validate
        annotated   the classes that labelled cases are annotated for, if not all
        group       regular expression whose match in a case id names the patient
        root        folder to which the paths are relative; that of the JSON file if not given
        data_set      name of the data set; the folder's if not given

    Errors
        DataError     there is no list or more than one; the list is garbled; none of its images is there
        ConfigError   the classes or the modality are neither stated nor in the file; there is no such fold
    """
    file = _json_file(folder)
    document = read_json(file, LOOKS_FOR)
    document = {"training": document} if isinstance(document, list) else document
    entries = list(_entries(document, file, existing_folder(root) if root else file.parent))
    there = _present(entries, file)
    if fold is not None:
        there = _with_fold(there, file, fold)
    elif any(entry.fold is not None for entry in there):
        logger.info("%s has folds: without --fold all of them train", file.name)
    named = _stated_classes(classes, document, file)
    space = label_space(named, file)
    channels, kind = _kind(modality, document, file)
    several = channels > 1 and all(len(entry.images) == 1 for entry in there)
    structures = annotated_structures(annotated, space.structures)
    name = data_set or file.parent.name
    with about(file):
        ids = _ids([entry.images[0] for entry in there])
        cases = [
            Case(
                case_id,
                entry.images,
                labels=entry.label,
                annotated=structures if entry.label else frozenset(),
                group=group_of(case_id, group),
                data_set=name,
                split=entry.split,
            )
            for case_id, entry in zip(ids, there, strict=True)
        ]
        layout = Layout(channels=True) if several else Layout()
        table = DataSet(
            name, value_table(named), kind.modality, layout,
            licence=licence_in(document), normalised=kind.normalised,
        )  # fmt: skip
        return Manifest(space, {name: table}, tuple(cases))


def _json_file(path: Path | str) -> Path:
    if Path(path).is_file():
        return absolute(path)
    folder = existing_folder(path)
    every = files_in(folder, ENDINGS)
    found = every if len(every) == 1 else _lists(folder)
    return only_file(
        folder, found, "no JSON file here lists scans", "several JSON files list scans", LOOKS_FOR
    )


def _lists(path: Path) -> list[Path]:
    """The JSON files in a folder that list scans; the file itself if it is one."""
    return [file for file in files_in(path, ENDINGS) if _lists_scans(file)]


def _lists_scans(file: Path) -> bool:
    if file.stat().st_size > _LARGEST:
        return False
    try:
        document = read_json(file, LOOKS_FOR)
    except LabelwiseError:
        return False
    lists = [document] if isinstance(document, list) else []
    if isinstance(document, dict):
        lists = [document[key] for key in LISTS if isinstance(document.get(key), list)]
    return any(isinstance(entry, dict) and "image" in entry for entries in lists for entry in entries)


def _entries(document: Any, file: Path, root: Path) -> Iterator[_Entry]:
    if not isinstance(document, dict):
        raise DataError(f"{file.name} lists no scans", file=file, expected=LOOKS_FOR)
    for key, split in LISTS.items():
        listed = document.get(key, [])
        if not isinstance(listed, list):
            raise DataError(f'"{key}" is not a list', file=file, found=_short(listed), expected=LOOKS_FOR)
        for number, entry in enumerate(listed):
            yield _entry(entry, f"{key}[{number}]", split, file, root)


def _entry(entry: Any, where: str, split: str, file: Path, root: Path) -> _Entry:
    fields = {"image": entry} if isinstance(entry, str | list) else entry
    if not isinstance(fields, dict) or "image" not in fields:
        raise DataError(
            "an entry names no image", file=f"{file}, {where}", found=_short(entry), expected=LOOKS_FOR
        )
    images = fields["image"] if isinstance(fields["image"], list) else [fields["image"]]
    label = fields.get("label") or None
    label = label[0] if isinstance(label, list) and len(label) == 1 else label
    if not images or not all(map(_is_path, images)):
        raise DataError(
            "the image is not a path",
            file=f"{file}, {where}",
            found=_short(fields["image"]),
            expected="a path, or a list",
        )
    if label is not None and not _is_path(label):
        raise DataError(
            "the label is not a path", file=f"{file}, {where}", found=_short(label), expected="one path"
        )
    number = fields.get("fold")
    if number is not None and type(number) is not int:
        raise DataError("the fold is not an integer", file=f"{file}, {where}", found=_short(number))
    paths = tuple(absolute(root / image) for image in images)
    return _Entry(where, paths, absolute(root / label) if label else None, split, number)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _present(entries: Sequence[_Entry], file: Path) -> list[_Entry]:
    """The entries whose images are there; a label that is missing leaves an unlabelled case."""
    complete = [all(map(_exists, entry.images)) for entry in entries]
    there = [entry for entry, found in zip(entries, complete, strict=True) if found]
    missing = [entry.where for entry, found in zip(entries, complete, strict=True) if not found]
    if not there:
        raise DataError(
            "none of the listed images is there",
            file=file,
            found=", ".join(str(entry.images[0]) for entry in entries[:MANY]) or "no entry",
            do="move the JSON file to the folder its paths begin in, or name that folder: --set root=FOLDER",
        )
    warn_about(f"entries of {file.name} without an image file are left out", missing)
    lost = [entry.where for entry in there if entry.label and not _exists(entry.label)]
    warn_about("label files that are not there: unlabelled cases", lost)
    warn_about(
        "entries without a label are unlabelled cases", [entry.where for entry in there if not entry.label]
    )
    return [
        entry._replace(label=entry.label if entry.label and _exists(entry.label) else None) for entry in there
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _with_fold(entries: Sequence[_Entry], file: Path, fold: int) -> list[_Entry]:
    folds = sorted({entry.fold for entry in entries if entry.split == "train" and entry.fold is not None})
    if fold not in folds:
        raise ConfigError(
            f"there is no fold {fold}",
            found=file,
            expected=", ".join(map(str, folds)) or '"fold" in the entries',
        )
    return [
        entry._replace(split="validation") if entry.split == "train" and entry.fold == fold else entry
        for entry in entries
    ]


def _stated_classes(
    classes: Mapping[str, int | Sequence[int]] | None, document: Mapping[str, Any], file: Path
) -> Mapping[str, int | Sequence[int]]:
    if classes:
        return classes
    if "labels" not in document:
        raise ConfigError(
            'the classes are missing: the file has no "labels"',
            file=file,
            do="state them: --classes liver=1,spleen=2",
        )
    return classes_by_name(document["labels"], file)


def _kind(stated: Modality | None, document: Mapping[str, Any], file: Path) -> tuple[int, Kind]:
    """Number of channels that the file names (0 if it names none), and what they are."""
    named = document.get("modality", document.get("channel_names"))
    names = channel_names(named) if isinstance(named, dict) else []
    if stated is None and not names and not isinstance(named, str):
        raise ConfigError(
            'the modality is missing: the file has no "modality"',
            file=file,
            expected=", ".join(MODALITIES),
            do="--modality ct, for example",
        )
    return len(names), Kind(stated) if stated else kind_of(names or [str(named)])


def _ids(images: Sequence[Path]) -> list[str]:
    """A name for each scan: of its file, without the number of the channel; with the folders where names repeat."""
    ids = [stem(image).removesuffix("_0000") for image in images]
    depth = 0
    while len(set(ids)) < len(ids) and depth < max(len(image.parts) for image in images):
        depth += 1
        ids = [
            "_".join([*image.parent.parts[-depth:], stem(image).removesuffix("_0000")]) for image in images
        ]
    return [name.replace("/", "_") for name in ids]
