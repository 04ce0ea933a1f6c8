"""DICOM series and scans of other formats in one folder: each kind as its own importer finds it.

    <anything>/<slices of a series>        as `labelwise.importers.dicom`, with the label maps on the grids of series
    <anything>/<case>.nii.gz, ...          as `labelwise.importers.folders`, with all other label maps

Each kind is a data set. A file that holds the voxels of a series once more is that series, not another scan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.cohort.data_set import Modality
from labelwise.cohort.manifest import Manifest
from labelwise.errors import LabelwiseError, warn_about
from labelwise.formats import Layout, read_geometry, read_image
from labelwise.importers import dicom, folders
from labelwise.importers.listing import existing_folder

LOOKS_FOR = "DICOM series, and scans of other formats beside them"
logger = logging.getLogger("labelwise")


def matches(folder: Path) -> bool:
    """Whether there are both below a folder."""
    return folders.matches(folder) and dicom.matches(folder)


def scan(
    folder: Path | str,
    *,
    series: str | int | Sequence[str | int] = "auto",
    structures: str | Iterable[str] | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    modality: Modality | None = None,
    images: Path | str | None = None,
    labels: Path | str | None = None,
    group: str | None = None,
    layout: Layout | None = None,
    data_set: str = "dicom",
) -> tuple[Manifest, ...]:
    """A manifest of the DICOM series, and one of the other scans, if there are any.

    Parameters
        series, structures      of DICOM, as `labelwise.importers.dicom.scan`
        modality    ct, mr or other: of the other scans; DICOM series say it themselves
        classes, images, labels, group, layout      of the other scans, as `labelwise.importers.folders.scan`; the
                    values hold for label maps beside DICOM series, too
        data_set      name of the data set; that of the other scans ends in _files

    Errors
        ConfigError, DataError      as those importers. If DICOM alone cannot be used, it is passed over with a warning
    """
    folder = existing_folder(folder)
    other: dict[str, Any] = {
        "classes": classes, "modality": modality, "images": images, "labels": labels, "group": group,
        "layout": layout, "data_set": f"{data_set}_files",
    }  # fmt: skip
    try:
        found = dicom.find(folder, series=series, structures=structures, classes=classes, data_set=data_set)
    except LabelwiseError as error:
        if series != "auto":  # a question of the user, or an answer to him
            raise
        logger.warning("DICOM beside the scans is passed over: %s", error.what)
        return (folders.scan(folder, **other),)
    copies = _copies(folder, found)
    used = {case.labels for case in found.manifest.cases if case.labels}
    parts = [found.manifest]
    if set(found.scans) - copies:
        parts.append(folders.scan(folder, without=used | copies, **other))
    used = {case.labels for part in parts for case in part.cases if case.labels}
    dicom.report(folder, {file: why for file, why in found.left_out.items() if file not in used})
    return tuple(parts)


def _copies(folder: Path, found: dicom.Found) -> set[Path]:
    """The files that hold a series once more, as programs that convert DICOM leave them."""
    grids = {case.images[0]: read_geometry(case.images[0]) for case in found.manifest.cases}
    copies = []
    for file in found.scans:
        placed = read_geometry(file)
        if same := [path for path, grid in grids.items() if grid.matches(placed)]:
            voxels = read_image([file]).data
            if any(np.array_equal(read_image([path]).data, voxels) for path in same):
                copies.append(file)
    warn_about(
        "scans that hold a DICOM series once more are passed over",
        [file.relative_to(folder).as_posix() for file in copies],
    )
    return set(copies)
