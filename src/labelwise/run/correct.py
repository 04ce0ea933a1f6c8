"""`correct`: label files that people have judged come back into a manifest, and replace what was corrected."""

from __future__ import annotations

import hashlib
import importlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.atomic import atomic_path
from labelwise.cohort.history import append_history
from labelwise.cohort.manifest import Manifest, manifest_file, read_manifest, write_manifest
from labelwise.cohort.parts import drawn_beyond
from labelwise.cohort.review import (
    Drawn,
    changes,
    class_of,
    corrected,
    read_drawn,
    reviewed_data_set,
    shown,
    write_reviewed,
)
from labelwise.console import ShowProgress, silent
from labelwise.errors import ConfigError, DataError, LabelwiseError, did_you_mean, naming, warn_about
from labelwise.formats import case_of, is_dicom, suffix
from labelwise.lock import only_writer
from labelwise.types import CORRECTED, VERIFIED, Case

__all__ = ["CorrectionResult", "correct"]

CORRECTIONS, READY = "corrections", "labels"
ALL = "all"


@dataclass(frozen=True)
class CorrectionResult:
    """What came back, and what became of it."""

    folder: Path
    states: Mapping[str, Mapping[str, str]]  # case -> structure -> its new state
    changed: Mapping[str, Mapping[str, int]]  # case -> structure -> voxels that differ from what was shown
    unchanged: tuple[str, ...]  # cases whose files say what was known

    def to_text(self) -> str:
        """One line for each case with news, and one for the whole."""
        lines = [
            f"{case}: "
            + ", ".join(
                f"{structure} {state} ({self.changed[case].get(structure, 0):,} voxels)"
                for structure, state in states.items()
            )
            for case, states in self.states.items()
        ]
        return "\n".join(
            [*lines, f"{self.folder}: {len(self.states)} cases changed, {len(self.unchanged)} as they were"]
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "folder": str(self.folder),
            "states": {case: dict(states) for case, states in self.states.items()},
            "changed": {case: dict(counts) for case, counts in self.changed.items()},
            "unchanged": list(self.unchanged),
        }


@dataclass(frozen=True)
class _Judged:
    """What one file changes in its case."""

    case: Case
    file: Path
    states: Mapping[str, str]  # structure -> its new state; empty: nothing changes
    changed: Mapping[str, int]  # structure -> voxels


def correct(
    data: Path | str,
    files: Sequence[Path | str],
    *,
    classes: Mapping[str, int] | None = None,
    verified: Iterable[str] = (),
    progress: ShowProgress = silent,
) -> CorrectionResult:
    """Take corrected label files into a manifest: what differs from what was shown is corrected, the rest stays.

    A file belongs to the case that it is named after (``CASE.seg.nrrd``, ``CASE.nii.gz``, ``CASE.seg.dcm``,
    ``CASE.rtstruct.dcm``); DICOM of another name to the case whose series it refers to. Each class that a file names is
    compared with what `labelwise review` shows of the case: one that differs in any voxel is "corrected" and taken over
    as it is drawn now, also if nothing is left of it; one that does not differ keeps its state. Classes that a file
    does not name are never touched. A class that was annotated in a part of the scan stays so, unless it is drawn
    beyond that part now: then it is known all over the scan.

    The labels of a changed case become a new file in ``corrections/NUMBER/``; older ones are kept, and
    ``history.jsonl`` tells which was when. Nothing is written unless every file can be taken.

    Arguments
        data        folder of the manifest
        files       label files, or folders of them, such as that of `labelwise review`
        classes     name -> value, for files that do not name their values
        verified    classes that a person looked at in these files and found right, or "all" that a file names

    Errors
        ConfigError     an unknown class in `classes` or `verified`
        DataError       a file that belongs to no case, two changed files of one case, an unknown class, another grid,
                        structures that overlap each other or what is not corrected; every problem is listed
        ResourceError   another program is writing into the folder
    """
    file = manifest_file(data)
    folder = file.parent.absolute()
    with only_writer(folder):
        manifest = read_manifest(file)
        named = _by_value(classes or {}, manifest)
        right = _verified(verified, manifest)
        judged, errors = _judge(manifest, _found(files), named, right, progress)
        if errors:
            raise DataError(
                f"{len(errors)} label files cannot be taken; nothing was written\n" + "\n".join(errors)
            )
        news = [each for each in judged if each.states]
        if news:
            _take(manifest, folder, news, named)
    return CorrectionResult(
        folder,
        {each.case.id: dict(each.states) for each in news},
        {each.case.id: dict(each.changed) for each in news},
        tuple(each.case.id for each in judged if not each.states),
    )


