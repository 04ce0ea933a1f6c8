"""The manifest: a table of cases that a person can read and edit.

    manifest.csv    id,images,labels,annotated,group,data_set,split        one row per case
                    and states,proposals, if models or reviewers have said something of a class (see `states`)
    and parts, if classes are annotated in a part of a scan only (see `parts`)
    dataset.toml    the classes in order, and what each data set's integers mean (see `labelwise.cohort.data_set`)

Several files or class names in one cell are joined by ';', and '-' is an image that was not taken. `annotated` is
``all``, a list of classes and regions, or empty. Paths are relative to the folder of the manifest where the files lie
inside it, else absolute.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labelwise.atomic import write_text
from labelwise.cohort.data_set import (
    DATA_SETS_KEY,
    FILE_NAME,
    IGNORE_NAME,
    DataSet,
    LookupTable,
    check_data_set,
    read_class_table,
    unknown_values,
    write_class_table,
)
from labelwise.cohort.meaning import data_set_of_file, refuse_hidden
from labelwise.cohort.parts import ALL, known_parts, parts_cell, read_parts
from labelwise.cohort.states import proposals_cell, read_states, states_cell
from labelwise.cohort.text import MISSING, Row, convert, read_rows, taken_and_missing
from labelwise.documents import cells
from labelwise.errors import ConfigError, DataError, did_you_mean, naming
from labelwise.formats import Geometry, Tally, read_geometry, read_image, read_labels
from labelwise.types import IGNORE, SPLITS, Case, LabelSpace, Volume

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DataSet",
    "Manifest",
    "check_same_grid",
    "merge",
    "read_case_image",
    "read_case_labels",
    "read_manifest",
    "write_manifest",
]

MANIFEST_NAME = "manifest.csv"
FOLDS = "folds.json"  # in a folder of folds: how many there are, and how they were drawn
COLUMNS = ("id", "images", "labels", "annotated", "group", "data_set", "split")
REVIEW_COLUMNS = ("states", "proposals")  # only where there is something to say
PARTS_COLUMN = "parts"  # likewise


@dataclass(frozen=True)
class Manifest:
    """All cases of a project, the classes they may show, and where they come from."""

    label_space: LabelSpace
    data_sets: Mapping[str, DataSet]
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_sets", dict(self.data_sets))
        object.__setattr__(self, "cases", tuple(self.cases))
        if reserved := {ALL, IGNORE_NAME} & {*self.label_space.names, *self.label_space.region_names}:
            raise DataError(f"'{reserved.pop()}' cannot be the name of a class: it has a meaning of its own")
        for data_set in self.data_sets.values():
            check_data_set(data_set, self.label_space)
        if not self.cases:
            raise DataError("a manifest needs at least one case")
        seen: dict[str, Case] = {}
        for case in self.cases:
            _check_case(case, self)
            other = seen.setdefault(
                case.id.lower(), case
            )  # on Windows and macOS, Case1 and case1 are one file
            if other is not case:
                raise DataError(
                    "two cases have the same id, or ids that differ in small and capital letters only",
                    case=case.id,
                    found=f"{other.images[0]} and {case.images[0]}",
                    do="give each case its own id, after which its results are named: rename its files",
                )

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of one split, in the order of the manifest."""
        return tuple(case for case in self.cases if case.split == name)

    def replace_cases(self, cases: Iterable[Case]) -> Manifest:
        """The same classes and data sets with other cases."""
        return replace(self, cases=tuple(cases))

    def data_set_of(self, case: Case) -> DataSet:
        """The data set a case comes from."""
        return self.data_sets[case.data_set]

    def annotated(self, case: Case) -> Tensor:
        """(C,) bool: which classes are annotated in a case."""
        return self.label_space.annotated(case.annotated)


def _check_case(case: Case, manifest: Manifest) -> None:
    if problem := _id_problem(case.id):
        raise DataError(problem, case=case.id)
    if case.data_set not in manifest.data_sets:
        raise DataError(
            f"unknown data set '{case.data_set}'{did_you_mean(case.data_set, manifest.data_sets)}",
            case=case.id,
            expected=", ".join(manifest.data_sets),
            code="unknown-name",
        )
    space, data_set = manifest.label_space, manifest.data_set_of(case)
    named = {*space.structures, *space.region_names}
    if strange := [
        each for each in case.annotated if each not in named or not space.covers(data_set.structures, each)
    ]:
        raise DataError(
            f"the label files of data set '{case.data_set}' cannot show {', '.join(sorted(strange))}",
            case=case.id,
            expected=", ".join(sorted(data_set.structures)),
        )
    if problem := twice_annotated(case.annotated, space):
        raise DataError(problem, case=case.id, do=_ONE_NAME)
    for proposal in case.proposals:
        if unknown := proposal.structures - set(manifest.label_space.structures):
            raise DataError(
                f"a model has predicted the unknown class {', '.join(sorted(unknown))}",
                case=case.id,
                file=proposal.file,
                expected=", ".join(manifest.label_space.structures),
            )


