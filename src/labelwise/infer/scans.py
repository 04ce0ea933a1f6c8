"""Which scans to predict: one file, a folder, or a list."""

from __future__ import annotations

import csv
import importlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labelwise.cohort.text import MISSING, NAMES, NO_NAME, left_empty
from labelwise.documents import cell as plain
from labelwise.documents import decode
from labelwise.errors import DataError, LabelwiseError, warn_about
from labelwise.formats import SUFFIXES, Layout, is_dicom, stem, suffix
from labelwise.formats.label_maps import LABEL_FOLDERS, label_maps_among
from labelwise.formats.stored import NOT_READ, SEGMENTATION, is_unread

_DICOM_MODALITY = {"ct": "CT", "mr": "MR"}  # rule of the plan -> what DICOM calls such series
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: CASE_0000.nii.gz is the first channel of CASE


@dataclass(frozen=True)
class Scan:
    """One scan to predict. Holds no pixels."""

    id: str  # name of the result, without suffix
    images: tuple[Path, ...]  # one file per channel that was taken
    intensity: str  # a key of the plan's intensity rules
    layout: Layout = field(default_factory=Layout)
    missing: tuple[int, ...] = ()  # channels that were not taken, counted from 0: `images` leaves them out

    @property
    def given(self) -> tuple[Path | None, ...]:
        """One for each channel, as `as_image` takes them: None where it is missing."""
        files = iter(self.images)
        channels = range(len(self.images) + len(self.missing))
        return tuple(None if number in self.missing else next(files) for number in channels)

    def __post_init__(self) -> None:
        if not self.images:
            raise DataError("a scan needs at least one image", case=self.id)
        if self.id in ("", ".", "..") or re.search(r"[/\\:]", self.id):
            raise DataError(
                "the id of a scan becomes a file name", case=self.id, expected="no / \\ or :", do="rename it"
            )


def find_scans(
    path: Path | str,
    *,
    intensity: str,
    channels: int = 1,
    layout: Layout | None = None,
    results: Path | None = None,
) -> list[Scan]:
    """The scans that a user means by a path, sorted by id.

    A file         one scan, named like the file
    A folder       its image files; ``CASE_0000 ... CASE_000N`` are the N channels of CASE (nnU-Net). Beside them, or
                   alone, DICOM: of each study below the folder the series with most slices, named like its folder (see
                   `labelwise.formats.dicom.image.choose`). With neither, the image files of its sub-folders, named
                   after these. Label maps are no scans; they, and what else is passed over, are reported.
    A DICOM file   stands for its series
    A .txt list    one scan per line, its channels separated by ``;``, ``-`` for one that is missing; lines starting
                   with ``#`` are comments
    A .csv list    the column ``images`` (channels separated by ``;``), and ``id`` if there is one; other
                   columns are passed over, so a manifest will do

    Paths in a list are relative to the list. Files in the folder `results` are no scans.

    Errors
        DataError   nothing there, wrong number of channels, or two scans with one id
    """
    path = Path(path)
    if not path.exists():
        raise DataError("there is no such file or folder", file=path, do="correct its path")
    if path.is_dir():
        named = _in_folder(path, channels)
        named += _dicom_beside(path, intensity, channels) if named else _in_dicom(path, intensity)
        named = named or _in_subfolders(path, channels, results)
        _report_passed_over(path, named)
    elif path.suffix.lower() in (".txt", ".csv"):
        named = list(_in_list(path))
    elif suffix(path) or is_dicom(path):
        named = [(_id_of(path), (path,))]
    else:
        raise DataError(
            "this is neither a scan nor a list of scans",
            file=path,
            expected=f"a folder, a .txt or .csv list, a DICOM file, or a file with {' '.join(SUFFIXES)}",
            do="convert the scan to NIfTI",
        )
    if not named:
        raise DataError(
            "there is no scan here",
            file=path,
            expected=f"files with {' '.join(SUFFIXES)}, or DICOM series",
            do="check the path",
        )
    _check_channels(named, channels)
    _check_unique(named)
    scans = []
    for id, images in sorted(named):
        missing = tuple(number for number, image in enumerate(images) if image == _NOT_TAKEN)
        taken = tuple(image for image in images if image != _NOT_TAKEN)
        scans.append(Scan(id, taken, intensity, layout or Layout(), missing))
    return scans