def _by_value(classes: Mapping[str, int], manifest: Manifest) -> dict[int, str]:
    for name in classes:
        if class_of(name, manifest.label_space) is None:
            raise _unknown(name, "--classes", manifest)
    return {value: name for name, value in classes.items()}


def _verified(verified: Iterable[str], manifest: Manifest) -> frozenset[str]:
    structures = set()
    for name in verified:
        found = manifest.label_space.structures if name == ALL else (class_of(name, manifest.label_space),)
        if None in found:
            raise _unknown(name, "--verified", manifest)
        structures |= {structure for structure in found if structure}
    return frozenset(structures)


def _unknown(name: str, option: str, manifest: Manifest) -> ConfigError:
    structures = manifest.label_space.structures
    return ConfigError(
        f"{option}: unknown class '{name}'{did_you_mean(name, structures)}", expected=", ".join(structures)
    )


def _found(files: Sequence[Path | str]) -> list[Path]:
    """All label files that are meant; of the folder of a review its folder of labels."""
    found: list[Path] = []
    for path in map(Path, files):
        if not path.exists():
            raise DataError("there is no such file", file=path, do="correct its path")
        root = path / READY if (path / READY).is_dir() else path
        candidates = sorted(root.rglob("*")) if root.is_dir() else [root]
        found += [
            each
            for each in candidates
            if each.is_file() and not each.name.startswith(".") and (suffix(each) or is_dicom(each))
        ]
    if not found:
        raise DataError("there is no label file here", file=", ".join(map(str, files)))
    return found


def _judge(
    manifest: Manifest,
    files: Sequence[Path],
    classes: Mapping[int, str],
    verified: frozenset[str],
    progress: ShowProgress,
) -> tuple[list[_Judged], list[str]]:
    """What every file says, and what is wrong with some. Of several files of a case only one may say something new."""
    errors: list[str] = []
    by_case: dict[str, list[_Judged]] = defaultdict(list)
    for done, file in enumerate(files, start=1):
        try:
            case = _case_of(file, manifest)
            with naming(case.id, file):
                judgement = _judged(file, case, manifest, classes, verified)
            by_case[case.id].append(judgement)
        except LabelwiseError as error:
            errors.append(str(error))
        progress("compare", done, len(files))
    judged = []
    for name, found in by_case.items():
        drawn_anew = [each for each in found if each.changed] or [each for each in found if each.states]
        if len([each for each in found if each.changed]) > 1:
            both = " and ".join(each.file.name for each in drawn_anew)
            errors.append(
                str(
                    DataError(
                        "two files correct one case", case=name, file=both, do="remove the one that is wrong"
                    )
                )
            )
        judged.append((drawn_anew or found)[0])
    return judged, errors


def _case_of(file: Path, manifest: Manifest) -> Case:
    """The case that a label file is named after, or whose series it refers to."""
    name = case_of(file)
    by_id = {case.id: case for case in manifest.cases}
    if name in by_id:
        return by_id[name]
    if not suffix(file):
        series = _referenced(file)
        found = [case for case in manifest.cases if series and _series(case.images[0]) == series]
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"the label file belongs to no case{did_you_mean(name, by_id)}",
        file=file,
        expected="the id of a case as its name, or DICOM that refers to the series of a case",
        do="rename it to CASE.seg.nrrd, CASE.nii.gz, CASE.seg.dcm or CASE.rtstruct.dcm",
    )


def _referenced(file: Path) -> str | None:
    dicom = importlib.import_module("labelwise.formats.dicom.image")  # an extra
    kind = {"SEG": "seg", "RTSTRUCT": "rtstruct"}.get(dicom.modality(file))
    if kind is None:
        raise DataError("this DICOM file holds no labels", file=file, expected="a DICOM-SEG or an RTSTRUCT")
    found: str | None = importlib.import_module(f"labelwise.formats.dicom.{kind}").referenced_series(file)
    return found