def twice_annotated(structures: Iterable[str], label_space: LabelSpace) -> str:
    """What is wrong with annotated classes and regions of which two hold the same class; empty if none do."""
    owner: dict[str, str] = {}
    for structure in sorted(structures):
        for name in label_space.classes_of(structure):
            if (other := owner.setdefault(name, structure)) != structure:
                return f"'{other}' and '{structure}' are annotated in one case, but both hold '{name}'"
    return ""


_ONE_NAME = "name either the region or its classes: what is left of a region beside a class of it is a class of its own"


def _id_problem(name: str) -> str:
    if not name:
        return "the case has no id"
    if name.startswith(".") or any(sign in name for sign in '/\\:*?"<>|') or not name.isprintable():
        return "the id of a case becomes a file name: no '.' in front, no / \\ : * ? \" < > |, no sign without a shape"
    return ""


# pixels of a case


def read_case_image(case: Case, manifest: Manifest) -> Volume:
    """(M, X, Y, Z) float32 image of a case, axes in RAS+ order; modalities that are missing are left out.

    Errors
        DataError   a file is missing or unreadable, or the images of a case lie on different grids
    """
    return read_image(case.images, manifest.data_set_of(case).layout)


def read_case_labels(case: Case, manifest: Manifest, *, erase: bool = True) -> Volume:
    """(X, Y, Z) uint8 class indices of a case: 0..C-1, or IGNORE where nothing is known.

    Values of the file are mapped by the names that it gives to them, else through the table of the case's data set
    (`labelwise.cohort.meaning`). Structures that are not annotated are erased to 0, whatever the file says of them,
    and so are regions, whose classes are not told apart (`labelwise.cohort.regions` reads one). A case without any
    annotation is IGNORE everywhere and its label file is not even opened. Where a class is annotated in a part of the
    scan only, what is background elsewhere is IGNORE (`parts.by_part` names the classes of each part). With `erase`
    False the whole file is believed instead, and regions have their `region_index`: for the store, which hides
    structures when a patch is read.

    Errors
        DataError   the file is missing or unreadable, it holds a value without a meaning, its names contradict the
                    table, or an annotated structure lies wholly beneath others
    """
    data_set = manifest.data_set_of(case)
    believed = case.annotated if erase else data_set.structures
    if not believed or case.labels is None:
        geometry = read_geometry(case.images[0], data_set.layout)
        return Volume(np.full(geometry.shape, IGNORE, dtype=np.uint8), geometry.affine)
    with naming(case.id, case.labels):
        data_set = data_set_of_file(data_set, case.labels)
        tally = Tally()
        stored = read_labels(case.labels, data_set.layout, case.images[0], tally)
        refuse_hidden(data_set, tally, case.annotated)
    indices = LookupTable.of(data_set, manifest.label_space, believed, with_regions=not erase)(stored.data)
    if indices is None:
        raise unknown_values(data_set, stored.data, case.id, case.labels)
    return Volume(known_parts(indices, case, manifest.label_space) if erase else indices, stored.affine)


def resolved(single: Manifest) -> Manifest:
    """A manifest of one case, in which its data set has the value table that holds for its label file.

    What lies in a region that is annotated as one is that region there.

    Errors
        DataError   the names in the file contradict the table
    """
    case = single.cases[0]
    if case.labels is None:
        return single
    space, data_set = single.label_space, data_set_of_file(single.data_set_of(case), case.labels)
    whole = {
        name: region
        for region in case.annotated.intersection(space.region_names)
        for name in data_set.structures
        if space.classes_of(name) <= space.classes_of(region)
    }
    values = {value: whole.get(name, name) for value, name in data_set.values.items()}
    return replace(single, data_sets={**single.data_sets, data_set.name: replace(data_set, values=values)})


def check_same_grid(case: Case, image: Volume, labels: Volume) -> None:
    """Raise a DataError unless the label map of a case lies on the grid of its image."""
    ours, theirs = Geometry(image.shape, image.affine), Geometry(labels.shape, labels.affine)
    if ours.matches(theirs):
        return
    same_shape = ours.shape == theirs.shape
    raise DataError(
        f"image and labels {'lie at different places' if same_shape else 'differ in shape'}",
        case=case.id,
        file=case.labels,
        found=theirs,
        expected=ours,
        do="look at both in a viewer; if only the header is wrong, copy that of the image"
        if same_shape
        else "put them in their place: labelwise check --fix FOLDER"
        if ours.place_of(theirs) is not None
        else "resample the labels to the grid of the image (nearest neighbour)",
        code="grids-differ" if same_shape else "shapes-differ",
    )


