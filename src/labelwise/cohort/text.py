"""Small text files that people edit, and tables as spreadsheets write them: errors name the row and the column."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from labelwise.documents import cell, decode
from labelwise.errors import DataError, did_you_mean
from labelwise.settings import OLDER_NAMES

Result = TypeVar("Result")
MISSING = "-"  # in the place of an image that was not taken
NO_NAME = "one of the images has no name"
NAMES = f"files joined by ';', with {MISSING} for an image that was not taken"
_MOST_REFUSED = 20  # rows of one message
_IMPORT = "name a folder with a manifest.csv, or import one"
_SAVE = "save it as 'CSV UTF-8 (comma delimited)'"


def read_text(file: Path, *, missing: str, do: str | None = None, encoding_do: str | None = None) -> str:
    """The text of a UTF-8 file, or of what its byte order mark says, without the mark.

    Parameters
        missing       what to say if there is no such file
        do            what to do then
        encoding_do   what to do if the file is not UTF-8

    Errors
        DataError     the file is missing, unreadable or not UTF-8; the last with the row
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(missing, file=file, do=do) from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", file=file, code="unreadable") from error
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError("the file is not UTF-8 text", file=f"{file}, row {row}", do=encoding_do) from error


@dataclass(frozen=True)
class Row:
    """One row of a table: stripped cells by column, and where it stands."""

    file: Path
    number: int  # as an editor counts lines
    cells: Mapping[str, str]

    def refuse(self, column: str, what: str, expected: str | None = None, do: str | None = None) -> NoReturn:
        """Raise the DataError for a cell, naming case, file, row and column."""
        raise DataError(
            what,
            case=self.cells.get("id") or None,
            file=f"{self.file}, row {self.number}, column '{column}'",
            found=repr(self.cells[column]),
            expected=expected,
            do=do,
        )

    def items(self, column: str) -> list[str]:
        """The parts of a cell that holds a list joined by ';'."""
        return [item.strip() for item in self.cells[column].split(";") if item.strip()]

    def images(self, column: str) -> list[str]:
        """The images of a case, joined by ';'; a place that is left empty is refused: the next image would take it."""
        if left_empty(self.cells[column]):
            self.refuse(column, NO_NAME, expected=NAMES)
        return self.items(column)


def read_rows(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a table that has exactly these columns, in any order; the `optional` ones may be missing.

    Accepted: older names of columns, a byte order mark, Windows line ends, empty rows, empty cells at the end.

    Errors
        DataError   the file is missing, empty, not UTF-8 or not separated by commas; a column is missing,
                    unknown or
                    stands twice; a row has too few or too many cells; a cell holds unprintable characters
    """
    lines = [(number, line) for number, line in _read_lines(file) if any(line)]
    if not lines:
        raise DataError("the table is empty", file=file, expected=f"a first row with {','.join(columns)}")
    names = [OLDER_NAMES.get(name, name) for name in lines[0][1]]
    header = _header(file, names, columns, optional)
    if len(lines) == 1:
        raise DataError("the table has no rows below the column names", file=file, do="add one row per case")
    rows = [_row(file, number, header, line) for number, line in lines[1:]]
    absent = {name: "" for name in optional if name not in header}
    return [Row(row.file, row.number, absent | dict(row.cells)) for row in rows] if absent else rows


def left_empty(cell: str) -> bool:
    """Whether a cell joins several items by ';', of which one is empty."""
    return ";" in cell and not all(item.strip() for item in cell.split(";"))


def taken_and_missing(items: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
    """The images of a scan, and the numbers of the modalities that were not taken: those that are `MISSING`."""
    missing = tuple(number for number, item in enumerate(items) if item == MISSING)
    return [item for item in items if item != MISSING], missing


def convert(rows: Sequence[Row], function: Callable[[Row], Result]) -> list[Result]:
    """`function` of every row. What several rows refuse is told at once, so that they can be mended together."""
    results: list[Result] = []
    refused: list[DataError] = []
    for row in rows:
        try:
            results.append(function(row))
        except DataError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        more = f"\nand {len(refused) - _MOST_REFUSED} more" if len(refused) > _MOST_REFUSED else ""
        shown = "\n".join(map(str, refused[:_MOST_REFUSED]))
        raise DataError(f"{len(refused)} rows of the table are wrong\n{shown}{more}", file=rows[0].file)
    return results


def _read_lines(file: Path) -> list[tuple[int, list[str]]]:
    text = read_text(file, missing="there is no such table", do=_IMPORT, encoding_do=_SAVE)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, [cell(text.strip()) for text in line]) for line in reader]
    except csv.Error as error:
        raise DataError(
            f"the table cannot be read: {error}", file=f"{file}, row {reader.line_num}", code="unreadable"
        ) from error


def _header(file: Path, line: list[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    while not line[-1]:
        line = line[:-1]
    expected = ",".join(columns)
    if len(line) == 1 and any(sign in line[0] for sign in ";\t"):
        raise DataError(
            "the columns are not separated by commas",
            file=file,
            found=line[0],
            expected=expected,
            do=_SAVE,
        )
    known = (*columns, *optional)
    for name in line:
        if name not in known or line.count(name) > 1:
            what = "stands twice" if name in known else f"is unknown{did_you_mean(name, known)}"
            raise DataError(f"the column '{name}' {what}", file=f"{file}, row 1", expected=expected)
    if missing := [name for name in columns if name not in line]:
        raise DataError(
            f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            file=f"{file}, row 1",
            found=",".join(line),
            expected=expected,
            do="add the column; its cells may be empty where there is nothing to say",
        )
    return line


def _row(file: Path, number: int, header: list[str], line: list[str]) -> Row:
    do = "put a name with a comma in double quotes; empty cells keep their comma"
    return read_row(file, number, header, line, do)


def read_row(file: Path, number: int, header: Sequence[str], line: Sequence[str], do: str) -> Row:
    """One line of a table by the names of its columns.

    Errors
        DataError   it has another number of cells (then the message says what to `do`), or one that cannot be printed
    """
    if len(line) < len(header) or any(line[len(header) :]):
        raise DataError(
            f"the row has {len(line)} cells, but the table has {len(header)} columns",
            file=f"{file}, row {number}",
            found=ascii(",".join(line))[1:201],
            do=do,
        )
    row = Row(file, number, dict(zip(header, line, strict=False)))
    for column, text in row.cells.items():
        if not text.isprintable() or "\ufffd" in text:
            row.refuse(column, "the cell holds characters that cannot be printed", do="type the cell again")
    return row
