"""A table of one's own: a row for each case, with the paths of its files.

    image,label,patient,split               also images, labels, mask, group, subject, id, case, annotated
    a.nii.gz,a_seg.nii.gz,p1,train          several images: joined by ';', or in columns image_0, image_1, ...
    b.nii.gz,,p2,                           no label: an unlabelled case

Separated by commas, semicolons or tabs, which is found out. Paths are relative to the table. An empty split trains.
What stands in `annotated` (organs joined by ';', all, or none) is all that the label file of this row is believed
for; empty means all. Other columns are passed over.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from labelwise.cohort.data_set import FILE_NAME, Modality, value_table
from labelwise.cohort.manifest import DataSet, Manifest, absolute
from labelwise.cohort.parts import ALL
from labelwise.cohort.text import Row, convert, read_row, read_text
from labelwise.errors import ConfigError, DataError, LabelwiseError, did_you_mean, warn_about
from labelwise.formats import Layout, stem
from labelwise.importers.described import about, label_space
from labelwise.importers.listing import (
    annotated_structures,
    existing_folder,
    files_in,
    group_of,
    logger,
    only_file,
    stated,
)
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "a .csv or .tsv file with the columns image and label"
ENDINGS = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "images": ("images", "image", "image_path", "scan"),
    "labels": ("labels", "label", "label_path", "mask", "segmentation", "seg"),
    "id": ("id", "case", "case_id", "name"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id"),
    "split": ("split", "subset"),
    "annotated": ("annotated",),
}
SPLITS = {
    **dict.fromkeys(("", "train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("none", "-"), ""),
}
NONE = "none"
_QUOTE = "put a name that holds the separator in double quotes"


def matches(folder: Path) -> bool:
    """Whether a folder holds exactly one table with columns for images and labels; or whether a file is one."""
    return len(_tables(folder)) == 1


def scan(
    folder: Path | str,
    *,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    modality: Modality | None = None,
    images: str | Sequence[str] | None = None,
    labels: str | None = None,
    annotated: Iterable[str] | None = None,
    group: str | None = None,
    root: Path | str | None = None,
    layout: Layout | None = None,
    data_set: str | None = None,
) -> Manifest:
    """The manifest of the cases in a table, in its order.

    Parameters
        folder      the table, or the folder that holds it and no other
        classes     class name -> value or values in the label files; "background" and "ignore" may be among them
        modality    ct, mr or other
        images      the columns of the images, if they have other names; several are channels: t1,flair
        labels      the column of the label files, likewise
        annotated   the classes that labelled rows are annotated for where they do not say it, if not all
        group       regular expression whose match in a case id names the patient, if no column does
        root        folder to which the paths are relative; that of the table if not given
        layout      what the files do not say about themselves
        data_set      name of the data set; the folder's if not given

    Errors
        DataError     there is no table or more than one; a row is wrong, or names a file that is not there: with
                      row and column, all rows at once
        ConfigError   `classes` or `modality` is missing or wrong
    """
    file = _table(folder)
    header, rows = _rows(file)
    columns = _columns(file, header, images, labels)
    labelled = any(_cell(row, columns, "labels") for row in rows)
    classes, modality = stated(classes, modality, file, labelled=labelled)
    space = label_space(classes, file) if classes else LabelSpace((BACKGROUND,))
    structures = annotated_structures(annotated, space.structures)
    rows = [replace(row, cells={**row.cells, "id": _cell(row, columns, "id")}) for row in rows]
    name, base = data_set or file.parent.name, existing_folder(root) if root else file.parent

    def case_of(row: Row) -> Case:
        files = _images(row, columns["images"], base)
        label = _label(row, columns, base)
        case_id = _cell(row, columns, "id") or re.sub(r"_0000$", "", stem(files[0]))
        return Case(
            case_id,
            files,
            labels=label,
            annotated=_annotated(row, columns, space.structures, structures) if label else frozenset(),
            group=_cell(row, columns, "group") or group_of(case_id, group),
            data_set=name,
            split=_split(row, columns),
        )

    cases = convert(rows, case_of)
    warn_about(
        "rows without a label are unlabelled cases", [case.id for case in cases if case.labels is None]
    )
    with about(file):
        table = DataSet(name, value_table(classes), modality, layout or Layout())
        return Manifest(space, {name: table}, tuple(cases))


# the table


def _table(path: Path | str) -> Path:
    if Path(path).is_file():
        return absolute(path)
    folder = existing_folder(path)
    every = _by_ending(folder)
    found = every if len(every) == 1 else _tables(folder)
    what, many = "no table here has a column of images", "several tables have a column of images"
    return only_file(folder, found, what, many, LOOKS_FOR)


def _tables(path: Path) -> list[Path]:
    """The tables in a folder with columns of images and labels; the file itself if it is one."""
    return [file for file in _by_ending(path) if _has_columns(file)]


def _by_ending(path: Path) -> list[Path]:
    if (path / FILE_NAME).is_file():  # a manifest, which needs no import
        return []
    return files_in(path, ENDINGS)


def _has_columns(file: Path) -> bool:
    try:
        header, _ = _rows(file)
        columns = _columns(file, header, None, None)
    except LabelwiseError:
        return False
    return bool(columns["labels"])


def _rows(file: Path) -> tuple[list[str], list[Row]]:
    """Column names, and the rows as they stand in the file; empty rows are passed over."""
    text = read_text(file, missing="there is no such table", encoding_do="save it as 'CSV UTF-8'")
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except csv.Error as error:
        raise DataError(
            f"the table cannot be read: {error}", file=f"{file}, row {reader.line_num}", code="unreadable"
        ) from error
    lines = [(number, line) for number, line in lines if any(line)]
    if len(lines) < 2:
        raise DataError("the table has no rows below the column names", file=file, expected=LOOKS_FOR)
    header = lines[0][1]
    while not header[-1]:
        header = header[:-1]
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"the column '{twice[0]}' stands twice", file=f"{file}, row 1")
    return header, [read_row(file, number, header, line, _QUOTE) for number, line in lines[1:]]


def _columns(
    file: Path, header: Sequence[str], images: str | Sequence[str] | None, labels: str | None
) -> dict[str, list[str]]:
    """What it is -> its columns in this table."""
    lower = {name.lower().replace(" ", "_"): name for name in header}
    found = {what: [lower[name] for name in names if name in lower] for what, names in COLUMNS.items()}
    numbered = sorted(
        (int(match[1]), lower[name]) for name in lower if (match := re.fullmatch(r"images?_?(\d{1,4})", name))
    )
    found["images"] = found["images"] or [name for _, name in numbered]
    if images:
        named = images.split(",") if isinstance(images, str) else images
        found["images"] = [_known(str(name).strip(), header, file) for name in named]
    if labels:
        found["labels"] = [_known(labels.strip(), header, file)]
    if not found["images"]:
        raise DataError(
            "no column names the images", file=f"{file}, row 1", found=", ".join(header), expected="image"
        )
    for what, names in found.items():
        if len(names) > 1 and what != "images":
            logger.warning(
                "%s: the column '%s' counts, '%s' does not", file.name, names[0], "', '".join(names[1:])
            )
    return found


def _known(name: str, header: Sequence[str], file: Path) -> str:
    if name not in header:
        raise ConfigError(
            f"there is no column '{name}'{did_you_mean(name, header)}",
            file=f"{file}, row 1",
            expected=", ".join(header),
        )
    return name


# one row


def _cell(row: Row, columns: Mapping[str, Sequence[str]], what: str) -> str:
    return row.cells[columns[what][0]] if columns[what] else ""


def _images(row: Row, columns: Sequence[str], base: Path) -> tuple[Path, ...]:
    files = []
    for column in columns:
        named = row.images(column)
        if not named:
            row.refuse(column, "a case needs an image", do="name the file, or remove the row")
        files += [_existing(row, column, base / name) for name in named]
    return tuple(files)


def _label(row: Row, columns: Mapping[str, Sequence[str]], base: Path) -> Path | None:
    cell = _cell(row, columns, "labels")
    return _existing(row, columns["labels"][0], base / cell) if cell else None


def _existing(row: Row, column: str, path: Path) -> Path:
    try:
        there = path.exists()
    except OSError:  # a name that is too long
        there = False
    if not there:
        row.refuse(column, "there is no such file", do="correct the path; it is relative to the table")
    return absolute(path)


def _annotated(
    row: Row, columns: Mapping[str, Sequence[str]], known: Sequence[str], usual: frozenset[str]
) -> frozenset[str]:
    cell = _cell(row, columns, "annotated")
    if cell.lower() in ("", ALL, NONE):
        return {"": usual, ALL: frozenset(known), NONE: frozenset[str]()}[cell.lower()]
    column = columns["annotated"][0]
    for name in row.items(column):
        if name not in known:
            row.refuse(
                column,
                f"unknown class '{name}'{did_you_mean(name, known)}",
                expected=f"{ALL}, {NONE}, or names joined by ';' out of {', '.join(known)}",
            )
    return frozenset(row.items(column))


def _split(row: Row, columns: Mapping[str, Sequence[str]]) -> str:
    cell = _cell(row, columns, "split").lower()
    if cell not in SPLITS:
        row.refuse(
            columns["split"][0],
            f"unknown split '{cell}'{did_you_mean(cell, SPLITS)}",
            expected="train, validation, test, empty (trains) or none (takes no part)",
        )
    return SPLITS[cell]