# several data sets


def merge(manifests: Sequence[Manifest]) -> Manifest:
    """Several data sets in one label space, joined by class name.

    Classes keep the order in which they first appear. Case ids that occur twice are prefixed by their data set;
    a group of its own moves with its id, a group that was given is kept, so that a patient who is in two data
    sets stays one patient. A region of one of them is a region of all: where it was a class, it is annotated as one.

    Errors
        DataError   two different data sets, or two different regions, have the same name
    """
    regions: dict[str, tuple[str, ...]] = {}
    for name, members in (each for manifest in manifests for each in manifest.label_space.regions):
        if set(regions.setdefault(name, members)) != set(members):
            raise DataError(
                f"the region '{name}' means two things",
                found=f"{', '.join(regions[name])}; {', '.join(members)}",
                do="give one of them another name",
            )
    names = dict.fromkeys(name for manifest in manifests for name in manifest.label_space.names)
    classes = tuple(name for name in names if name not in regions)
    data_sets: dict[str, DataSet] = {}
    for manifest in manifests:
        for name, data_set in manifest.data_sets.items():
            if data_sets.setdefault(name, data_set) != data_set:
                raise DataError(
                    f"two different data sets have the name '{name}'",
                    do="import one of them under another name",
                )
    all_cases = [case for manifest in manifests for case in manifest.cases]
    count: dict[str, int] = {}
    for case in all_cases:
        count[case.id.lower()] = count.get(case.id.lower(), 0) + 1
    cases = tuple(case if count[case.id.lower()] == 1 else _prefixed(case) for case in all_cases)
    return Manifest(LabelSpace(classes, tuple(regions.items())), data_sets, cases)


def _prefixed(case: Case) -> Case:
    name = f"{case.data_set}_{case.id}"
    return replace(case, id=name, group=name if case.group == case.id else case.group)


# reading, writing


