"""`convert`: label files between NIfTI, 3D Slicer's segmentations, DICOM-SEG and RTSTRUCT, and to meshes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelwise import anatomy
from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.formats import (
    LABEL_FORMATS,
    Layout,
    Tally,
    case_of,
    is_dicom,
    placed_on,
    read_geometry,
    read_labels,
    segment_names,
    stem,
    suffix,
    value_names,
    write_labels,
)
from labelwise.formats.layout import Overlap
from labelwise.formats.mesh import MESH_FORMATS, write_meshes
from labelwise.types import BACKGROUND, LabelSpace

__all__ = ["Conversion", "Conversions", "Surfaces", "convert"]

logger = logging.getLogger("labelwise")

_MOST_CLASSES = 65535
_DICOM_ENDINGS = (".dcm",)
_FORMATS = {**LABEL_FORMATS, **MESH_FORMATS}


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


@dataclass(frozen=True)
class Surfaces:
    """Which meshes were written."""

    files: Mapping[str, Path]  # structure -> its file: of GLB the same for all
    empty: tuple[str, ...]  # structures without a voxel, which have no mesh

    def to_text(self) -> str:
        """One line for each file, and one for what has none."""
        by_file: dict[Path, list[str]] = {}
        for name, file in self.files.items():
            by_file.setdefault(file, []).append(name)
        lines = [f"{file}: {', '.join(names)}" for file, names in by_file.items()]
        return "\n".join(
            [*lines, *([f"without a voxel, so without a mesh: {', '.join(self.empty)}"] * bool(self.empty))]
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"meshes": {name: str(file) for name, file in self.files.items()}, "empty": list(self.empty)}


@dataclass(frozen=True)
class Conversions:
    """What became of the files of a folder."""

    files: tuple[Conversion | Surfaces, ...]

    def to_text(self) -> str:
        """One line for each file."""
        return "\n".join(each.to_text() for each in self.files)

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"files": [each.facts() for each in self.files]}


def convert(
    labels: Path | str,
    output: Path | str,
    *,
    like: Path | str | None = None,
    label_format: str | None = None,
    classes: Mapping[str, int] | None = None,
    overlap: Overlap = "later",
    binary: bool = False,
    region: Mapping[str, Sequence[str]] | None = None,
) -> Conversion | Surfaces | Conversions:
    """Write a label file in another format, on the grid and in the orientation of its scan, or as surfaces.

    Labels that are known by names (DICOM-SEG, RTSTRUCT, .seg.nrrd) get the values 1, 2, ... in the order of the file.
    Where they overlap the later one counts, or the smaller one; what each loses is a warning. Labels on a part of the
    grid of the scan, as Slicer cuts them, are put in their place. Surfaces are closed and in mm; a structure without a
    voxel has none, which the result says.

    Arguments
        labels      NIfTI, NRRD or MetaImage, DICOM-SEG, RTSTRUCT, a folder with one mask for each structure, or a
                    folder of label files, such as predictions, which are converted one by one
        output      the file, or a folder for ``NAME`` with the ending of the format; of STL a folder that gets a file
                    for each structure, or a file if there is one only
        like        the scan that the labels belong to: needed to read and to write DICOM. Of a folder of label files
                    the folder in which the scans of the same names lie
        label_format    nifti, nrrd, dicom-seg, rtstruct, stl or glb; default: by the end of `output`
        classes     name -> value in `labels`; default: the names in the file, or in the record beside it
        overlap     later or smaller: which structure counts where two overlap
        binary      DICOM-SEG of the type BINARY instead of LABELMAP
        region      name -> the classes and regions of which it consists: further segments of DICOM-SEG (BINARY), which
                    overlap the classes

    Errors
        ConfigError     unknown format, `binary` of another than DICOM-SEG, no names where the format needs them,
                        `output` is `labels`, or `classes` contradict the names in the file
        DataError       a damaged file; labels that do not lie on the grid of `like`, or have no name; a structure
                        that others cover completely; meshes of a map without a voxel
        ResourceError   the file cannot be written; an extra is not installed
    """
    source, target = Path(labels), Path(output)
    if label_format is not None and label_format not in _FORMATS:
        raise ConfigError(
            f"unknown format '{label_format}'{did_you_mean(label_format, _FORMATS)}",
            expected=", ".join(_FORMATS),
            code="unknown-name",
        )
    if overlap not in ("later", "smaller"):
        raise ConfigError(
            f"unknown choice '{overlap}' for overlaps", expected="later or smaller", code="unknown-name"
        )
    if not source.exists():
        raise DataError("there is no such file", file=source, do="correct its path", code="not-found")
    job = partial(_one, classes=classes, overlap=overlap, binary=binary, region=region or {})
    files = label_files(source, classes, like)
    if not files:
        scan = None if like is None else Path(like)
        return job(source, _target(source, target, label_format), scan, label_format)
    if target.is_file() or _named_like_a_file(target):
        raise ConfigError(
            "a folder of label files is converted to a folder",
            file=target,
            found=f"{len(files)} label files in {source}",
            do="name a folder for the results, and the format by --format",
        )
    pairs = [(file, scan_of(file, like)) for file in files]  # all of them, before anything is written
    kind = label_format or "nifti"
    return Conversions(
        tuple(job(file, _target(file, target, kind, of_folder=True), scan, kind) for file, scan in pairs)
    )


def _one(
    source: Path,
    target: Path,
    scan: Path | None,
    label_format: str | None,
    *,
    classes: Mapping[str, int] | None,
    overlap: Overlap,
    binary: bool,
    region: Mapping[str, Sequence[str]],
) -> Conversion | Surfaces:
    if target.exists() and target.samefile(source):
        raise ConfigError(
            "the result would replace the labels",
            file=target,
            do="choose another output",
            code="would-overwrite",
        )
    segments = segment_names(source)
    named = {} if segments else value_names(source)
    if segments and classes:
        raise ConfigError(
            "the file names its labels itself",
            file=source,
            found=", ".join(segments),
            do="leave out --classes",
        )
    names = (BACKGROUND, *segments) if segments else _by_value(classes) if classes else _in_a_row(named)
    if classes:
        check_agreement(source, named, classes)
    regions = _region_values(names, region)
    tally = Tally()
    volume = read_labels(source, Layout(segments=segments, overlap=overlap), scan, tally)
    _report(source, dict(enumerate(names)), tally)
    if (mesh_format := _mesh_format(target, label_format)) is not None:
        if binary or regions:
            raise ConfigError(
                "BINARY and regions are of DICOM-SEG", file=target, found=mesh_format, expected="dicom-seg"
            )
        return Surfaces(*write_meshes(target, volume, names, mesh_format))
    if scan is not None:
        volume = placed_on(volume, read_geometry(scan))
    write_labels(
        target, volume, like=scan, names=names, label_format=label_format, binary=binary, regions=regions
    )
    written = dict(enumerate((*names, *regions)))
    return Conversion(target, {value: name for value, name in written.items() if value and name})


def _report(source: Path, names: Mapping[int, str], tally: Tally) -> None:
    """Say what structures lost to others.

    Errors
        DataError   one lost everything
    """
    for loss in tally.losses(names):
        logger.warning("%s: %s", source.name, loss)
    if hidden := [names[value] for value in sorted(tally.drawn) if not tally.left(value)]:
        raise DataError(
            f"'{hidden[0]}' lies wholly beneath other structures, and nothing of it would be left",
            file=source,
            found="; ".join(tally.losses(names)),
            do="let the smaller structure count where two overlap: --overlap smaller",
            code="structure-hidden",
        )


# files


def label_files(
    source: Path, classes: Mapping[str, int] | None = None, like: Path | str | None = None
) -> list[Path]:
    """The label files in a folder, if each is one of a scan; none for a file, and for masks of structures of one scan.

    Files whose values `classes` names are label maps: masks are named by their files. `like` is the scan of all, or the
    folder of their scans.

    Errors
        DataError   masks that could be of one structure in several scans, by their names
    """
    if not source.is_dir():
        return []
    there = [file for file in sorted(source.iterdir()) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in there if suffix(file) or file.name.lower().endswith(_DICOM_ENDINGS)]
    if classes or any(_is_of_a_scan(file) for file in files):
        return files
    _refuse_scans_as_structures(source, one_scan=like is not None and _is_a_scan(Path(like)))
    return []


def _refuse_scans_as_structures(folder: Path, one_scan: bool) -> None:
    """Masks are named after structures: where their names are those of patients, structures would be invented."""
    found = segment_names(folder)
    strange = [name for name in found if anatomy.find(name) is None]
    alike: dict[str, list[str]] = {}
    for name in strange:
        alike.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    several = next((names for names in alike.values() if len(names) > 1), [])
    bare = [re.sub(r"^[\d\W_]+|[\d\W_]+$", "", name) for name in strange]  # 1_Liver is a liver, too
    if len(found) > 1 and len(strange) == len(found) and not (one_scan or any(map(anatomy.find, bare))):
        several = several or strange
    if several:
        raise DataError(
            "are these masks of one structure in several scans? No name tells",
            file=folder,
            found=", ".join(several[:5]),
            expected="masks of one scan, each named after its structure: liver.nii.gz, spleen.nii.gz",
            do="of several scans: state what their values mean, as in --classes liver=1, and each is taken by itself; "
            "of one scan: name it by --like (`show`: --image), and structures by more than a number",
        )


def _is_a_scan(path: Path) -> bool:
    """Whether a path is one scan, and not a folder of scans."""
    try:
        return bool(read_geometry(path))
    except DataError:
        return False


def _is_of_a_scan(file: Path) -> bool:
    """Whether a label file says by itself what its values mean, which masks of single structures do not."""
    if not suffix(file):
        return is_dicom(file)
    return bool(value_names(file) or segment_names(file))


def scan_of(file: Path, like: Path | str | None) -> Path | None:
    if like is None:
        return None
    folder, case = Path(like), case_of(file)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [each for each in entries if case in (stem(each), stem(each).removesuffix("_0000"))]
    if len(found) != 1:
        raise DataError(
            "there is no scan of this name" if not found else "there are several scans of this name",
            case=case,
            file=folder,
            found=", ".join(each.name for each in found or entries[:5]) or "nothing",
            do="name the folder in which the scans lie, one for each label file, by --like",
        )
    return found[0]


def _target(source: Path, target: Path, label_format: str | None, *, of_folder: bool = False) -> Path:
    """What is written: a file, or, of STL, a folder; each of a folder of label files has its own."""
    case = case_of(source)
    if label_format == "stl":
        return target / case if of_folder else target
    named = target / f"{case}{_FORMATS[label_format or 'nifti']}"
    return named if of_folder or target.is_dir() else target


def _mesh_format(target: Path, label_format: str | None) -> str | None:
    """stl or glb; None if labels are written.

    Errors
        ConfigError     the name of the file says another format
    """
    by_name = {ending: name for name, ending in MESH_FORMATS.items()}.get(target.suffix.lower())
    wanted = label_format if label_format in MESH_FORMATS else None
    is_folder = wanted == "stl" and not _named_like_a_file(target)
    if label_format in (None, by_name) or (by_name is None and (wanted is None or is_folder)):
        return wanted or by_name
    raise ConfigError(
        "the name of the file does not fit the format",
        file=target,
        expected=f"a name ending in {_FORMATS[label_format or 'glb']}",
        code="unknown-format",
    )


def _named_like_a_file(target: Path) -> bool:
    endings = (*_DICOM_ENDINGS, *MESH_FORMATS.values())
    return bool(suffix(target)) or target.name.lower().endswith(endings)


# names


def _region_values(names: Sequence[str], region: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Region -> the values of its classes, of class names by value.

    Errors
        ConfigError     an unknown class; a region holds itself, or has the name of a class
    """
    if not region:
        return {}
    classes = [name for name in names if name and name != BACKGROUND]
    space = LabelSpace((BACKGROUND, *classes), tuple((name, tuple(parts)) for name, parts in region.items()))
    return {name: sorted(map(names.index, space.classes_of(name))) for name in region}


