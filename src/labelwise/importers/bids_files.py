"""Files of BIDS: the entities in their names, and the tables that say what label values mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from labelwise.cohort.text import read_text
from labelwise.errors import ConfigError, DataError
from labelwise.formats import stem
from labelwise.importers.listing import files_below
from labelwise.types import BACKGROUND

NIFTI = (".nii.gz", ".nii")
DERIVED = ("desc", "label", "seg", "atlas", "scale", "model", "subset", "hemi", "res", "space")


class BidsFile(NamedTuple):
    """A file whose name is made of entities: ``sub-01_run-2_T1w.nii.gz``."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def place(self) -> tuple[str, str]:
        """Subject and session."""
        return self.entities.get("sub", ""), self.entities.get("ses", "")

    @property
    def of_scan(self) -> dict[str, str]:
        """The entities that a scan and its segmentations share."""
        return {name: value for name, value in self.entities.items() if name not in DERIVED}


def _parsed(path: Path) -> BidsFile | None:
    *pairs, suffix = stem(path).split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return BidsFile(path, entities, suffix) if "sub" in entities and len(entities) == len(pairs) else None


def named_files(folder: Path) -> list[BidsFile]:
    """The NIfTI files below a folder that are named after BIDS, sorted by path; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [file for path in files_below(folder, NIFTI) if (file := _parsed(path)) is not None]


def table_of(file: BidsFile, top: Path) -> Path:
    """The nearest table above a label map whose entities are all in the name of the map; `top` is the last place.

    Errors
        ConfigError   there is none
    """
    folder = file.path.parent
    while True:
        for table in sorted(folder.glob("*dseg.tsv"), key=lambda table: (-len(table.name), table.name)):
            *pairs, suffix = table.stem.split("_")
            if suffix == "dseg" and all(
                file.entities.get(*pair.split("-", 1)[:1]) == pair.partition("-")[2] for pair in pairs
            ):
                return table
        if folder == top or folder == folder.parent:
            break
        folder = folder.parent
    raise ConfigError(
        "no table says what the label values mean",
        file=file.path,
        expected="dseg.tsv with the columns index and name, beside it or above",
        do="add the table, or state the classes: --classes liver=1,spleen=2",
    )


def read_table(table: Path) -> dict[int, str]:
    """Label value -> class name; 0 is the background if it has no row.

    Errors
        DataError   a column is missing, a row names no value or no class, or a value stands for two classes
    """
    lines = [
        line.split("\t")
        for line in read_text(table, missing="the table is missing").splitlines()
        if line.strip()
    ]
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    if "index" not in header or "name" not in header:
        raise DataError(
            "the table has no columns index and name", file=f"{table}, row 1", found=" ".join(header)
        )
    index, name = header.index("index"), header.index("name")
    values: dict[int, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line] + [""] * len(header)
        if not re.fullmatch(r"\d{1,9}", cells[index], re.ASCII) or not cells[name]:
            raise DataError(
                "the row names no value and class",
                file=f"{table}, row {number}",
                found=ascii("\t".join(line)[:200]),
                expected="an integer in the column 'index', a word in the column 'name'",
            )
        label = BACKGROUND if cells[name].lower() == BACKGROUND else cells[name]
        if values.setdefault(int(cells[index]), label) != label:
            raise DataError(
                "the value stands for two classes", file=f"{table}, row {number}", found=cells[index]
            )
    values.setdefault(0, BACKGROUND)
    return dict(sorted(values.items()))
