"""The manifest: a table of cases that a person can read and edit.

    manifest.csv    id,images,labels,annotated,group,source,split        one row per case
                    and states,proposals, if models or reviewers have said something of a class (see `states`)
    and parts, if classes are annotated in a part of a scan only (see `parts`)
    dataset.toml    the classes in order, and what each data set's integers mean (see `labelwise.cohort.source`)

Several files or class names in one cell are joined by ';'. `annotated` is ``all``, a list of organs, or
empty. Paths are relative to the folder of the manifest where the files lie inside it, else absolute.
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
from labelwise.cohort.meaning import refuse_hidden, source_of_file
from labelwise.cohort.parts import ALL, known_parts, parts_cell, read_parts
from labelwise.cohort.source import (
    FILE_NAME,
    IGNORE_NAME,
    LookupTable,
    Source,
    check_source,
    read_class_table,
    unknown_values,
    write_class_table,
)
from labelwise.cohort.states import proposals_cell, read_states, states_cell
from labelwise.cohort.text import Row, convert, read_rows
from labelwise.documents import cells
from labelwise.errors import ConfigError, DataError, did_you_mean, naming
from labelwise.formats import Geometry, Tally, read_geometry, read_image, read_labels
from labelwise.types import IGNORE, SPLITS, Case, LabelSpace, Volume

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Manifest",
    "Source",
    "check_same_grid",
    "merge",
    "read_case_image",
    "read_case_labels",
    "read_manifest",
    "write_manifest",
]

MANIFEST_NAME = "manifest.csv"
FOLDS = "folds.json"  # in a folder of folds: how many there are, and how they were drawn
COLUMNS = ("id", "images", "labels", "annotated", "group", "source", "split")
REVIEW_COLUMNS = ("states", "proposals")  # only where there is something to say
PARTS_COLUMN = "parts"  # likewise


@dataclass(frozen=True)
class Manifest:
    """All cases of a project, the classes they may show, and where they come from."""

    label_space: LabelSpace
    sources: Mapping[str, Source]
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", dict(self.sources))
        object.__setattr__(self, "cases", tuple(self.cases))
        if reserved := {ALL, IGNORE_NAME} & set(self.label_space.names):
            raise DataError(f"'{reserved.pop()}' cannot be the name of a class: it has a meaning of its own")
        for source in self.sources.values():
            check_source(source, self.label_space)
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

    def source_of(self, case: Case) -> Source:
        """The data set a case comes from."""
        return self.sources[case.source]

    def annotated(self, case: Case) -> Tensor:
        """(C,) bool: which classes are annotated in a case."""
        return self.label_space.annotated(case.annotated)


def _check_case(case: Case, manifest: Manifest) -> None:
    if problem := _id_problem(case.id):
        raise DataError(problem, case=case.id)
    if case.source not in manifest.sources:
        raise DataError(
            f"unknown data set '{case.source}'{did_you_mean(case.source, manifest.sources)}",
            case=case.id,
            expected=", ".join(manifest.sources),
            code="unknown-name",
        )
    if unknown := case.annotated - manifest.source_of(case).organs:
        raise DataError(
            f"the label files of data set '{case.source}' cannot show {', '.join(sorted(unknown))}",
            case=case.id,
            expected=", ".join(sorted(manifest.source_of(case).organs)),
        )
    for proposal in case.proposals:
        if unknown := proposal.organs - set(manifest.label_space.organs):
            raise DataError(
                f"a model has predicted the unknown class {', '.join(sorted(unknown))}",
                case=case.id,
                file=proposal.file,
                expected=", ".join(manifest.label_space.organs),
            )


def _id_problem(name: str) -> str:
    if not name:
        return "the case has no id"
    if name.startswith(".") or any(sign in name for sign in '/\\:*?"<>|') or not name.isprintable():
        return "the id of a case becomes a file name and may not start with '.' or hold / \\ : * ? \" < > |"
    return ""


# pixels of a case


def read_case_image(case: Case, manifest: Manifest) -> Volume:
    """(M, X, Y, Z) float32 image of a case, axes in RAS+ order.

    Errors
        DataError   a file is missing or unreadable, or the images of a case lie on different grids
    """
    return read_image(case.images, manifest.source_of(case).layout)


def read_case_labels(case: Case, manifest: Manifest, *, erase: bool = True) -> Volume:
    """(X, Y, Z) uint8 class indices of a case: 0..C-1, or IGNORE where nothing is known.

    Values of the file are mapped by the names that it gives to them, else through the table of the case's data set
    (`labelwise.cohort.meaning`). Organs that are not annotated are erased to 0, whatever the file says about them; a
    case without any annotation is IGNORE everywhere and its label file is not even opened. Where a class is annotated
    in a part of the scan only, what is background elsewhere is IGNORE (`parts.by_part` names the classes of each
    part). With `erase` False the whole file is believed instead: for the store, which hides organs when a patch is
    read.

    Errors
        DataError   the file is missing or unreadable, it holds a value without a meaning, its names contradict the
                    table, or an annotated organ lies wholly beneath others
    """
    source = manifest.source_of(case)
    believed = case.annotated if erase else source.organs
    if not believed or case.labels is None:
        geometry = read_geometry(case.images[0], source.layout)
        return Volume(np.full(geometry.shape, IGNORE, dtype=np.uint8), geometry.affine)
    with naming(case.id, case.labels):
        source = source_of_file(source, case.labels)
        tally = Tally()
        stored = read_labels(case.labels, source.layout, case.images[0], tally)
        refuse_hidden(source, tally, case.annotated)
    indices = LookupTable.of(source, manifest.label_space, believed)(stored.data)
    if indices is None:
        raise unknown_values(source, stored.data, case.id, case.labels)
    return Volume(known_parts(indices, case, manifest.label_space) if erase else indices, stored.affine)


def resolved(single: Manifest) -> Manifest:
    """A manifest of one case, in which its data set has the value table that holds for its label file.

    Errors
        DataError   the names in the file contradict the table
    """
    case = single.cases[0]
    if case.labels is None:
        return single
    source = source_of_file(single.source_of(case), case.labels)
    return replace(single, sources={**single.sources, source.name: source})


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
    sets stays one patient.

    Errors
        DataError   two different data sets have the same name
    """
    names = dict.fromkeys(name for manifest in manifests for name in manifest.label_space.names)
    sources: dict[str, Source] = {}
    for manifest in manifests:
        for name, source in manifest.sources.items():
            if sources.setdefault(name, source) != source:
                raise DataError(
                    f"two different data sets have the name '{name}'",
                    do="import one of them under another name",
                )
    all_cases = [case for manifest in manifests for case in manifest.cases]
    count: dict[str, int] = {}
    for case in all_cases:
        count[case.id.lower()] = count.get(case.id.lower(), 0) + 1
    cases = tuple(case if count[case.id.lower()] == 1 else _prefixed(case) for case in all_cases)
    return Manifest(LabelSpace(tuple(names)), sources, cases)