def check_agreement(source: Path, named: Mapping[int, str], classes: Mapping[str, int]) -> None:
    """Refuse classes that say something else than the file."""
    for name, value in classes.items():
        if value in named and not anatomy.same(named[value], name):
            raise ConfigError(
                "--classes contradict the names in the file",
                file=source,
                found=f"value {value} is '{named[value]}' by the file, '{name}' by --classes",
                do="leave out --classes, or correct them",
            )


def _in_a_row(named: Mapping[int, str]) -> tuple[str, ...]:
    """Names by label value; values between them are empty."""
    return tuple({0: BACKGROUND, **named}.get(value, "") for value in range(max(named) + 1)) if named else ()


def _by_value(classes: Mapping[str, int]) -> tuple[str, ...]:
    """The same, from class name -> value."""
    named: dict[int, str] = {0: BACKGROUND}
    for name, value in classes.items():
        if not 0 <= value <= _MOST_CLASSES or (value == 0) != (name == BACKGROUND):
            raise ConfigError(
                "a class cannot have this value", found=f"{name}={value}", expected=f"1..{_MOST_CLASSES}"
            )
        if named.setdefault(value, name) != name:
            raise ConfigError("two classes have one value", found=f"{named[value]}={value}, {name}={value}")
    return _in_a_row(named)
