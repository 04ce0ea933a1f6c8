"""DICOM: any tree of folders with series, as scanners, archives and CDs leave them, and the labels among them.

    <anything>/<slices of a series>              one folder per series, or series mixed, or spread below a DICOMDIR
    <anything>/<DICOM-SEG or RTSTRUCT>           belongs to the series that it refers to
    <anything>/<name>.nii.gz, <name>.seg.nrrd    a label map beside, if it lies on the grid of one series and names its
                                                 classes (own predictions do), or they are stated

Scans of other formats beside are those of `labelwise.importers.mixed`.

Of each study the series with labels become cases; without labels the series with most slices, all of them if
several have as many. Patients are numbered;
no name, identifier or date of the files is kept.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labelwise.anatomy import canonical
from labelwise.cohort.data_set import Modality, value_table
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.formats import (
    Layout,
    is_dicom,
    read_geometry,
    segment_names,
    stem,
    suffix,
    value_names,
)
from labelwise.importers.described import about
from labelwise.importers.listing import class_names, existing_folder, files_below
from labelwise.types import BACKGROUND, Case, LabelSpace

if TYPE_CHECKING:  # at run time the extra may be missing
    from labelwise.formats.dicom.image import Series

LOOKS_FOR = "DICOM series anywhere below the folder"
MODALITY_OF: Mapping[str, Modality] = {"CT": "ct", "MR": "mr"}
LABEL_WORDS = {"label", "labels", "mask", "masks", "seg", "segmentation", "segmentations", "gt"}
UNCLEAR = "label files that do not belong to exactly one series are left out"
NAMELESS = "label files that do not name their classes are left out (--classes states them)"
_READER = {"SEG": "dicom.seg", "RTSTRUCT": "dicom.rtstruct"}


def matches(folder: Path) -> bool:
    """Whether there are DICOM files below a folder."""
    return any(is_dicom(file) for file in _without_suffix(folder))


def scan(
    folder: Path | str,
    *,
    series: str | int | Sequence[str | int] = "auto",
    structures: str | Iterable[str] | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    modality: Modality | None = None,
    data_set: str = "dicom",
) -> Manifest:
    """The manifest of a tree of DICOM files; all cases are in the training split.

    Parameters
        series      auto: of each study the series with labels, or else that with most slices; all: every series
                    that is no localiser, secondary capture, reformatted or single image; numbers or keys: these;
                    list: stop with a numbered list of what is there
        structures  names of the segments that become classes, as the files or `labelwise.anatomy` call them; default:
                    all
        classes     class name -> value or values in NIfTI label files; also the classes where no labels are found
        modality    of all series; default: ct or mr as the files say, other series are left out
        data_set      name of the data set

    Errors
        ConfigError     an option is wrong
        DataError       no series, or none that can be read
        ResourceError   the extra `dicom` is not installed
    """
    found = find(
        folder, series=series, structures=structures, classes=classes, modality=modality, data_set=data_set
    )
    report(existing_folder(folder), found.left_out)
    warn_about(
        "scans of other formats are passed over (without --importer, they are used)",
        [file.name for file in found.scans],
    )
    return found.manifest


@dataclass(frozen=True)
class Found:
    """What lies below a folder: the cases, and the files of other formats that are none of theirs."""

    manifest: Manifest
    left_out: Mapping[Path, str]  # label map -> why no series has it
    scans: tuple[Path, ...]  # the others


def find(
    folder: Path | str,
    *,
    series: str | int | Sequence[str | int] = "auto",
    structures: str | Iterable[str] | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    modality: Modality | None = None,
    data_set: str = "dicom",
) -> Found:
    """The manifest as `scan` gives it, and what lies beside."""
    folder = existing_folder(folder)
    dicom = _format("dicom.image")
    found = dicom.series_in(folder)
    if not found:
        raise DataError("there is no DICOM series below this folder", file=folder, expected=LOOKS_FOR)
    wanted = None if structures is None else _words(structures)
    labels = objects_of(folder, found, wanted)
    chosen = _chosen(found, set(labels), series, folder, modality)
    paths = {one.key: dicom.path_of(one, found) for one in chosen}
    maps, left_out = maps_on(folder, paths, named_only=not classes)
    scans = set(files_below(folder)) - set(left_out) - {each.file for each in maps.values()}
    labels = maps | labels
    classes = classes or _named_values(labels.values())
    with about(folder):
        manifest = _manifest(
            chosen, paths, {key: labels[key] for key in paths if key in labels}, classes, modality, data_set
        )
    return Found(manifest, left_out, tuple(sorted(scans)))


def report(folder: Path, left_out: Mapping[Path, str]) -> None:
    """Name the label maps that no series has, by the reason."""
    for reason in dict.fromkeys(left_out.values()):
        warn_about(
            reason, [file.relative_to(folder).as_posix() for file, why in left_out.items() if why == reason]
        )


# which series


def _chosen(
    found: Sequence[Series], labelled: set[str], series: Any, folder: Path, modality: Modality | None
) -> list[Series]:
    dicom = _format("dicom.image")
    words = _words(series)
    readable = [one for one in found if one.usable and (modality or one.modality in MODALITY_OF)]
    scans = [one for one in readable if not one.passed_over]
    if words == ["list"]:
        raise ConfigError(
            "these series lie below the folder",
            file=folder,
            found=dicom.listing(found, folder),
            do="choose by --set series=NUMBER, several as series=[1, 3]; or series=all",
        )
    if words == ["all"]:
        chosen = scans
    elif words == ["auto"]:
        studies: dict[tuple[str, str], list[Series]] = {}
        for one in scans or readable:
            studies.setdefault((one.patient, one.study or _place(one)), []).append(one)
        with_labels = {one.key for one in readable if one.key in labelled}
        chosen = [one for one in readable if one.key in with_labels]
        for study in studies.values():
            if not any(one.key in with_labels for one in study):
                chosen += dicom.choose(study)
        chosen.sort(key=found.index)
    else:
        return _named(found, words, folder)
    _report_left_out(found, chosen, modality)
    if not chosen:
        raise DataError(
            "no DICOM series below this folder can be used", file=folder, found=dicom.listing(found, folder)
        )
    return chosen


def _named(found: Sequence[Series], words: Sequence[str], folder: Path) -> list[Series]:
    """The series that the user asks for by number or key."""
    dicom = _format("dicom.image")
    named = {str(number): one for number, one in enumerate(found, start=1)} | {one.key: one for one in found}
    for word in words:
        if word not in named:
            raise ConfigError(
                f"there is no series '{word}'",
                file=folder,
                expected=f"auto, all, list, or numbers and keys of\n            {dicom.listing(found, folder)}",
            )
        if named[word].problem:
            raise DataError(
                f"series {word} cannot be read: {named[word].problem}",
                file=folder,
                do=named[word].do or None,
                code="unreadable",
            )
    return [one for one in found if any(named[word] is one for word in words)]


def _report_left_out(found: Sequence[Series], chosen: Sequence[Series], modality: Modality | None) -> None:
    left = [(number, one) for number, one in enumerate(found, start=1) if one not in chosen]
    warn_about(
        "series that cannot be read are left out", [f"{n}: {one.problem}" for n, one in left if one.problem]
    )
    warn_about(
        "series that are no plain scans are left out",
        [f"{n}: {one.passed_over}" for n, one in left if one.passed_over and not one.problem],
    )
    rest = [(n, one) for n, one in left if not one.why_not]
    others = [(n, one) for n, one in rest if modality is None and one.modality not in MODALITY_OF]
    warn_about(
        "series that are neither CT nor MR are left out", [f"{n}: {one.modality}" for n, one in others]
    )
    warn_about(
        "further series of a study are left out (--set series=list shows all, series=all takes all)",
        [f"{n}: {one.num_slices} slices" for n, one in rest if (n, one) not in others],
    )


# the manifest


def _manifest(
    chosen: Sequence[Series],
    paths: Mapping[str, Path],
    labels: Mapping[str, Labels],
    classes: Mapping[str, int | Sequence[int]] | None,
    modality: Modality | None,
    data_set: str,
) -> Manifest:
    segments = tuple(dict.fromkeys(name for each in labels.values() for name in each.names))
    class_of = {name: class_name(name) for name in segments}
    values = {0: BACKGROUND} | {value: class_of[name] for value, name in enumerate(segments, start=1)}
    numbers = value_table(classes or {})
    space = class_names(dict.fromkeys([*class_of.values(), *class_names(numbers.values())]))
    integers = any(not each.names for each in labels.values()) or not segments
    data_sets: dict[tuple[Modality, bool], DataSet] = {}
    cases = []
    for one, id, group in _numbered(chosen):
        kind: Modality = modality or MODALITY_OF[one.modality]
        own = labels.get(one.key)
        by_name = bool(own.names) if own else not integers
        if (kind, by_name) not in data_sets:
            parts = [data_set, kind, "segments" if by_name else "files"]
            names = {table.name for table in data_sets.values()}
            name = next(
                name for name in (data_set, "_".join(parts[:2]), "_".join(parts)) if name not in names
            )
            layout = Layout(segments=segments) if by_name else Layout()
            data_sets[kind, by_name] = DataSet(name, values if by_name else numbers, kind, layout)
        table = data_sets[kind, by_name]
        annotated = frozenset(class_of[name] for name in own.names) if own and own.names else table.structures
        cases.append(
            Case(
                id,
                (paths[one.key],),
                labels=own.file if own else None,
                annotated=annotated if own else frozenset(),
                group=f"{data_set}_{group}",
                data_set=table.name,
                split="train",
            )
        )
    warn_about(
        "series without labels are unlabelled cases", [case.id for case in cases if case.labels is None]
    )
    return Manifest(LabelSpace(space), {table.name: table for table in data_sets.values()}, tuple(cases))


def _numbered(chosen: Sequence[Series]) -> Iterator[tuple[Series, str, str]]:
    """Series, case id, group: patients are numbered in the order of their paths."""
    patients: dict[str, list[Series]] = {}
    for one in chosen:
        patients.setdefault(one.patient or one.study or _place(one), []).append(one)
    for number, own in enumerate(patients.values(), start=1):
        name = f"patient_{number:03d}"
        for count, one in enumerate(own, start=1):
            yield one, name if len(own) == 1 else f"{name}_{count}", name


def _words(value: Any) -> list[str]:
    return [str(each).strip() for each in (value.split(",") if isinstance(value, str) else _listed(value))]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _place(series: Series) -> str:
    return str(min(series.files).parent)


def _without_suffix(folder: Path) -> Iterator[Path]:
    return (file for file in files_below(folder, [""]) if not suffix(file))


def _format(name: str) -> ModuleType:
    """A format that needs the extra `dicom`: imported when it is used, so that other importers work without it."""
    return importlib.import_module(f"labelwise.formats.{name}")


# labels: DICOM-SEG and RTSTRUCT objects, and NIfTI label maps beside


@dataclass(frozen=True)
class Labels:
    """What is known about the labels of one series."""

    file: Path
    names: tuple[str, ...] = ()  # of the segments; empty: a map of integers


def class_name(segment: str) -> str:
    """The name of a class: canonical if `labelwise.anatomy` knows it, else without the signs that tables need."""
    return canonical(re.sub(r"[;,=\s]+", " ", segment).strip())


def objects_of(folder: Path, found: Sequence[Series], wanted: Sequence[str] | None) -> dict[str, Labels]:
    """Key of a series -> its DICOM-SEG or RTSTRUCT; the one with most of the wanted names if there are several."""
    dicom = importlib.import_module("labelwise.formats.dicom.image")
    labels: dict[str, Labels] = {}
    further, homeless, damaged = [], [], []
    for label in dicom.label_objects_in(folder):
        module = importlib.import_module(f"labelwise.formats.{_READER[label.modality]}")
        shown = label.file.relative_to(folder).as_posix()
        try:
            names = tuple(name for name in module.names(label.file) if _is_wanted(name, wanted))
            reference = module.referenced_series(label.file)
        except DataError:
            damaged.append(shown)
            continue
        owner = _owner(label, reference, found, dicom)
        if owner is None or not names:
            homeless.append(shown)
            continue
        before = labels.get(owner.key)
        if before is None or len(names) > len(before.names):
            labels[owner.key] = Labels(label.file, names)
        if before is not None:
            further.append(shown)
    warn_about("label objects that cannot be read are left out", damaged)
    warn_about("label objects that name no series here, or no wanted structure, are left out", homeless)
    warn_about("label objects beside another of the same series: the one with most names counts", further)
    return labels


def _owner(label: Any, reference: str | None, found: Sequence[Series], dicom: ModuleType) -> Series | None:
    """The series that labels belong to: the one that they refer to, or the one in their frame of reference."""
    usable = [one for one in found if one.usable]
    by_reference = [one for one in usable if reference and one.uid == reference]
    if by_reference:
        return max(by_reference, key=lambda one: one.num_slices)
    same = [
        one
        for one in usable
        if label.frame_of_reference
        and one.frame_of_reference == label.frame_of_reference
        and one.patient == label.patient
    ]
    best = dicom.choose(same)
    return best[0] if len(best) == 1 else None


def maps_on(
    folder: Path, paths: Mapping[str, Path], *, named_only: bool
) -> tuple[dict[str, Labels], dict[Path, str]]:
    """Key of a series -> the label map on its grid, of several fitting series the nearest by path; the others and why.

    `named_only` takes only maps that say themselves what their values mean.
    """
    grids = {key: read_geometry(path) for key, path in paths.items()}
    labels: dict[str, Labels] = {}
    left_out: dict[Path, str] = {}
    for file in files_below(folder):
        names = {_folder(path).name for path in paths.values()}
        words = set(re.split(r"[^a-z]+", f"{file.relative_to(folder).as_posix()}".lower()))
        try:
            named = bool(value_names(file) or segment_names(file))
            if not named and not words & LABEL_WORDS and stem(file) not in names:
                continue
            grid = read_geometry(file)
        except DataError:
            left_out[file] = UNCLEAR
            continue
        if named_only and not named:
            left_out[file] = NAMELESS
            continue
        near = {key: _nearness(file, paths[key]) for key, own in grids.items() if own.matches(grid)}
        best = [key for key, value in near.items() if value == max(near.values())]
        if len(best) == 1 and best[0] not in labels:
            labels[best[0]] = Labels(file, segment_names(file))
        else:
            left_out[file] = UNCLEAR
    return labels, left_out


def _named_values(labels: Iterable[Labels]) -> dict[str, int]:
    """Class name -> value, as the label maps of integers say themselves."""
    named: dict[str, int] = {}
    for each in labels:
        for value, name in () if each.names else value_names(each.file).items():
            if value:
                named.setdefault(class_name(name), value)
    return named


def _nearness(file: Path, path: Path) -> tuple[int, int]:
    """How many folders of a series are in the name of a file, from the last one on, and how many they share.

    `predict` names results so: PATIENT_SERIES.
    """
    folder, name = _folder(path), stem(file).lower()
    parts = folder.parts[1:]
    named = (k for k in range(len(parts), 0, -1) if "_".join(parts[-k:]).lower() in name)
    shared = sum(parent in folder.parents or parent == folder for parent in file.parents)
    return next(named, 0), shared


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    """Whether a segment is asked for, by its own name or that of its class; a name without letters never is."""
    if wanted is None:
        return bool(class_name(name))
    return name in wanted or class_name(name) in {canonical(each) for each in wanted}
