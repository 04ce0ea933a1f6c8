"""Medical Segmentation Decathlon: ten tasks, each a folder with the files of one data set.

    Task09_Spleen/dataset.json              training: [{image, label}, ...], test: [...], labels, modality
    Task09_Spleen/imagesTr/spleen_2.nii.gz  several channels lie in a fourth axis (tasks 1 and 5)
    Task09_Spleen/labelsTr/spleen_2.nii.gz
    Task09_Spleen/imagesTs/spleen_1.nii.gz  without labels

A task is known by the names of its files, whatever its folder is called; classes have the package's names, not
those of dataset.json.

Source
    Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 2022.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.cohort.data_set import Modality
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.cohort.text import read_text
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.formats import Layout, stem
from labelwise.importers.listing import (
    Tumour,
    Unlabelled,
    class_names,
    existing_folder,
    files_below,
    lesion_class,
    split_of_unlabelled,
    subfolders,
)
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "dataset.json of a Decathlon task, with imagesTr/<task>_<n>.nii.gz and labelsTr/<task>_<n>.nii.gz"
ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Task:
    """What one task holds; the n-th class has the label value n."""

    number: int
    name: str  # of the data set: msd_<name>
    prefix: str  # of the files, in lower case
    modality: Modality
    classes: tuple[str, ...]
    tumour: str = ""  # the class that the option `tumour` is about
    structure: str = ""  # around the tumour
    policy: Tumour = "class"  # of the tumour, unless stated
    channels: bool = False  # in a fourth axis

    @property
    def folder(self) -> str:
        """How the folder of the task begins."""
        return f"Task{self.number:02d}"


BRAIN = ("brain oedema", "non-enhancing brain tumour", "enhancing brain tumour")
TASKS = (
    Task(1, "brain_tumour", "brats", "mr", BRAIN, channels=True),
    Task(2, "heart", "la", "mr", ("left atrium",)),
    Task(3, "liver", "liver", "ct", ("liver", "liver tumour"), "liver tumour", "liver", "organ"),
    Task(4, "hippocampus", "hippocampus", "mr", ("anterior hippocampus", "posterior hippocampus")),
    Task(5, "prostate", "prostate", "mr", ("prostate peripheral zone", "prostate transition zone"), channels=True),
    Task(6, "lung", "lung", "ct", ("lung tumour",)),
    Task(7, "pancreas", "pancreas", "ct", ("pancreas", "pancreas tumour"), "pancreas tumour", "pancreas", "organ"),
    Task(8, "hepatic_vessel", "hepaticvessel", "ct", ("hepatic vessels", "liver tumour"), "liver tumour"),
    Task(9, "spleen", "spleen", "ct", ("spleen",)),
    Task(10, "colon", "colon", "ct", ("colon tumour",)),
)  # fmt: skip


def matches(folder: Path) -> bool:
    """Whether a folder is a task, or tasks lie in it."""
    return bool(_tasks(folder))


def scan(
    folder: Path | str,
    *,
    task: str | int | None = None,
    tumour: Tumour | None = None,
    unlabelled: Unlabelled = "leave_out",
    data_set: str | None = None,
) -> Manifest:
    """The manifest of one task: labelled cases train.

    Parameters
        task         which of several tasks in the folder: its number, or a name such as spleen
        tumour       what tumours count as, in tasks with a tumour beside another class: organ, background, ignore
                     or class; default: organ for liver and pancreas, class for the tumours of hepatic vessels
        unlabelled   whether test cases are unlabelled training cases, or take no part
        data_set       name of the data set; msd_<task> if not given

    Errors
        ConfigError   an option has another value, or the folder holds several tasks and none is chosen
        DataError     the folder is missing or empty, holds no task, or dataset.json is garbled or does not fit
    """
    folder = existing_folder(folder)
    root, chosen = _chosen(folder, _tasks(folder), task)
    values, spare = _values(chosen, tumour), split_of_unlabelled(unlabelled)
    dataset = _read(root)
    _check_labels(dataset, chosen, root)
    images, labels = _by_stem(root / "imagesTr"), _by_stem(root / "labelsTr")
    train = [stem(entry["image"]) for entry in dataset["training"]]
    label_of = {stem(entry["image"]): stem(entry["label"]) for entry in dataset["training"]}
    _report(train, label_of, images, labels)
    names, name = class_names(dict.fromkeys(values.values())), data_set or f"msd_{chosen.name}"
    cases = []
    for case in (case for case in train if case in images):
        label = labels.get(label_of[case])
        structures = frozenset(names[1:]) if label else frozenset[str]()
        split = "train" if label else spare
        cases.append(Case(case, (images[case],), label, structures, data_set=name, split=split))
    if not cases:
        raise DataError("none of the images that dataset.json names is there", file=root / "imagesTr")
    tests = _by_stem(root / "imagesTs")
    warn_about(f"test cases without labels {'train' if spare else 'take no part'}", list(tests))
    cases += [Case(case, (image,), data_set=name, split=spare) for case, image in tests.items()]
    table = DataSet(name, values, chosen.modality, Layout(channels=chosen.channels))
    return Manifest(LabelSpace(names), {name: table}, tuple(cases))


# which task


def _tasks(folder: Path) -> dict[Path, Task]:
    """Folder -> task: the folder itself, or those in it."""
    if task := _task_of(folder):
        return {folder: task}
    return {inside: task for inside in subfolders(folder) if (task := _task_of(inside))}


def _task_of(folder: Path) -> Task | None:
    """The task whose files a folder holds under the names of the original; nnU-Net adds a channel to those."""
    try:
        entries = _read(folder)["training"]
    except DataError:
        return None
    prefixes = {stem(entry["image"]).rpartition("_")[0].lower() for entry in entries}
    task = next((task for task in TASKS if prefixes == {task.prefix}), None)
    if task is None or not (folder / "imagesTr").is_dir():
        return None
    there = {stem(file) for file in files_below(folder / "imagesTr", ENDINGS)}
    return task if any(stem(entry["image"]) in there for entry in entries) else None


def _chosen(folder: Path, tasks: Mapping[Path, Task], wanted: str | int | None) -> tuple[Path, Task]:
    if not tasks:
        raise DataError(
            "no task of the Decathlon here", file=folder, expected=f"{LOOKS_FOR}; tasks: {_listed(TASKS)}"
        )
    found = {root: task for root, task in tasks.items() if wanted is None or _is(task, str(wanted))}
    if len(found) == 1:
        return next(iter(found.items()))
    raise ConfigError(
        f"there is no task '{wanted}' in the folder" if not found else "the folder holds several tasks",
        file=folder,
        found=_listed(tasks.values()),
        do="name one of them: --set task=spleen, or import its own folder",
    )


def _is(task: Task, wanted: str) -> bool:
    name = re.sub(r"[^a-z0-9]", "", wanted.lower())
    plain = task.name.replace("_", "")
    return name in (plain, str(task.number), task.folder.lower(), task.folder.lower() + plain)


def _listed(tasks: Any) -> str:
    return ", ".join(f"{task.number} {task.name}" for task in tasks)


# classes


def _values(task: Task, tumour: str | None) -> dict[int, str]:
    values = dict(enumerate((BACKGROUND, *task.classes)))
    if tumour is None:
        tumour = task.policy
    elif not task.tumour:
        raise ConfigError(
            f"task {task.number} has no tumour beside another class",
            found=f"tumour = {tumour}",
            do="leave the option out",
        )
    elif tumour == "organ" and not task.structure:
        raise ConfigError(
            f"a {task.tumour} is no part of the {task.classes[0]}", expected="background, ignore, class"
        )
    meaning = lesion_class("tumour", tumour, task.structure, task.tumour)
    return {value: meaning if name == task.tumour else name for value, name in values.items()}


def _check_labels(dataset: Mapping[str, Any], task: Task, root: Path) -> None:
    """Refuse a dataset.json with other label values: someone has changed the classes."""
    labels = dataset.get("labels")
    known = {str(value) for value in range(len(task.classes) + 1)}
    if not isinstance(labels, dict) or set(labels) != known:
        raise DataError(
            f"dataset.json has other label values than task {task.number} of the Decathlon",
            file=root / "dataset.json",
            found=labels,
            expected=", ".join(f"{value} {name}" for value, name in enumerate((BACKGROUND, *task.classes))),
            do="import it by another importer, for example nnunet or folders, and state the classes",
        )


# files


def _read(folder: Path) -> dict[str, Any]:
    """dataset.json, whose list "training" names an image and a label in each entry."""
    file = folder / "dataset.json"
    text = read_text(file, missing="dataset.json is missing", do=f"this importer looks for {LOOKS_FOR}")
    try:
        dataset = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number with thousands of digits
        raise DataError(
            f"dataset.json cannot be read: {error}", file=file, expected="JSON", code="unreadable"
        ) from error
    training = dataset.get("training") if isinstance(dataset, dict) else None
    if not isinstance(training, list) or not training or not all(map(_is_entry, training)):
        expected = '"training": [{"image": "./imagesTr/...", "label": "./labelsTr/..."}, ...]'
        raise DataError("dataset.json lists no training cases", file=file, expected=expected)
    return dict(dataset)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))


def _by_stem(folder: Path) -> dict[str, Path]:
    """Files by name without suffix, cases by number."""
    found: dict[str, Path] = {}
    for file in files_below(folder, ENDINGS) if folder.is_dir() else ():
        if found.setdefault(stem(file), file) != file:
            raise DataError(
                "two files hold the same scan", file=file, found=found[stem(file)], do="remove one of them"
            )
    return dict(sorted(found.items(), key=lambda item: (_number(item[0]), item[0])))


def _number(name: str) -> int:
    return int((re.findall(r"\d+", name) or [0])[-1])


def _report(
    train: Sequence[str], label_of: Mapping[str, str], images: Mapping[str, Path], labels: Mapping[str, Path]
) -> None:
    warn_about(
        "cases of dataset.json without an image are left out", [case for case in train if case not in images]
    )
    unlabelled = [case for case in train if case in images and label_of[case] not in labels]
    warn_about("training images without a label are unlabelled cases", unlabelled)
    warn_about(
        "images that dataset.json does not name are left out",
        [case for case in images if case not in label_of],
    )
    orphans = [name for name in labels if name not in label_of.values()]
    warn_about("labels that dataset.json does not name are left out", orphans)
