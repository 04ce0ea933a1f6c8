"""What the importers share: finding files, reading lists of cases, naming cases."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from labelwise.cohort.data_set import IGNORE_NAME, MODALITIES, Modality
from labelwise.cohort.manifest import absolute
from labelwise.cohort.text import read_text
from labelwise.errors import ConfigError, DataError, did_you_mean, warn_about
from labelwise.formats import SUFFIXES, stem, suffix
from labelwise.types import BACKGROUND

logger = logging.getLogger("labelwise")

Tumour = Literal["organ", "background", "ignore", "class"]
"""What voxels of a tumour count as: the organ around it, no organ, unknown, or a class of their own."""

Unlabelled = Literal["leave_out", "train"]
"""What becomes of scans without labels: they take no part, or they are unlabelled training cases."""


def existing_folder(folder: Path | str) -> Path:
    """The absolute path of a folder; links are not followed.

    Errors
        DataError   there is no such folder, or nothing lies in it
    """
    folder = absolute(folder)
    if not folder.is_dir():
        raise DataError("there is no such folder", file=folder, code="not-found")
    if not any(not _is_junk(entry) for entry in folder.iterdir()):
        raise DataError("the folder is empty", file=folder, do="name the folder in which the scans lie")
    return folder


def files_below(folder: Path, endings: Sequence[str] = SUFFIXES) -> list[Path]:
    """All files below a folder with one of the endings, sorted by path; hidden files are skipped."""
    return sorted(_walk(folder, tuple(endings)))


def _walk(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    for entry in folder.iterdir():
        if _is_junk(entry) or _leads_back(entry):
            continue
        if entry.is_dir():  # also a folder called x.nii, into which some archives unpack x.nii
            yield from _walk(entry, endings)
        elif entry.name.lower().endswith(endings):
            yield entry


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones and links that lead back are skipped."""
    entries = [entry for entry in folder.iterdir() if entry.is_dir()]
    return sorted(entry for entry in entries if not _is_junk(entry) and not _leads_back(entry))


def _leads_back(entry: Path) -> bool:
    """Whether an entry is a link to a folder in which it lies: its files would be found again and again."""
    try:
        return entry.is_symlink() and entry.parent.resolve().is_relative_to(entry.resolve())
    except (OSError, RuntimeError):  # links that lead in a circle: no file is at their end
        return True