def _series(image: Path) -> str | None:
    """The UID of the series of a scan; None if it is no DICOM series."""
    file = (
        next((each for each in sorted(image.rglob("*")) if is_dicom(each)), None) if image.is_dir() else image
    )
    if file is None or suffix(file) or not is_dicom(file):
        return None
    uid: str = importlib.import_module("labelwise.formats.dicom.header").read_header(file).series
    return uid


def _judged(
    file: Path, case: Case, manifest: Manifest, classes: Mapping[int, str], verified: frozenset[str]
) -> _Judged:
    drawn = read_drawn(file, case, manifest, classes)
    before = shown(case, manifest)
    changed = {
        structure: count
        for structure, count in changes(
            before.data, drawn.labels, sorted(drawn.structures), manifest.label_space
        ).items()
        if count
    }
    right = verified & drawn.structures
    states = {
        structure: VERIFIED if structure in right else CORRECTED
        for structure in manifest.label_space.structures
        if structure in changed or (structure in right and case.states.get(structure) != VERIFIED)
    }
    if states:  # refuses what covers other structures
        corrected(case, manifest, drawn, set(states))
    return _Judged(case, file, states, changed)


def _take(manifest: Manifest, folder: Path, news: Sequence[_Judged], classes: Mapping[int, str]) -> None:
    """Write the new label files, then the history, then the manifest that names them."""
    target = _next_folder(folder / CORRECTIONS)
    cases: dict[str, Case] = {}
    events = []
    regions: list[str] = []  # annotated as one before
    data_sets = dict(manifest.data_sets)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for each in news:
            data_set = reviewed_data_set(manifest, each.case)
            data_sets[data_set.name] = data_set
            drawn = read_drawn(each.file, each.case, manifest, classes)
            labels = corrected(each.case, manifest, drawn, set(each.states))
            name = f"{each.case.id}.nii.gz"
            write_reviewed(temporary / name, labels, each.case, data_set, manifest.label_space)
            wider = drawn_beyond(drawn.labels, each.case, set(each.states), manifest.label_space)
            classes_only = replace(each.case, annotated=manifest.label_space.told_apart(each.case.annotated))
            regions += [f"{each.case.id}: {name}" for name in each.case.annotated - classes_only.annotated]
            cases[each.case.id] = _with_states(
                replace(each, case=classes_only), target / name, data_set.name, wider
            )
            events.append(_event(each, drawn, target / name, folder, manifest))
    warn_about("regions are not annotated any more, for corrected files show classes", sorted(regions))
    append_history(folder, events)
    changed = replace(
        manifest, data_sets=data_sets, cases=tuple(cases.get(case.id, case) for case in manifest.cases)
    )
    write_manifest(changed, folder)


def _next_folder(root: Path) -> Path:
    numbers = [int(each.name) for each in root.iterdir() if each.name.isdecimal()] if root.is_dir() else []
    return root / f"{max(numbers, default=0) + 1:04d}"


def _with_states(judged: _Judged, labels: Path, data_set: str, wider: frozenset[str]) -> Case:
    """The case with what was judged; the `wider` classes are known all over the scan now."""
    case, structures = judged.case, frozenset(judged.states)
    verified = frozenset(structure for structure in structures if judged.states[structure] == VERIFIED)
    return replace(
        case,
        labels=labels,
        data_set=data_set,
        annotated=case.annotated | structures,
        parts=tuple(replace(part, structures=part.structures - wider) for part in case.parts),
        corrected=(case.corrected - structures) | (structures - verified),
        verified=(case.verified - structures) | verified,
    )


def _event(judged: _Judged, drawn: Drawn, labels: Path, folder: Path, manifest: Manifest) -> dict[str, Any]:
    case, before = judged.case, judged.case.states
    voxels = np.bincount(drawn.labels.ravel(), minlength=manifest.label_space.num_classes)
    with judged.file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "event": "corrected",
        "case": case.id,
        "structures": {
            structure: {
                "state": state,
                "before": before.get(structure),
                "changed": judged.changed.get(structure, 0),
                "voxels": int(voxels[manifest.label_space.index(structure)]),
            }
            for structure, state in judged.states.items()
        },
        "labels": labels.relative_to(folder).as_posix(),
        "before": _relative(case.labels, folder),
        "proposals": {each.model: _relative(each.file, folder) for each in case.proposals},
        "file": judged.file.name,
        "sha256": digest,
    }


def _relative(path: Path | None, folder: Path) -> str | None:
    if path is None:
        return None
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
