"""Public data sets and common folder layouts -> manifest; one file per layout, with `matches` and `scan`.

Other packages add theirs through the entry-point group `labelwise.importers`. Nothing is downloaded, and no file of the
user is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from labelwise.errors import DataError, warn_about
from labelwise.importers.listing import existing_folder
from labelwise.plugins import Parts

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


def _is_importer(part: Any) -> bool:
    taken = inspect.signature(part.scan).parameters
    return callable(part.matches) and isinstance(part.LOOKS_FOR, str) and "data_set" in taken


PARTS: Parts[ModuleType] = Parts(
    "importer",
    "labelwise.importers",
    IMPORTERS,
    "a module with matches(folder), scan(folder, *, data set='NAME', ...) and the sentence LOOKS_FOR",
    _is_importer,
)


def load(name: str) -> ModuleType:
    """The module of an importer, with `matches(folder)`, `scan(folder, **options) -> Manifest` and `LOOKS_FOR`.

    `scan` may give several manifests, of kinds of files that are data sets of their own.

    Errors
        ConfigError   there is no importer of that name, or it comes from a package that is broken
    """
    return PARTS.find(name)


def _asked_in_order() -> Iterator[tuple[str, ModuleType]]:
    """The importers in the order in which they are asked for a folder: those of other packages before the last."""
    *first, last = IMPORTERS
    yield from ((name, load(name)) for name in first)
    yield from PARTS.theirs().items()
    yield last, load(last)


def detect(folder: Path | str) -> str:
    """The name of the importer for a folder.

    Errors
        DataError   the folder is missing or empty, or no importer knows its layout
    """
    if Path(folder).is_file():
        return _detect_list(Path(folder))
    folder = existing_folder(folder)
    for name, importer in _asked_in_order():
        if _matches(name, importer, folder):
            return name
    raise DataError(
        "no importer knows the layout of this folder",
        file=folder,
        found=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]),
        expected="\n            ".join(f"{name}: {each.LOOKS_FOR}" for name, each in _asked_in_order()),
        do="name the folder that holds the data set, or arrange the files in one of these ways",
        code="unknown-format",
    )


def _matches(name: str, importer: ModuleType, folder: Path) -> bool:
    try:
        return bool(importer.matches(folder))
    except Exception as error:
        if name in IMPORTERS:
            raise
        warn_about(
            f"an importer of another package fails at this folder, and is passed over: {type(error).__name__}: {error}",
            [name],
        )
        return False


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
