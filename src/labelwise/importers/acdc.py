"""ACDC: right ventricle, myocardium and left ventricle in short-axis cine MR, raw or as h5 volumes.

Raw, as the challenge gives it out
    training/patient001/Info.cfg                    the frames of end diastole (ED) and end systole (ES)
    training/patient001/patient001_frame01.nii.gz   with patient001_frame01_gt.nii.gz; 100 patients
    training/patient001/patient001_4d.nii.gz        the whole heartbeat, without labels: not read
    testing/patient101/                             50 patients

h5, as papers on few labels use it
    <patient>_frameNN.h5            image float32 (Z, Y, X) scaled to 0..1; label; scribble, 4 = unknown
    train.list, val.list            patients or volumes, one level above or beside the files
    test.list                       not in every copy

Without a list of test cases the patients of the validation list are the test cases, as in the papers that report
on them; with one, they validate. End diastole and end systole of a patient form one group. The h5 files store no
spacing: a voxel counts as 1 mm along each axis, so distances are in voxels.

Source
    Bernard et al., IEEE TMI 2018; files and lists of Luo et al. (SSL4MIS) and, for the scribbles, Valvano et al.,
    IEEE TMI 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.cohort.text import read_text
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.formats import Layout, stem, suffix
from labelwise.importers.listing import chosen, existing_folder, files_below, find_list, listed, logger
from labelwise.importers.paired import Pairs, by_published_lists
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = (
    "<patient>_frameNN.h5, with train.list and val.list beside or above; "
    "or patient001/patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz"
)
STRUCTURES = ("right ventricle", "myocardium", "left ventricle")
VALUES = dict(enumerate((BACKGROUND, *STRUCTURES)))
NAME = re.compile(r"((patient\d{3})_frame\d{2})(_gt)?")
INFO = "Info.cfg"
PHASES = ("ed", "es")
LISTS = {"train.list": "train", "val.list": "test"}
LISTS_WITH_TEST = {"train.list": "train", "val.list": "validation", "test.list": "test"}
LAST_TRAINING_PATIENT = 100  # of the challenge

# Of the 100 training patients; the labelled ones of "3 (or 7) patients" are the first 3 (or 7) of train.
SSL4MIS: Mapping[str, tuple[int, ...]] = {
    "train": (
        99, 38, 50, 100, 58, 21, 49, 20, 72, 40, 60, 89, 4, 56, 98, 96, 31, 18, 94, 47, 48, 55, 97, 74, 43, 41, 63, 37,
        95, 54, 26, 88, 32, 69, 6, 71, 12, 73, 61, 17, 25, 10, 57, 29, 51, 5, 36, 46, 62, 34, 76, 92, 70, 77, 67, 3,
        91, 16, 14, 44, 42, 90, 53, 27, 35, 86, 23, 9, 79, 15,
    ),
    "validation": (2, 19, 28, 30, 39, 45, 78, 82, 85, 87),
    "test": (1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93),
}  # fmt: skip


def matches(folder: Path) -> bool:
    """Whether a folder holds volumes of this data set, raw or as h5."""
    return bool(_volumes(folder)) or has_raw_frames(folder)


def scan(
    folder: Path | str,
    *,
    labels: Literal["dense", "scribble"] = "dense",
    split: Literal["lists", "challenge", "ssl4mis"] | None = None,
    phase: Literal["both", "ed", "es"] = "both",
    data_set: str = "acdc",
) -> Manifest:
    """The manifest of the data set.

    Parameters
        labels      what training cases learn from; the cases of the other splits always have dense labels.
                    Scribbles are in the h5 files only
        split       lists: the list files, in their order (h5; the default there). challenge: patients up to 100
                    train, the others test (raw; the default there). ssl4mis: the published 70, 10 and 20 of the
                    100 patients, in published order, so that the first n are the papers' labelled ones
        phase       frames that are taken: end diastole, end systole, or both (raw)

    Errors
        ConfigError   an option has another value, or one that this form of the data set does not have
        DataError     the folder is missing or empty, has no volume or both forms, or a list is missing or names none
    """
    if labels not in ("dense", "scribble"):
        raise ConfigError(
            f"unknown kind of labels '{labels}'", expected="dense or scribble", code="unknown-name"
        )
    chosen("phase", phase, ("both", *PHASES))
    folder = existing_folder(folder)
    volumes, frames = _volumes(folder), raw_frames(folder)
    if not volumes and not frames:
        raise DataError("no volume of ACDC here", file=folder, expected=LOOKS_FOR)
    if volumes and frames:
        raise DataError(
            "two forms of ACDC lie here",
            file=folder,
            found=f"{min(volumes)}.h5 and {min(frames)}.nii.gz",
            do="name the folder that holds one of them",
        )
    if volumes:
        if phase != "both":
            raise ConfigError("h5 files do not say which frame is which phase", found=f"phase = {phase}")
        split_of = _splits_of_volumes(
            folder, volumes, chosen("split", split or "lists", ("lists", "ssl4mis"))
        )
        return _from_volumes(volumes, split_of, labels, data_set)
    if labels == "scribble":
        raise ConfigError("the raw files have no scribbles", file=folder, do="import the h5 files of WSL4MIS")
    chosen("split", split or "challenge", ("challenge", "ssl4mis"))
    frames = of_phase(frames, phase)
    split_of = _ssl4mis(frames) if split == "ssl4mis" else _challenge(frames)
    return _from_frames(frames, split_of, data_set)


def _from_volumes(
    volumes: Mapping[str, Path], split_of: Mapping[str, str], labels: str, data_set: str
) -> Manifest:
    logger.info("ACDC h5 files store no spacing: a voxel counts as 1 mm, distances are in voxels")
    dense = DataSet(data_set, VALUES, "mr", Layout(axes="zyx"), normalised=True)
    train = _scribbles(data_set) if labels == "scribble" else dense
    cases = [
        Case(
            name,
            (volumes[name],),
            labels=volumes[name],
            annotated=frozenset(STRUCTURES),
            group=_patient(name),
            data_set=train.name if split == "train" else dense.name,
            split=split,
        )
        for name, split in split_of.items()
    ]
    data_sets = {table.name: table for table in (train, dense)}
    return Manifest(LabelSpace((BACKGROUND, *STRUCTURES)), data_sets, tuple(cases))


def _from_frames(frames: Mapping[str, Frame], split_of: Mapping[str, str], data_set: str) -> Manifest:
    warn_about("frames without labels", [name for name, frame in frames.items() if frame.labels is None])
    cases = [
        Case(
            name,
            (frames[name].image,),
            labels=frames[name].labels,
            annotated=frozenset(STRUCTURES if frames[name].labels else ()),
            group=_patient(name),
            data_set=data_set,
            split=split,
        )
        for name, split in split_of.items()
    ]
    return Manifest(
        LabelSpace((BACKGROUND, *STRUCTURES)), {data_set: DataSet(data_set, VALUES, "mr")}, tuple(cases)
    )


def _splits_of_volumes(folder: Path, volumes: Iterable[str], split: str) -> dict[str, str]:
    if split == "ssl4mis":
        return _ssl4mis(volumes)
    lists = LISTS_WITH_TEST if find_list(folder, "test.list") else LISTS
    return listed(folder, lists, _names_of(volumes))


def _challenge(names: Iterable[str]) -> dict[str, str]:
    return {name: "train" if int(name[7:10]) <= LAST_TRAINING_PATIENT else "test" for name in sorted(names)}


def _ssl4mis(names: Iterable[str]) -> dict[str, str]:
    lists = {split: [f"patient{number:03d}" for number in numbers] for split, numbers in SSL4MIS.items()}
    split_of = by_published_lists(lists, _names_of(names))
    if "test" in split_of.values():
        return split_of
    logger.info("no test patient of ACDC is there: the validation patients are the test cases")
    return {name: "test" if split == "validation" else split for name, split in split_of.items()}


def _scribbles(data_set: str) -> DataSet:
    layout = Layout(axes="zyx", label_key="scribble")
    return DataSet(f"{data_set}_scribble", {**VALUES, 4: IGNORE_NAME}, "mr", layout, normalised=True)


def _volumes(folder: Path) -> dict[str, Path]:
    files = files_below(folder, [".h5"])
    return {stem(file): file for file in files if re.fullmatch(r"patient\d+_frame\d+", stem(file))}


def _names_of(volumes: Iterable[str]) -> dict[str, list[str]]:
    """A list may name a volume, or a patient and so all volumes of the patient."""
    names: dict[str, list[str]] = {}
    for name in sorted(volumes):
        names[name] = [name]
        names.setdefault(_patient(name), []).append(name)
    return names


def _patient(name: str) -> str:
    return name.split("_")[0]


# the raw files: frames of a cine MR, their labels, and which of them is which phase


@dataclass(frozen=True)
class Frame:
    """One frame of a patient."""

    image: Path
    labels: Path | None
    phase: str  # ed, es, or empty if nothing says it


def has_raw_frames(folder: Path) -> bool:
    """Whether a folder holds a frame."""
    return any(True for _ in _files(folder))


def raw_frames(folder: Path) -> dict[str, Frame]:
    """Frames by `<patient>_frame<NN>`, in this order.

    Info.cfg names the frames of the two phases; of what else it says about a patient nothing is read.

    Errors
        DataError   two files of one frame, or an Info.cfg that does not say which frame is which phase
    """
    pairs = Pairs()
    for kind, name, file in _files(folder):
        pairs.add(kind, name, file)
    warn_about("labels without a frame are left out", sorted(set(pairs.labels) - set(pairs.images)))
    phases: dict[Path, dict[int, str]] = {}
    found = {}
    for name, image in sorted(pairs.images.items()):
        home = _home(image)
        if home not in phases:
            phases[home] = _phases(home / INFO)
        found[name] = Frame(image, pairs.labels.get(name), phases[home].get(int(name[-2:]), ""))
    return found


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """images or labels, name of the frame, file; each lies in the folder of its patient."""
    for file in files_below(folder, (".nii.gz", ".nii")):
        match = NAME.fullmatch(stem(file))
        if match and _home(file).name.lower() == match[2]:
            yield "labels" if match[3] else "images", match[1], file


def of_phase(all_frames: Mapping[str, Frame], phase: str) -> dict[str, Frame]:
    """The frames of a phase; frames of both phases that are not there, and frames of none, are reported.

    Errors
        DataError   no frame is of the phase
    """
    wanted = PHASES if phase == "both" else (phase,)
    there = {(name[:10], frame.phase) for name, frame in all_frames.items()}
    told = sorted({patient for patient, known in there if known})
    warn_about(
        "patients without the frame of a phase",
        [f"{patient} {kind}" for patient in told for kind in wanted if (patient, kind) not in there],
    )
    unknown = [name for name, frame in all_frames.items() if not frame.phase]
    if phase == "both":
        warn_about(f"frames whose phase no {INFO} names are kept", unknown)
        return dict(all_frames)
    warn_about(f"frames whose phase no {INFO} names are left out", unknown)
    chosen = {name: frame for name, frame in all_frames.items() if frame.phase == phase}
    if not chosen:
        raise DataError(f"no frame is known to be of the phase {phase}", do=f"copy the files {INFO} as well")
    return chosen


def _home(file: Path) -> Path:
    """The folder of a patient; some archives unpack x.nii as a folder that holds it."""
    return file.parent.parent if suffix(file.parent) else file.parent


def _phases(file: Path) -> dict[int, str]:
    """Frame number -> ed or es."""
    if not file.is_file():
        return {}
    entries = dict(
        re.findall(r"^\s*(\w+)\s*[:=]\s*(\d+)\s*$", read_text(file, missing=""), flags=re.MULTILINE)
    )
    if missing := [phase.upper() for phase in PHASES if phase.upper() not in entries]:
        raise DataError(
            f"{INFO} does not say which frame is {' and '.join(missing)}",
            file=file,
            expected="lines such as ED: 1 and ES: 12",
        )
    return {int(entries[phase.upper()]): phase for phase in PHASES}