def absolute(path: Path | str) -> Path:
    """The path from the root, without '..'; links are not followed: versioned data sets are full of them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve follows links


def manifest_file(path: Path | str) -> Path:
    """The table that `path` means: itself, or the manifest.csv in it."""
    path = Path(path)
    return path / MANIFEST_NAME if path.is_dir() else path


def read_manifest(path: Path | str) -> Manifest:
    """Read and validate a manifest: `path` is manifest.csv or the folder in which it lies.

    A byte order mark, Windows line ends, and the empty rows and columns that spreadsheets add are accepted.

    Errors
        DataError   a file is missing, empty or garbled; a column is missing or unknown; an id is missing or
                    stands
                    twice; a class, data set or split is unknown. The message names file, row and column.
    """
    file = manifest_file(absolute(path))
    if not file.exists() and (file.parent / FOLDS).exists():
        raise DataError(
            "this folder holds the folds of a cross-validation, each with a manifest of its own",
            file=file.parent,
            do=f"name one of them: {file.parent / 'fold_0'}",
        )
    rows = read_rows(file, COLUMNS, (*REVIEW_COLUMNS, PARTS_COLUMN))
    label_space, data_sets = read_class_table(file.with_name(FILE_NAME))
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.cells["id"].lower(), row.number)
    cases = convert(rows, lambda row: _case(row, first[row.cells["id"].lower()], label_space, data_sets))
    return Manifest(label_space, data_sets, tuple(cases))


def _case(row: Row, first: int, label_space: LabelSpace, data_sets: Mapping[str, DataSet]) -> Case:
    cells = row.cells
    if problem := _id_problem(cells["id"]):
        row.refuse("id", problem)
    if row.number != first:
        row.refuse(
            "id",
            f"the id stands twice: first in row {first}",
            expected="ids that differ in more than small and capital letters: results are named after them",
            do="give each case its own id",
        )
    if cells["data_set"] not in data_sets:
        row.refuse(
            "data_set",
            f"unknown data set '{cells['data_set']}'{did_you_mean(cells['data_set'], data_sets)}",
            expected=", ".join(data_sets),
            do=f"correct the name, or describe the data set in {FILE_NAME}",
        )
    if cells["split"] not in SPLITS:
        row.refuse(
            "split",
            f"unknown split '{cells['split']}'{did_you_mean(cells['split'], SPLITS)}",
            expected="train, validation, test or empty",
        )
    images, missing = taken_and_missing(row.images("images"))
    if not images:
        row.refuse("images", "a case needs at least one image")
    annotated = _annotated(row, label_space, data_sets[cells["data_set"]])
    if annotated and not cells["labels"]:
        row.refuse(
            "annotated",
            "classes are said to be annotated, but there is no label file",
            do="fill the column 'labels', or leave 'annotated' empty",
        )
    folder = row.file.parent
    states = read_states(row, label_space, annotated)
    return Case(
        id=cells["id"],
        images=tuple(absolute(folder / image) for image in images),
        labels=absolute(folder / cells["labels"]) if cells["labels"] else None,
        annotated=annotated,
        group=cells["group"],
        data_set=cells["data_set"],
        split=cells["split"],
        corrected=states.corrected,
        verified=states.verified,
        proposals=tuple(replace(each, file=absolute(folder / each.file)) for each in states.proposals),
        parts=read_parts(row, label_space, annotated),
        missing=missing,
    )


def _annotated(row: Row, label_space: LabelSpace, data_set: DataSet) -> frozenset[str]:
    names = row.items("annotated")
    structures = frozenset(label_space.structures if names == [ALL] else names)
    known = (*label_space.structures, *label_space.region_names)
    for name in names:
        if name != ALL and name not in known:
            row.refuse(
                "annotated",
                f"unknown class '{name}'{did_you_mean(name, known)}",
                expected=f"all, or names joined by ';' out of {', '.join(known)}",
            )
    if ALL in names and len(names) > 1:
        row.refuse("annotated", "'all' stands beside other names", do="keep one of them")
    if problem := twice_annotated(structures, label_space):
        row.refuse("annotated", problem, do=_ONE_NAME)
    if missing := {name for name in structures if not label_space.covers(data_set.structures, name)}:
        row.refuse(
            "annotated",
            f"the label files of data set '{data_set.name}' cannot show {', '.join(sorted(missing))}",
            expected=";".join(structure for structure in known if structure in data_set.structures),
            do=f"name the annotated structures, or complete [{DATA_SETS_KEY}.{data_set.name}.values] in {FILE_NAME}",
        )
    return structures


def write_manifest(manifest: Manifest, folder: Path | str) -> Path:
    """Write manifest.csv and dataset.toml to a folder, and return the path of the csv. Read, they are equal.

    Errors
        DataError       a path holds a ';', which separates paths
        ResourceError   the folder cannot be written
    """
    folder = absolute(folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    reviewed = any(case.corrected or case.verified or case.proposals for case in manifest.cases)
    in_parts = any(case.parts for case in manifest.cases)
    writer.writerow((*COLUMNS, *REVIEW_COLUMNS * reviewed, *[PARTS_COLUMN] * in_parts))
    for case in manifest.cases:
        space = manifest.label_space
        annotated = [name for name in (*space.structures, *space.region_names) if name in case.annotated]
        complete = bool(annotated) and annotated == list(space.structures)
        taken = iter(case.images)
        images = ";".join(
            MISSING if number in case.missing else _path_cell(next(taken), folder, case)
            for number in range(case.channels)
        )
        labels = _path_cell(case.labels, folder, case) if case.labels else ""
        group = "" if case.group == case.id else case.group
        known = ALL if complete else ";".join(annotated)
        row = [case.id, images, labels, known, group, case.data_set, case.split]
        if reviewed:
            files = {each.model: _path_cell(each.file, folder, case) for each in case.proposals}
            row += [states_cell(case, manifest.label_space), proposals_cell(files)]
        row += [parts_cell(case, manifest.label_space)] * in_parts
        writer.writerow(cells(row))
    write_class_table(folder / FILE_NAME, manifest.label_space, manifest.data_sets)
    file = folder / MANIFEST_NAME
    write_text(file, text.getvalue())
    return file


def write_new_manifest(manifest: Manifest, folder: Path) -> None:
    """As `write_manifest`, but never over another manifest: people correct theirs by hand.

    Errors
        ConfigError     the folder holds another manifest
    """
    if (folder / MANIFEST_NAME).exists() and not _holds(folder, manifest):
        raise ConfigError(
            "the output folder holds another manifest",
            file=folder / MANIFEST_NAME,
            do="choose another folder; or, if nobody needs that manifest any more, delete it",
            code="would-overwrite",
        )
    write_manifest(manifest, folder)


def _holds(folder: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest(folder) == manifest
    except DataError:  # damaged, but not ours to throw away
        return False


def _path_cell(path: Path, folder: Path, case: Case) -> str:
    path = absolute(path)
    cell = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    if ";" in cell or cell != cell.strip() or not cell.isprintable():
        raise DataError(
            "the path cannot stand in a table",
            case=case.id,
            file=path,
            found=repr(cell),
            do="rename it without ';', spaces at its ends, line breaks and other signs without a shape",
        )
    return cell