def _prefixed(case: Case) -> Case:
    name = f"{case.source}_{case.id}"
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
    label_space, sources = read_class_table(file.with_name(FILE_NAME))
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.cells["id"].lower(), row.number)
    cases = convert(rows, lambda row: _case(row, first[row.cells["id"].lower()], label_space, sources))
    return Manifest(label_space, sources, tuple(cases))


def _case(row: Row, first: int, label_space: LabelSpace, sources: Mapping[str, Source]) -> Case:
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
    if cells["source"] not in sources:
        row.refuse(
            "source",
            f"unknown data set '{cells['source']}'{did_you_mean(cells['source'], sources)}",
            expected=", ".join(sources),
            do=f"correct the name, or describe the data set in {FILE_NAME}",
        )
    if cells["split"] not in SPLITS:
        row.refuse(
            "split",
            f"unknown split '{cells['split']}'{did_you_mean(cells['split'], SPLITS)}",
            expected="train, validation, test or empty",
        )
    images = row.items("images")
    if not images:
        row.refuse("images", "a case needs at least one image")
    annotated = _annotated(row, label_space, sources[cells["source"]])
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
        source=cells["source"],
        split=cells["split"],
        corrected=states.corrected,
        verified=states.verified,
        proposals=tuple(replace(each, file=absolute(folder / each.file)) for each in states.proposals),
        parts=read_parts(row, label_space, annotated),
    )


def _annotated(row: Row, label_space: LabelSpace, source: Source) -> frozenset[str]:
    names = row.items("annotated")
    organs = frozenset(label_space.organs if names == [ALL] else names)
    for name in names:
        if name != ALL and name not in label_space.organs:
            row.refuse(
                "annotated",
                f"unknown class '{name}'{did_you_mean(name, label_space.organs)}",
                expected=f"all, or names joined by ';' out of {', '.join(label_space.organs)}",
            )
    if ALL in names and len(names) > 1:
        row.refuse("annotated", "'all' stands beside other names", do="keep one of them")
    if missing := organs - source.organs:
        row.refuse(
            "annotated",
            f"the label files of data set '{source.name}' cannot show {', '.join(sorted(missing))}",
            expected=";".join(organ for organ in label_space.organs if organ in source.organs),
            do=f"name the annotated structures, or complete [sources.{source.name}.values] in {FILE_NAME}",
        )
    return organs


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
        annotated = [organ for organ in manifest.label_space.organs if organ in case.annotated]
        complete = bool(annotated) and len(annotated) == len(manifest.label_space.organs)
        images = ";".join(_path_cell(image, folder, case) for image in case.images)
        labels = _path_cell(case.labels, folder, case) if case.labels else ""
        group = "" if case.group == case.id else case.group
        known = ALL if complete else ";".join(annotated)
        row = [case.id, images, labels, known, group, case.source, case.split]
        if reviewed:
            files = {each.model: _path_cell(each.file, folder, case) for each in case.proposals}
            row += [states_cell(case, manifest.label_space), proposals_cell(files)]
        row += [parts_cell(case, manifest.label_space)] * in_parts
        writer.writerow(cells(row))
    write_class_table(folder / FILE_NAME, manifest.label_space, manifest.sources)
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
            do="rename it without ';' and line breaks",
        )
    return cell
