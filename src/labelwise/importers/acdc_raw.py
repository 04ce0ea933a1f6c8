"""The raw files of ACDC: frames of a cine MR, their labels, and which of them is which phase."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labelwise.cohort.text import read_text
from labelwise.errors import DataError, warn_about
from labelwise.formats import stem, suffix
from labelwise.importers.listing import files_below
from labelwise.importers.paired import Pairs

NAME = re.compile(r"((patient\d{3})_frame\d{2})(_gt)?")
INFO = "Info.cfg"
PHASES = ("ed", "es")


@dataclass(frozen=True)
class Frame:
    """One frame of a patient."""

    image: Path
    labels: Path | None
    phase: str  # ed, es, or empty if nothing says it


def is_there(folder: Path) -> bool:
    """Whether a folder holds a frame."""
    return any(True for _ in _files(folder))


def frames(folder: Path) -> dict[str, Frame]:
    """Frames by `<patient>_frame<NN>`, in this order.

    Info.cfg names the frames of the two phases; of what else it says about a patient nothing is read.

    Errors
        DataError   two files of one frame, or an Info.cfg that does not say which frame is which phase
    """
    pairs = Pairs()
    for kind, name, file in _files(folder):
        pairs.add(kind, name, file)
    warn_about("labels without a frame are left out", sorted(set(pairs.labels) - set(pairs.images)))
    phases: dict[Path, dict[int, str]] = {}
    found = {}
    for name, image in sorted(pairs.images.items()):
        home = _home(image)
        if home not in phases:
            phases[home] = _phases(home / INFO)
        found[name] = Frame(image, pairs.labels.get(name), phases[home].get(int(name[-2:]), ""))
    return found


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """images or labels, name of the frame, file; each lies in the folder of its patient."""
    for file in files_below(folder, (".nii.gz", ".nii")):
        match = NAME.fullmatch(stem(file))
        if match and _home(file).name.lower() == match[2]:
            yield "labels" if match[3] else "images", match[1], file


def of_phase(all_frames: Mapping[str, Frame], phase: str) -> dict[str, Frame]:
    """The frames of a phase; frames of both phases that are not there, and frames of none, are reported.

    Errors
        DataError   no frame is of the phase
    """
    wanted = PHASES if phase == "both" else (phase,)
    there = {(name[:10], frame.phase) for name, frame in all_frames.items()}
    told = sorted({patient for patient, known in there if known})
    warn_about(
        "patients without the frame of a phase",
        [f"{patient} {kind}" for patient in told for kind in wanted if (patient, kind) not in there],
    )
    unknown = [name for name, frame in all_frames.items() if not frame.phase]
    if phase == "both":
        warn_about(f"frames whose phase no {INFO} names are kept", unknown)
        return dict(all_frames)
    warn_about(f"frames whose phase no {INFO} names are left out", unknown)
    chosen = {name: frame for name, frame in all_frames.items() if frame.phase == phase}
    if not chosen:
        raise DataError(f"no frame is known to be of the phase {phase}", do=f"copy the files {INFO} as well")
    return chosen


def _home(file: Path) -> Path:
    """The folder of a patient; some archives unpack x.nii as a folder that holds it."""
    return file.parent.parent if suffix(file.parent) else file.parent


def _phases(file: Path) -> dict[int, str]:
    """Frame number -> ed or es."""
    if not file.is_file():
        return {}
    entries = dict(
        re.findall(r"^\s*(\w+)\s*[:=]\s*(\d+)\s*$", read_text(file, missing=""), flags=re.MULTILINE)
    )
    if missing := [phase.upper() for phase in PHASES if phase.upper() not in entries]:
        raise DataError(
            f"{INFO} does not say which frame is {' and '.join(missing)}",
            file=file,
            expected="lines such as ED: 1 and ES: 12",
        )
    return {int(entries[phase.upper()]): phase for phase in PHASES}
