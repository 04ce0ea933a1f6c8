"""`convert`: label files between NIfTI, 3D Slicer's segmentations, DICOM-SEG and RTSTRUCT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.formats import (
    LABEL_FORMATS,
    Layout,
    read_labels,
    segment_names,
    stem,
    value_names,
    write_labels,
)
from labelwise.types import BACKGROUND

__all__ = ["Conversion", "convert"]

_MOST_CLASSES = 65535


@dataclass(frozen=True)
class Conversion:
    """Which file was written, and what its labels are called."""

    file: Path
    classes: Mapping[int, str]  # label value -> name

    def to_text(self) -> str:
        """One line."""
        names = ", ".join(self.classes.values())
        return f"{self.file}: {names or 'labels without names'}"

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"file": str(self.file), "classes": {str(value): name for value, name in self.classes.items()}}


def convert(
    labels: Path | str,
    output: Path | str,
    *,
    like: Path | str | None = None,
    label_format: str | None = None,
    classes: Mapping[str, int] | None = None,
    binary: bool = False,
) -> Conversion:
    """Write a label file in another format, on the grid and in the orientation of its scan.

    Labels that are known by names (DICOM-SEG, RTSTRUCT, .seg.nrrd) get the values 1, 2, ... in the order of the file;
    where they overlap, the later one counts.

    Arguments
        labels      NIfTI, NRRD or MetaImage, DICOM-SEG, RTSTRUCT, or a folder with one mask for each organ
        output      the file, or a folder for ``NAME`` with the ending of the format
        like        the scan that the labels belong to: needed to read and to write DICOM
        label_format    nifti, nrrd, dicom-seg or rtstruct; default: by the end of `output`
        classes     name -> value in `labels`; default: the names that `predict` keeps in NIfTI files
        binary      DICOM-SEG of the type BINARY instead of LABELMAP

    Errors
        ConfigError     unknown format, `binary` of another than DICOM-SEG, no names where the format needs them, or
                        `output` is `labels`
        DataError       a damaged file; labels that do not lie on the grid of `like`, or have no name
        ResourceError   the file cannot be written
    """
    source, target = Path(labels), Path(output)
    if label_format is not None and label_format not in LABEL_FORMATS:
        raise ConfigError(
            f"unknown format '{label_format}'{did_you_mean(label_format, LABEL_FORMATS)}",
            expected=", ".join(LABEL_FORMATS),
        )
    if target.is_dir():
        name = stem(source).removesuffix(".dcm").removesuffix(".seg").removesuffix(".rtstruct")
        target /= f"{name}{LABEL_FORMATS[label_format or 'nifti']}"
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError("the result would replace the labels", file=target, do="choose another output")
    if not source.exists():
        raise DataError("there is no such file", file=source, do="correct its path")
    scan = None if like is None else Path(like)
    segments = segment_names(source)
    if segments and classes:
        raise ConfigError(
            "the file names its labels itself",
            file=source,
            found=", ".join(segments),
            do="leave out --classes",
        )
    names = (BACKGROUND, *segments) if segments else _by_value(classes) if classes else value_names(source)
    volume = read_labels(source, Layout(segments=segments), scan)
    write_labels(target, volume, like=scan, names=names, label_format=label_format, binary=binary)
    return Conversion(target, {value: name for value, name in enumerate(names) if value and name})


def _by_value(classes: Mapping[str, int]) -> tuple[str, ...]:
    """Names by label value; values between them are empty."""
    named: dict[int, str] = {0: BACKGROUND}
    for name, value in classes.items():
        if not 0 <= value <= _MOST_CLASSES or (value == 0) != (name == BACKGROUND):
            raise ConfigError(
                "a class cannot have this value", found=f"{name}={value}", expected=f"1..{_MOST_CLASSES}"
            )
        if named.setdefault(value, name) != name:
            raise ConfigError("two classes have one value", found=f"{named[value]}={value}, {name}={value}")
    return tuple(named.get(value, "") for value in range(max(named) + 1))
