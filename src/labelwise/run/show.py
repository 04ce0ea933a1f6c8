"""`show`: results to look at, without a reference: a picture for each case, or one page for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.anatomy import colours_of
from labelwise.atomic import atomic_path
from labelwise.errors import ConfigError, DataError, naming
from labelwise.formats import (
    Geometry,
    Layout,
    case_of,
    placed_on,
    read_image,
    read_labels,
    segment_names,
    value_names,
)
from labelwise.formats.stored import tells_sides
from labelwise.infer.record import warnings_of
from labelwise.report.result import (
    Result,
    Structure,
    millilitres,
    ready_result,
    result_panels,
    result_picture,
)
from labelwise.report.result_page import FoundCase, write_result_page
from labelwise.report.viewer import ViewerCase, result_case
from labelwise.run.convert import check_agreement, label_files, scan_of
from labelwise.types import Volume

__all__ = ["Pictures", "show"]

PICTURE, PAGE = ".png", ".html"
_MOST_ON_A_PAGE = 40  # cases
_MOST_IN_THE_VIEWER = 12


@dataclass(frozen=True)
class Pictures:
    """What was written, by the case it shows, and what was found there."""

    files: Mapping[str, Path]  # of a page the same for all
    volumes_ml: Mapping[str, Mapping[str, float]]  # case -> structure -> volume, 0 without a voxel

    def to_text(self) -> str:
        """One line for each case, and the page at the end."""
        files = set(self.files.values())
        lines = [
            (f"{case}: " if len(files) < len(self.files) else f"{self.files[case]}: ") + _found(volumes)
            for case, volumes in self.volumes_ml.items()
        ]
        return "\n".join([*lines, *map(str, files)] if len(files) < len(self.files) else lines)

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        volumes = {case: dict(found) for case, found in self.volumes_ml.items()}
        return {"pictures": {case: str(file) for case, file in self.files.items()}, "volumes_ml": volumes}


def _found(volumes: Mapping[str, float]) -> str:
    there = ", ".join(f"{name} {millilitres(volume)}" for name, volume in volumes.items() if volume)
    absent = ", ".join(name for name, volume in volumes.items() if not volume)
    return there + (f"; without a voxel: {absent}" if absent else "")


@dataclass(frozen=True)
class _Case:
    """What is drawn of a label file."""

    id: str
    result: Result
    labels: Volume
    image: Volume | None
    warnings: list[str]


def show(
    labels: Path | str,
    output: Path | str,
    *,
    image: Path | str | None = None,
    classes: Mapping[str, int] | None = None,
) -> Pictures:
    """Draw three planes, the structures in space, and their volumes: a PNG for each case, or a page for all.

    A page (.html) has the scans inside, to be scrolled through and turned in space, and what `predict` said of them.

    Arguments
        labels      a label file in any format, a folder with a mask for each structure, or a folder of label files,
                    such as predictions
        output      a .png or .html file; of a folder of label files an .html file, or a folder for pictures
        image       the scan that the labels belong to, needed by DICOM labels; or the folder of the scans. Without it
                    the structures are shown on black
        classes     name -> value in label files that do not name their values

    Errors
        ConfigError     `output` does not fit; too many cases for a page; `classes` contradict the names in the file
        DataError       nothing to show, a damaged file, scan and labels on different grids, values without a name
    """
    source, target = Path(labels), Path(output)
    if not source.exists():
        raise DataError("there is no such file", file=source, do="correct its path", code="not-found")
    files = label_files(source, classes, image)
    is_page = target.suffix.lower() == PAGE
    if not files and not is_page and target.suffix.lower() != PICTURE:
        raise ConfigError(
            "a result is shown as a .png or .html file", file=target, do=f"name it: -o {case_of(source)}.png"
        )
    if files and not is_page and (target.is_file() or target.suffix):
        raise ConfigError(
            "several label files are shown in a folder of pictures, or on a page",
            file=target,
            do="name a folder, or an .html file",
        )
    scans = {file: scan_of(file, image) for file in files} or {source: None if image is None else Path(image)}
    if is_page:
        return _write_page(target, scans, classes)
    written, volumes = {}, {}
    for file, scan in scans.items():
        with naming(case_of(file), file):
            case = _read(file, scan, classes)
            drawn = result_picture(case.result, case.id)
        picture = target / f"{case.id}{PICTURE}" if files else target
        with atomic_path(picture) as temporary:
            temporary.write_bytes(drawn)
        written[case.id], volumes[case.id] = picture, _volumes(case.result)
    return Pictures(written, volumes)


def _write_page(
    target: Path, scans: Mapping[Path, Path | None], classes: Mapping[str, int] | None
) -> Pictures:
    if len(scans) > _MOST_ON_A_PAGE:
        raise ConfigError(
            "too many cases for one page",
            file=target,
            found=len(scans),
            expected=f"at most {_MOST_ON_A_PAGE}",
            do="name a folder for pictures, one of each case",
        )
    found: list[FoundCase] = []
    viewer: list[ViewerCase] = []
    volumes, oriented = {}, True
    for file, scan in scans.items():
        with naming(case_of(file), file):
            case = _read(file, scan, classes)
            found.append(_found_case(case))
            if len(viewer) < _MOST_IN_THE_VIEWER:
                viewer.append(_viewer_case(case, min(len(scans), _MOST_IN_THE_VIEWER)))
        oriented = oriented and case.result.oriented
        volumes[case.id] = _volumes(case.result)
    title = found[0].case if len(found) == 1 else f"{len(found)} results"
    write_result_page(target, title=title, cases=found, viewer=viewer, oriented=oriented)
    return Pictures(dict.fromkeys(volumes, target), volumes)


def _read(file: Path, scan: Path | None, classes: Mapping[str, int] | None) -> _Case:
    segments = segment_names(file)
    named = dict(enumerate(segments, start=1)) if segments else value_names(file)
    if classes:
        check_agreement(file, named, classes)
        named = named or {value: name for name, value in classes.items()}
    if not named:
        raise DataError(
            "what the values of this label file mean is not known",
            file=file,
            do="state it: --classes liver=1,spleen=2",
        )
    labels = read_labels(file, Layout(segments=segments), scan)
    image = None if scan is None else read_image([scan])
    if image is not None:
        labels = placed_on(labels, Geometry(image.shape, image.affine))
    names = {value: name for value, name in named.items() if value}
    colours = colours_of(names, apart=True)
    structures = {value: Structure(name, colours[value]) for value, name in names.items()}
    oriented = tells_sides(*filter(None, (file, scan)))
    result = ready_result(labels, structures, image, oriented=oriented)
    return _Case(case_of(file), result, labels, image, warnings_of(file))


def _volumes(result: Result) -> dict[str, float]:
    return {found.name: result.volumes_ml[value] for value, found in result.structures.items()}


def _found_case(case: _Case) -> FoundCase:
    result = case.result
    rows = [
        (found.name, "#" + bytes(found.colour).hex(), millilitres(result.volumes_ml[value]))
        for value, found in result.shown.items()
    ]
    return FoundCase(case.id, result_panels(result, case.id), rows, result.absent, case.warnings)


def _viewer_case(case: _Case, share: int) -> ViewerCase:
    black = Volume(np.zeros((1, *case.labels.shape), np.float32), case.labels.affine)
    grey = black if case.image is None else Volume(case.result.grey[None], case.image.affine)
    return result_case(
        case.id, grey, case.result.labels, case.result.structures, window=(0.0, 1.0), share=share
    )