_Named = tuple[str, tuple[Path, ...]]  # id, images; _NOT_TAKEN for a channel that is missing
_NOT_TAKEN = Path(MISSING)


def _is_scan(file: Path) -> bool:
    return suffix(file) not in ("", SEGMENTATION) and not file.name.startswith(".") and not file.is_dir()


def _in_folder(folder: Path, channels: int) -> list[_Named]:
    files = [file for file in folder.iterdir() if _is_scan(file)]
    labels = label_maps_among(files)
    files = [file for file in files if file not in labels]
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in files:
        if match := _CHANNEL.fullmatch(stem(file)):
            numbered[match[1]][int(match[2])] = file
    # A number is only a channel if the numbers fit: patient_0001 ... patient_0020 are twenty scans.
    groups = {
        case: tuple(parts[channel] for channel in range(channels))
        for case, parts in numbered.items()
        if sorted(parts) == list(range(channels))
    }
    grouped = {file for group in groups.values() for file in group}
    return [*groups.items(), *((stem(file), (file,)) for file in files if file not in grouped)]


def _in_subfolders(folder: Path, channels: int, results: Path | None) -> list[_Named]:
    """The scans of a folder for each patient: named after it, and after the file where there are several."""
    named: list[_Named] = []
    for place in sorted({file.parent for file in folder.rglob("*") if _is_scan(file)}):
        if results is not None and place.absolute().is_relative_to(results.absolute()):
            continue
        if any(part.lower() in LABEL_FOLDERS for part in place.relative_to(folder).parts):
            continue
        found = _in_folder(place, channels)
        prefix = "_".join(place.relative_to(folder).parts)
        named += [(prefix if len(found) == 1 else f"{prefix}_{id}", images) for id, images in sorted(found)]
    return named


def _report_passed_over(folder: Path, named: Sequence[_Named]) -> None:
    """Name what else lies there: nothing vanishes silently."""
    taken = {image.absolute() for _, images in named for image in images}
    folder = folder.absolute()
    rest = [file for file in sorted(folder.iterdir()) if file not in taken and not file.name.startswith(".")]
    places = []
    if any(suffix(image) for image in taken):
        places = [entry for entry in rest if entry.is_dir() and _has_scans(entry, taken)]
        used = any(image == folder or (image.parent == folder and not suffix(image)) for image in taken)
        loose = not used and any(is_dicom(file) for file in rest if file.is_file() and not suffix(file))
        names = [f"{place.name}/" for place in places] + (["DICOM files"] if loose else [])
        warn_about("folders and DICOM files beside the scans are passed over", names)
    others = [
        file
        for file in sorted(folder.rglob("*"))
        if file not in taken and not any(file.is_relative_to(place) for place in places)
    ]
    warn_about(
        "label maps are no scans, and are passed over",
        [_below(file, folder) for file in others if _is_scan(file) or suffix(file) == SEGMENTATION],
    )
    warn_about(NOT_READ, [_below(file, folder) for file in others if is_unread(file)])