def _is_junk(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def read_list(file: Path) -> list[str]:
    """The entries of a list of cases: one per line, a tail after a comma cut off, no repetition."""
    text = read_text(file, missing="the list is missing")
    entries = [line.split(",")[0].strip() for line in text.splitlines()]
    entries = [entry for entry in entries if entry]
    if twice := {entry for entry in entries if entries.count(entry) > 1}:
        raise DataError(f"'{min(twice)}' stands twice in the list", file=file, do="remove one of the lines")
    return entries


def find_list(folder: Path, name: str) -> Path | None:
    """A list file in the folder, one level above it, or one level below."""
    for place in (folder, folder.parent, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        if (place / name).is_file():
            return place / name
    return None


def listed(folder: Path, lists: Mapping[str, str], names_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Case name -> split, in the order of the lists; cases that no list names come last and take no part.

    Parameters
        lists       name of a list file -> split of its cases
        names_of    what a list may call a case, or several cases -> names of the cases that are there

    Errors
        DataError   a list is missing, no listed case is there, or a case is in two lists
    """
    split_of: dict[str, str] = {}
    for list_name, split in lists.items():
        file = find_list(folder, list_name)
        if file is None:
            raise DataError(
                f"{list_name} is missing", file=folder, do="copy the published lists beside the scans"
            )
        entries = read_list(file)
        warn_about(
            f"entries of {list_name} without a file", [entry for entry in entries if entry not in names_of]
        )
        for name in (name for entry in entries for name in names_of.get(entry, ())):
            if split_of.setdefault(name, split) != split:
                raise DataError("the case is in two lists", case=name, file=file, found=" and ".join(lists))
    names = {name for names in names_of.values() for name in names}
    if not split_of:
        raise DataError("none of the listed cases is there", file=folder, found=", ".join(sorted(names)[:3]))
    warn_about("cases that no list names take no part", sorted(names - set(split_of)))
    return split_of | dict.fromkeys(sorted(names - set(split_of)), "")


def annotated_structures(annotated: Iterable[str] | None, structures: Sequence[str]) -> frozenset[str]:
    """What a labelled case says: all classes of the data set unless stated otherwise.

    Errors
        ConfigError   a stated class is not one of the data set's
    """
    names = frozenset(structures if annotated is None else annotated)
    for name in sorted(names - set(structures)):
        raise ConfigError(
            f"unknown class '{name}'{did_you_mean(name, structures)}",
            expected=", ".join(structures),
            code="unknown-name",
        )
    return names


Values = Mapping[str, int | Sequence[int]]


def stated(
    classes: Values | None, modality: Modality | None, file: Path | str, *, labelled: bool = True
) -> tuple[Values, Modality]:
    """The classes and the modality, which no file of a plain data set says and the user must.

    A data set in which nothing is labelled needs no classes.

    Errors
        ConfigError   the classes or the modality are missing
    """
    if not classes and labelled:
        raise ConfigError(
            "the classes are missing: no file says what the label values mean",
            file=file,
            do="state them: --classes liver=1,spleen=2",
        )
    if modality is None:
        raise ConfigError(
            "state the modality: no file says it",
            file=file,
            expected=", ".join(MODALITIES),
            do="--modality ct, for example",
        )
    return classes or {}, modality


def class_names(classes: Iterable[str]) -> tuple[str, ...]:
    """The names of a label space, background first, in the given order."""
    return (BACKGROUND, *(name for name in classes if name not in (BACKGROUND, IGNORE_NAME)))


def group_of(case_id: str, pattern: str | None) -> str:
    """The part of a case id that names the patient: the match of `pattern`, or of its first group.

    Errors
        ConfigError   the pattern is no regular expression, or it does not match the id
    """
    if pattern is None:
        return case_id
    try:
        match = re.search(pattern, case_id)
    except re.error as error:
        raise ConfigError(
            f"the pattern of the group is no regular expression: {error}", found=pattern
        ) from error
    if match is None:
        raise ConfigError(
            "the pattern of the group does not match a case",
            found=pattern,
            expected=f"a match in '{case_id}'",
        )
    return match.group((match.lastindex and 1) or 0)


def files_in(path: Path, endings: Sequence[str]) -> list[Path]:
    """The visible files with one of the endings directly in a folder, by name; the file itself if it is one."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    named = [file for file in files if file.suffix.lower() in endings and not file.name.startswith(".")]
    return [file for file in named if file.is_file()]


def only_file(folder: Path, found: Sequence[Path], what: str, many: str, expected: str) -> Path:
    """The one file in a folder that an importer can read.

    Parameters
        what, many  what to say if there is none, and if there are several

    Errors
        DataError   there is none, or there are several
    """
    if not found:
        raise DataError(what, file=folder, expected=expected)
    if len(found) > 1:
        raise DataError(
            many,
            file=folder,
            found=", ".join(file.name for file in found[:5]),
            do="name one of them instead of the folder",
        )
    return found[0]


def channel_files(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Files by case and channel: ``a_0001.nii.gz`` is channel 1 of ``a``, ``a.nii.gz`` its channel 0."""
    cases: dict[str, dict[int, Path]] = {}
    for file in files:
        name = file.name[: len(file.name) - len(suffix(file))]
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        case, channel = (match.group(1), int(match.group(2))) if match else (name, 0)
        if channel in cases.setdefault(case, {}):
            raise DataError(
                "two files hold the same channel",
                case=case,
                file=file,
                found=cases[case][channel],
                do="remove one of them",
            )
        cases[case][channel] = file
    return cases


def by_number(files: Iterable[Path], pattern: str) -> dict[int, Path]:
    """Files whose name without its suffix is `pattern`, by the number that its only group matches, in order.

    Errors
        DataError   two files have the same number
    """
    numbered: dict[int, Path] = {}
    for file in files:
        if match := re.fullmatch(pattern, stem(file), flags=re.IGNORECASE):
            number = int(match.group(1))
            if number in numbered:
                raise DataError(
                    "two files hold the same scan", file=file, found=numbered[number], do="remove one of them"
                )
            numbered[number] = file
    return dict(sorted(numbered.items()))


def chosen(option: str, value: str, choices: Iterable[str]) -> str:
    """The value of an option, if it is one of the choices.

    Errors
        ConfigError   it is none of them
    """
    choices = list(choices)
    if value not in choices:
        raise ConfigError(
            f"{option} = '{value}' is no choice{did_you_mean(str(value), choices)}",
            expected=", ".join(choices),
        )
    return value


def lesion_class(option: str, policy: str, structure: str, own: str) -> str:
    """The class of the voxels of a lesion, by the choice of the user.

    Parameters
        option   name of the option, for the message
        policy   organ, background, ignore, or class
        structure    the class around the lesion
        own      the class of the lesion, for the policy "class"

    Errors
        ConfigError   another policy
    """
    meanings = {"organ": structure, "background": BACKGROUND, "ignore": IGNORE_NAME, "class": own}
    return meanings[chosen(option, policy, meanings)]


def split_of_unlabelled(unlabelled: str) -> str:
    """The split of scans without labels, by the choice of the user.

    Errors
        ConfigError   neither leave_out nor train
    """
    return "train" if chosen("unlabelled", unlabelled, ("leave_out", "train")) == "train" else ""
