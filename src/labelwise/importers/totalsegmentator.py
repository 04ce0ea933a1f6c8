"""TotalSegmentator: one mask for each of up to 117 structures in CT, and of 56 in MR.

    <case>/ct.nii.gz                            mri.nii.gz in the MR data set
    <case>/segmentations/<structure>.nii.gz     one mask per structure
    meta.csv                                    image_id;...;split with train, val, test

A mask that is not there was not drawn: its class is not annotated in that case. A mask without a voxel says that the
structure is absent: it is annotated. The n-th name of the layout is the value n of a case's labels. A class is what
`labelwise.anatomy` calls a structure, and is annotated if all masks that make it up are there.

Instead of the folder a case may have one file, segmentations.nii.gz, as the program writes it with --ml. Its header
says which value is which structure, and lists only those that were asked for: the others are not annotated. A file
without such names needs the option `task`, because the numbers differ between CT, MR and versions.

Source
    Wasserthal et al., Radiology: Artificial Intelligence 2023; Zenodo 6802614 (v1), 10047292 (v2), 14710732 (MR).
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from labelwise.anatomy import find
from labelwise.cohort.data_set import Modality
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.cohort.text import read_text
from labelwise.errors import ConfigError, DataError, did_you_mean, warn_about
from labelwise.formats import Layout, masks, value_names
from labelwise.importers.described import about, label_space
from labelwise.importers.listing import chosen, existing_folder
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = "<case>/ct.nii.gz or mri.nii.gz and <case>/segmentations/<structure>.nii.gz"
IMAGES: Mapping[str, Modality] = {"ct.nii.gz": "ct", "mri.nii.gz": "mr", "ct.nii": "ct", "mri.nii": "mr"}
MASKS = "segmentations"
TOGETHER = ("segmentations.nii.gz", "segmentations.nii")  # all structures in one file
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

_LOBES = ("upper_lobe_left", "lower_lobe_left", "upper_lobe_right", "middle_lobe_right", "lower_lobe_right")
_SIDES = ("left", "right")
_VERTEBRAE = (
    "S1",
    *(f"{part}{n}" for part, most in (("L", 5), ("T", 12), ("C", 7)) for n in range(most, 0, -1)),
)
STRUCTURES: tuple[str, ...] = (
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "adrenal_gland_right",
    "adrenal_gland_left",
    *(f"lung_{lobe}" for lobe in _LOBES),
    "esophagus",
    "trachea",
    "thyroid_gland",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    "kidney_cyst_left",
    "kidney_cyst_right",
    "sacrum",
    *(f"vertebrae_{name}" for name in _VERTEBRAE),
    "heart",
    "aorta",
    "pulmonary_vein",
    "brachiocephalic_trunk",
    "subclavian_artery_right",
    "subclavian_artery_left",
    "common_carotid_artery_right",
    "common_carotid_artery_left",
    "brachiocephalic_vein_left",
    "brachiocephalic_vein_right",
    "atrial_appendage_left",
    "superior_vena_cava",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    *(f"{vessel}_{side}" for vessel in ("iliac_artery", "iliac_vena") for side in _SIDES),
    *(f"{bone}_{side}" for bone in ("humerus", "scapula", "clavicula", "femur", "hip") for side in _SIDES),
    "spinal_cord",
    *(f"gluteus_{part}_{side}" for part in ("maximus", "medius", "minimus") for side in _SIDES),
    *(f"{muscle}_{side}" for muscle in ("autochthon", "iliopsoas") for side in _SIDES),
    "brain",
    "skull",
    *(f"rib_{side}_{number}" for side in _SIDES for number in range(1, 13)),
    "sternum",
    "costal_cartilages",
)
"""The structures of the task "total" in version 2, by their number from 1."""
_PAIRS = ("iliac_artery", "iliac_vena", "humerus", "scapula", "clavicula", "femur", "hip")
_MUSCLES = ("gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas")
STRUCTURES_MR: tuple[str, ...] = (
    *STRUCTURES[:9],  # spleen to left adrenal gland
    *(
        "lung_left",
        "lung_right",
        "esophagus",
        "small_bowel",
        "duodenum",
        "colon",
        "urinary_bladder",
        "prostate",
    ),
    *("sacrum", "vertebrae", "intervertebral_discs", "spinal_cord", "heart", "aorta", "inferior_vena_cava"),
    "portal_vein_and_splenic_vein",
    *(f"{name}_{side}" for name in (*_PAIRS, *_MUSCLES) for side in _SIDES),
    "brain",
)
"""The structures of the task "total_mr", by their number from 1."""
STRUCTURES_V1: tuple[str, ...] = (
    *(
        "spleen",
        "kidney_right",
        "kidney_left",
        "gallbladder",
        "liver",
        "stomach",
        "aorta",
        "inferior_vena_cava",
    ),
    *("portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left"),
    *(f"lung_{lobe}" for lobe in _LOBES),
    *(f"vertebrae_{name}" for name in _VERTEBRAE[1:]),
    *("esophagus", "trachea", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left"),
    *("heart_atrium_right", "heart_ventricle_right", "pulmonary_artery", "brain"),
    *(f"{vessel}_{side}" for vessel in ("iliac_artery", "iliac_vena") for side in _SIDES),
    *("small_bowel", "duodenum", "colon"),
    *(f"rib_{side}_{number}" for side in _SIDES for number in range(1, 13)),
    *(f"{bone}_{side}" for bone in ("humerus", "scapula", "clavicula", "femur", "hip") for side in _SIDES),
    *("sacrum", "face"),
    *(f"{muscle}_{side}" for muscle in _MUSCLES for side in _SIDES),
    "urinary_bladder",
)
"""The structures of the task "total" in version 1, by their number from 1."""
TASKS: Mapping[str, tuple[str, ...]] = {
    "total": STRUCTURES, "total_v1": STRUCTURES_V1, "total_mr": STRUCTURES_MR,
}  # fmt: skip

Classes = Mapping[str, str | Sequence[str]] | Sequence[str] | str


class _Scan(NamedTuple):
    image: Path
    masks: Mapping[str, Path]  # none if the case has one file, or no labels
    together: Path | None
    numbers: Mapping[int, str]  # of a case with one file: value -> structure

    @property
    def structures(self) -> Collection[str]:
        """What the case has labels of."""
        return self.masks or self.numbers.values()


def matches(folder: Path) -> bool:
    """Whether a folder, or a folder in it, holds cases of this data set."""
    return any(_is_case(entry) and _has_labels(entry) for entry in _cases_of(folder))


def scan(
    folder: Path | str,
    *,
    classes: Classes | None = None,
    annotated: Iterable[str] | None = None,
    task: str | None = None,
    data_set: str = "totalsegmentator",
) -> Manifest:
    """The manifest of the data set, cases by name, in the splits of meta.csv; all in training without it.

    Parameters
        classes     the structures to take, as masks or as classes; or class -> the masks that make it up, for
                    example {"kidneys": ["kidney_left", "kidney_right"]}. Default: all of them. Masks that are not
                    taken are never opened
        annotated   believe the masks for these classes only
        task        total, total_v1 or total_mr: the numbers in label files whose header does not name them

    Errors
        DataError     the folder is missing or empty, has no case or no mask, or meta.csv is garbled
        ConfigError   a class is unknown; a label file does not name its values, and no task is given
    """
    if task is not None:
        chosen("task", task, TASKS)
    folder = existing_folder(folder)
    scans: dict[str, _Scan] = {}
    for entry in filter(_is_case, _cases_of(folder)):
        if entry.name in scans:
            raise DataError(
                "two cases have the same name",
                case=entry.name,
                file=entry,
                found=scans[entry.name].image.parent,
                do="import the folders one by one: ct=FOLDER mr=FOLDER",
            )
        scans[entry.name] = _scan(entry, task)
    if not scans:
        raise DataError("no case of TotalSegmentator here", file=folder, expected=LOOKS_FOR)
    there = {name for scan in scans.values() for name in scan.structures}
    if not there:
        raise DataError("there are no masks", file=folder, expected=LOOKS_FOR)
    with about(folder):
        parts = _parts(_in_order(there), classes)
    space = label_space(parts, folder)
    wanted = None if annotated is None else frozenset(annotated)
    for name in sorted((wanted or frozenset()) - set(parts)):
        raise ConfigError(
            f"unknown class '{name}'{did_you_mean(name, parts)}",
            expected=", ".join(parts),
            code="unknown-name",
        )
    warn_about(
        "cases without labels are unlabelled", [n for n, s in scans.items() if not s.masks and not s.together]
    )
    splits = _splits(folder, list(scans))
    cases: list[Case] = []
    data_sets: dict[str, DataSet] = {}
    for name, found in scans.items():
        table = _data_set(data_set, found, parts, data_sets)
        known = _annotated(found, parts) & (frozenset(parts) if wanted is None else wanted)
        labels = found.together or (next(iter(found.masks.values())).parent if found.masks else None)
        data_sets[table.name] = table
        cases.append(
            Case(
                name,
                (found.image,),
                labels=labels if known else None,
                annotated=frozenset(known),
                data_set=table.name,
                split=splits.get(name, ""),
            )
        )
    with about(folder):
        return Manifest(space, dict(sorted(data_sets.items())), tuple(cases))


def _cases_of(folder: Path) -> list[Path]:
    """The folders of cases; where there is none, those one level deeper."""
    entries = _folders(folder)
    if any(map(_is_case, entries)):
        return entries
    return [entry for inner in entries for entry in _folders(inner)]


def _folders(folder: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(hidden))


def _is_case(folder: Path) -> bool:
    return any((folder / name).is_file() for name in IMAGES)


def _has_labels(folder: Path) -> bool:
    return any((folder / name).exists() for name in (MASKS, *TOGETHER))


def _scan(folder: Path, task: str | None) -> _Scan:
    image = next(folder / name for name in IMAGES if (folder / name).is_file())
    found = masks.names(folder / MASKS) if (folder / MASKS).is_dir() else {}
    together = next((folder / name for name in TOGETHER if (folder / name).is_file()), None)
    if found or together is None:
        return _Scan(image, found, None, {})
    return _Scan(image, {}, together, _numbers(together, task, IMAGES[image.name]))


def _numbers(file: Path, task: str | None, modality: Modality) -> Mapping[int, str]:
    """Label value -> structure: as the header says, else as the task numbers them."""
    if named := {value: name for value, name in value_names(file).items() if value}:
        return named
    if task is None:
        raise ConfigError(
            "the header of the label file does not say what its values mean",
            file=file,
            expected="the names that TotalSegmentator writes with --ml",
            do=f"say which task made it: --set task=total (CT, version 2); or {', '.join(list(TASKS)[1:])}",
        )
    if modality == "mr" and task != "total_mr":  # that of CT numbers the colon as it numbers the oesophagus
        raise ConfigError(
            f"the task {task} is one of CT, and this is the label file of an MR scan",
            file=file,
            do="say which task made it: --set task=total_mr; import CT and MR one by one: ct=FOLDER mr=FOLDER",
        )
    return dict(enumerate(TASKS[task], start=1))


def _in_order(names: Iterable[str]) -> list[str]:
    """By the number of version 2, then by name: the order does not depend on what was downloaded."""
    number = {name: place for place, name in enumerate(STRUCTURES)}
    return sorted(names, key=lambda name: (number.get(name, len(number)), name))


def _class_of(mask: str) -> str:
    structure = find(mask)
    return structure.name if structure else mask.replace("_", " ")


def _parts(there: Sequence[str], classes: Classes | None) -> dict[str, tuple[str, ...]]:
    """Class -> the masks that make it up."""
    known: dict[str, list[str]] = {}
    for mask in there:
        known.setdefault(_class_of(mask), []).append(mask)
    if classes is None:
        return {name: tuple(members) for name, members in known.items()}
    if not isinstance(classes, Mapping):
        names = classes.split(",") if isinstance(classes, str) else list(classes)
        chosen = [_class_of(_members(str(name).strip(), known, there)[0]) for name in names]
        return {name: tuple(known[name]) for name in chosen}
    parts: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    for name, members in classes.items():
        if not isinstance(members, str | list | tuple) or not members:
            raise ConfigError(
                f"the masks of class '{name}' must be names", found=members, expected=_example(there)
            )
        each = [members] if isinstance(members, str) else members
        parts[name] = tuple(dict.fromkeys(m for member in each for m in _members(str(member), known, there)))
        for mask in parts[name]:
            if taken.setdefault(mask, name) != name:
                raise ConfigError(f"the mask '{mask}' is in two classes", found=f"{taken[mask]}, {name}")
    return parts


def _members(name: str, known: Mapping[str, Sequence[str]], there: Sequence[str]) -> Sequence[str]:
    """The mask of that name, else the masks of the class of that name."""
    if name in there:
        return [name]
    structure = find(name)
    for called in (name, structure.name if structure else name):
        if called in known:
            return known[called]
    raise ConfigError(
        f"there are no masks of '{name}'{did_you_mean(name, [*known, *there])}", expected=_example(there)
    )


def _example(there: Sequence[str]) -> str:
    return ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")


def _data_set(
    name: str, found: _Scan, parts: Mapping[str, Sequence[str]], known: Mapping[str, DataSet]
) -> DataSet:
    """How the files of a case are read; CT has the plain name, and so has the first table of numbers."""
    modality = IMAGES[found.image.name]
    name = name if modality == "ct" else f"{name}_mr"
    class_of = {mask: structure for structure, members in parts.items() for mask in members}
    if not found.together:
        segments = tuple(_in_order(class_of))
        values = {value: class_of[mask] for value, mask in enumerate(segments, start=1)}
        return DataSet(name, {0: BACKGROUND, **values}, modality, Layout(segments=segments))
    values = {0: BACKGROUND, **{n: class_of.get(mask, BACKGROUND) for n, mask in found.numbers.items()}}
    for number in count(1):
        called = f"{name}_together" + (f"_{number}" if number > 1 else "")
        before = known[called].values if called in known else {}
        # Files that list other structures have one table, unless a number means two things.
        if all(before.get(value, structure) == structure for value, structure in values.items()):
            return DataSet(called, {**before, **values}, modality)
    raise AssertionError("there are always more numbers")


def _annotated(found: _Scan, parts: Mapping[str, Sequence[str]]) -> set[str]:
    there = set(found.structures)
    return {structure for structure, members in parts.items() if all(mask in there for mask in members)}


def _splits(folder: Path, cases: Sequence[str]) -> Mapping[str, str]:
    """Case -> split, from meta.csv; every case trains if there is none."""
    file = next((f for f in (folder / "meta.csv", *sorted(folder.glob("*/meta.csv"))) if f.is_file()), None)
    if file is None:
        warn_about("no meta.csv: all cases are in training", cases)
        return dict.fromkeys(cases, "train")
    lines = read_text(file, missing="meta.csv is missing").splitlines()
    separator = ";" if lines and ";" in lines[0] else ","
    try:
        rows = list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"the table cannot be read: {error}", file=file, code="unreadable") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if "image_id" not in header or "split" not in header:
        raise DataError(
            "meta.csv has no columns image_id and split", file=f"{file}, row 1", found=separator.join(header)
        )
    place, column = header.index("image_id"), header.index("split")
    splits = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= max(place, column) or not row[place].strip():
            continue
        split = row[column].strip().lower()
        if split and split not in SPLITS:
            raise DataError(
                f"unknown split '{split}'",
                case=row[place].strip(),
                file=f"{file}, row {number}, column 'split'",
                expected=", ".join(SPLITS),
                code="unknown-name",
            )
        splits[row[place].strip()] = SPLITS.get(split, "")
    warn_about("cases of meta.csv that are not there", sorted(set(splits) - set(cases)))
    warn_about("cases that meta.csv does not name take no part", sorted(set(cases) - set(splits)))
    return splits
