"""`show`: pictures of results, without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from labelwise.report.result import Structure, result_picture
from labelwise.run.convert import label_files, scan_of

__all__ = ["Pictures", "show"]

ENDING = ".png"


@dataclass(frozen=True)
class Pictures:
    """The pictures that were written, by the case they show."""

    files: Mapping[str, Path]

    def to_text(self) -> str:
        """One line for each."""
        return "\n".join(str(file) for file in self.files.values())

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"pictures": {case: str(file) for case, file in self.files.items()}}


def show(
    labels: Path | str,
    output: Path | str,
    *,
    image: Path | str | None = None,
    classes: Mapping[str, int] | None = None,
) -> Pictures:
    """Draw three planes, the structures in space, and their volumes, as a PNG for each case.

    Arguments
        labels      a label file in any format, a folder with a mask for each organ, or a folder of label files, such as
                    predictions
        output      a .png file; of a folder of label files a folder
        image       the scan that the labels belong to, needed by DICOM labels; or the folder of the scans. Without it
                    the structures are shown on black
        classes     name -> value in label files that do not name their values

    Errors
        ConfigError     `output` does not fit
        DataError       nothing to show, a damaged file, scan and labels on different grids, values without a name
    """
    source, target = Path(labels), Path(output)
    if not source.exists():
        raise DataError("there is no such file", file=source, do="correct its path", code="not-found")
    files = label_files(source)
    if not files and target.suffix.lower() != ENDING:
        raise ConfigError("a picture is a .png file", file=target, do=f"name it: -o {case_of(source)}.png")
    if files and (target.is_file() or target.suffix):
        raise ConfigError("pictures of several label files go into a folder", file=target, do="name a folder")
    scan = None if image is None else Path(image)
    jobs = (
        [(file, target / f"{case_of(file)}{ENDING}", scan_of(file, image)) for file in files]
        if files
        else [(source, target, scan)]
    )
    for file, picture, of in jobs:
        with naming(case_of(file), file):
            drawn = _picture(file, of, classes)
        with atomic_path(picture) as temporary:
            temporary.write_bytes(drawn)
    return Pictures({case_of(file): picture for file, picture, _ in jobs})


def _picture(file: Path, scan: Path | None, classes: Mapping[str, int] | None) -> bytes:
    segments = segment_names(file)
    named = dict(enumerate(segments, start=1)) if segments else value_names(file)
    if not named and classes:
        named = {value: name for name, value in classes.items()}
    if not named:
        raise DataError(
            "what the values of this label file mean is not known",
            file=file,
            do="state it: --classes liver=1,spleen=2",
        )
    volume = read_labels(file, Layout(segments=segments), scan)
    image = None if scan is None else read_image([scan])
    if image is not None:
        volume = placed_on(volume, Geometry(image.shape, image.affine))
    organs = {value: name for value, name in named.items() if value}
    colours = colours_of(organs, apart=True)
    structures = {value: Structure(name, colours[value]) for value, name in organs.items()}
    return result_picture(volume, structures, image, case_of(file))
