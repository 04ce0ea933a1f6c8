"""Public data sets and common folder layouts -> manifest; one file per layout, with `matches` and `scan`.

Nothing is downloaded, and no file of the user is changed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.importers.listing import existing_folder

IMPORTERS: Mapping[str, str] = {
    "lits": "labelwise.importers.lits",
    "msd": "labelwise.importers.msd",  # before nnunet, which reads its dataset.json too
    "kits": "labelwise.importers.kits",
    "nih_pancreas": "labelwise.importers.nih_pancreas",
    "amos22": "labelwise.importers.amos22",
    "word": "labelwise.importers.word",
    "btcv": "labelwise.importers.btcv",
    "flare22": "labelwise.importers.flare22",
    "abdomenct1k": "labelwise.importers.abdomenct1k",
    "totalsegmentator": "labelwise.importers.totalsegmentator",
    "bids": "labelwise.importers.bids",
    "nnunet": "labelwise.importers.nnunet",
    "la2018": "labelwise.importers.la2018",
    "acdc": "labelwise.importers.acdc",
    "decathlon": "labelwise.importers.decathlon",
    "csv": "labelwise.importers.table",
    "mixed": "labelwise.importers.mixed",
    "dicom": "labelwise.importers.dicom",
    "folders": "labelwise.importers.folders",  # last: it accepts any folder with scans
}


def load(name: str) -> ModuleType:
    """The module of an importer, with `matches(folder)`, `scan(folder, **options) -> Manifest` and `LOOKS_FOR`.

    `scan` may give several manifests, of kinds of files that are data sets of their own.

    Errors
        ConfigError   there is no importer of that name
    """
    if name not in IMPORTERS:
        raise ConfigError(
            f"unknown importer '{name}'{did_you_mean(name, IMPORTERS)}",
            expected=", ".join(IMPORTERS),
            code="unknown-name",
        )
    return importlib.import_module(IMPORTERS[name])


def detect(folder: Path | str) -> str:
    """The name of the importer for a folder.

    Errors
        DataError   the folder is missing or empty, or no importer knows its layout
    """
    if Path(folder).is_file():
        return _detect_list(Path(folder))
    folder = existing_folder(folder)
    for name in IMPORTERS:
        if load(name).matches(folder):
            return name
    raise DataError(
        "no importer knows the layout of this folder",
        file=folder,
        found=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]),
        expected="\n            ".join(f"{name}: {load(name).LOOKS_FOR}" for name in IMPORTERS),
        do="name the folder that holds the data set, or arrange the files in one of these ways",
        code="unknown-format",
    )


def _detect_list(file: Path) -> str:
    """The importer of a file that lists scans."""
    for name in ("decathlon", "csv"):
        if load(name).matches(file):
            return name
    raise DataError(
        "this file is no list of scans",
        file=file,
        expected=f"{load('decathlon').LOOKS_FOR}, or {load('csv').LOOKS_FOR}",
        do="name the folder that holds the data set",
    )