def _below(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _has_scans(folder: Path, taken: Collection[Path]) -> bool:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    inside = any(image.is_relative_to(folder) for image in taken)
    return not inside and any(_is_scan(file) or (not suffix(file) and is_dicom(file)) for file in files)


def _dicom_beside(folder: Path, intensity: str, channels: int) -> list[_Named]:
    """DICOM series beside other scans: used if they are of the model's kind, else passed over, which is reported."""
    if channels > 1:  # a series is one channel
        return []
    try:
        return _in_dicom(folder, intensity)
    except LabelwiseError as error:  # of another modality, or the extra is not installed
        warn_about("DICOM beside the scans is passed over", [error.what])
        return []


def _in_dicom(folder: Path, intensity: str) -> list[_Named]:
    """Of each study below a folder the series with most slices; all that have as many, if several do."""
    if not any(is_dicom(file) for file in folder.rglob("*") if not suffix(file)):
        return []
    dicom = importlib.import_module("labelwise.formats.dicom.image")  # an extra
    found = dicom.series_in(folder)
    studies = defaultdict(list)
    for series in found:
        if series.modality == _DICOM_MODALITY.get(intensity, series.modality):
            studies[series.patient, series.study or str(series.files[0].parent)].append(series)
    places: list[Path] = []
    for study in studies.values():
        # A study without a series that can be read has its first one, so that its failure is told.
        best = dicom.choose(study) or [series for series in study if not series.passed_over][:1]
        places += [dicom.path_of(series, found) for series in best]
    if found and not places:
        listing = dicom.listing(found, folder.absolute())
        raise DataError(f"no DICOM series here is a scan of modality {intensity}", file=folder, found=listing)
    return _named_by_folder(places, folder.absolute())


def _named_by_folder(places: Sequence[Path], root: Path) -> list[_Named]:
    """Series by the names of their folders below `root`; numbered where a folder holds several."""
    folders = [place if place.is_dir() else place.parent for place in places]
    named: list[_Named] = []
    for number, (place, folder) in enumerate(zip(places, folders, strict=True)):
        name = "_".join(folder.relative_to(root).parts) or root.name
        count = f"_{folders[: number + 1].count(folder)}" if folders.count(folder) > 1 else ""
        named.append((name + count, (place,)))
    return named


def _id_of(first: Path) -> str:
    if not suffix(first) and first.suffix.lower() in (".dcm", ".ima"):
        return first.stem
    match = _CHANNEL.fullmatch(stem(first))
    return match[1] if match and int(match[2]) == 0 else stem(first)


def _in_list(file: Path) -> Iterator[_Named]:
    try:
        text = decode(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the list of scans cannot be read: {error}", file=file, expected="UTF-8 text", code="unreadable"
        ) from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows: Iterable[tuple[str, str]] = (("", line) for line in lines)
    if file.suffix.lower() == ".csv":
        table = csv.DictReader(lines)
        if "images" not in (table.fieldnames or ()):
            raise DataError(
                "the list has no column 'images'", file=file, found=", ".join(table.fieldnames or ())
            )
        rows = ((plain(row.get("id") or ""), plain(row["images"] or "")) for row in table)
    for id, cell in rows:
        if left_empty(cell):
            raise DataError(NO_NAME, case=id.strip() or None, file=file, found=cell, expected=NAMES)
        parts = [part.strip() for part in cell.split(";") if part.strip()]
        images = tuple(_NOT_TAKEN if part == MISSING else file.parent / part for part in parts)
        first = next((image for image in images if image != _NOT_TAKEN), None)
        if first is None:
            raise DataError("a row names no image", file=file, found=id or cell)
        yield id.strip() or _id_of(first), images


def _check_channels(named: Sequence[_Named], channels: int) -> None:
    wrong = [(id, images) for id, images in named if len(images) != channels]
    if wrong:
        id, images = wrong[0]
        raise DataError(
            "the model needs another number of images per scan",
            case=id,
            file=images[0],
            found=f"{len(images)} ({len(wrong)} of {len(named)} scans do not fit)",
            expected=channels,
            do="name them CASE_0000, CASE_0001, ... or write a list with ; between the images of a scan",
        )


def _check_unique(named: Sequence[_Named]) -> None:
    seen: dict[str, Path] = {}
    for id, images in named:
        # Compared without case: on Windows and macOS, Liver and liver are one file.
        other = seen.setdefault(id.lower(), images[0])
        if other is not images[0]:
            raise DataError(
                "two scans have the same id, so they would share one result",
                case=id,
                file=f"{other} and {images[0]}",
                do="rename one, or write a .csv list with the columns id and images",
            )
