"""Repaired copies of what can be repaired without guessing; originals are never touched.

    FOLDER/manifest.csv, dataset.toml   the cohort with the repaired files in the place of the originals
    FOLDER/images/, labels/             the repaired copies, NIfTI
    FOLDER/records/CASE.json            what was done, and to which files: such a case is not done again
    FOLDER/repairs.json                 all repairs, and the problems that are left

| code | repair |
|---|---|
| not-finite | voxels that are NaN or infinite get the lowest finite value of their file |
| label-header | the labels get the header of the image, voxel by voxel |
| label-cropped | labels on a part of the grid of the image are put in their place, background around them |
| unlabelled-slices | slices between drawn ones in which nothing is drawn are marked as unknown |
| float-labels | whole numbers are stored as integers |
| left-right-names | the values of left and right partners are exchanged |
| duplicate, duplicate-across-splits | one group for cases with one image, and that of their splits that is held out |

A case whose data set needs a layout (h5, DICOM-SEG, wrong headers) is written anew as a whole, in a data set of its
own that needs none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labelwise.atomic import write_json
from labelwise.cohort.data_set import IGNORE_NAME, DataSet
from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, absolute, write_manifest
from labelwise.console import ShowProgress, silent
from labelwise.engine import run_jobs
from labelwise.errors import ConfigError, DataError, LabelwiseError
from labelwise.formats import Layout, files_of
from labelwise.quality.check import Findings
from labelwise.quality.check_case import inspect_case
from labelwise.quality.check_cohort import judge_manifest
from labelwise.quality.problem import Problem
from labelwise.quality.repaired_files import Repair, write_copies
from labelwise.types import IGNORE, Case

__all__ = ["Mended", "Repair", "repair"]

REPAIRS_NAME = "repairs.json"
_OF_FILES = (
    "not-finite",
    "label-header",
    "label-cropped",
    "unlabelled-slices",
    "float-labels",
    "left-right-names",
)
# Problems of a case that show only beside the others.
_OF_ALL_CASES = ("other-channels", "unusual-spacing", "unusual-intensities")
_HELD_OUT_FIRST = ("test", "validation", "train")
_PLAIN = Layout()


@dataclass(frozen=True)
class Mended:
    """A repaired cohort: what was done, and what a person has to do."""

    manifest: Manifest
    repairs: tuple[Repair, ...]
    left: tuple[Problem, ...]


@dataclass(frozen=True)
class _Job:
    single: Manifest
    codes: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class _Done:
    case: Case
    data_set: DataSet
    repairs: tuple[Repair, ...]
    left: tuple[Problem, ...]


def repair(
    manifest: Manifest,
    findings: Findings,
    folder: Path | str,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: ShowProgress = silent,
) -> Mended:
    """Write repaired copies and a manifest that refers to them; interrupted, it can be repeated.

    Errors
        ConfigError     the folder holds a manifest that is not of a repair, or an original file would be replaced
        ResourceError   the folder cannot be written
    """
    folder = absolute(folder)
    _check_target(manifest, folder)
    jobs = _jobs(manifest, findings.problems, folder)
    done: dict[str, _Done] = {}
    outcomes = run_jobs(_mend, jobs, engine=engine, workers=workers, shared=[folder])
    for number, outcome in enumerate(outcomes, start=1):
        name = outcome.item.single.cases[0].id
        if outcome.result is not None:
            done[name] = outcome.result
        elif outcome.error is not None and not isinstance(outcome.error, DataError):
            raise outcome.error  # what cannot be repaired stays in the list
        progress("repair", number, len(jobs))
    mended, regrouped = _with_twins_together(_replaced(manifest, done), findings.twins)
    repairs = (*(repair for name in done for repair in done[name].repairs), *regrouped)
    order = {case.id: number for number, case in enumerate(manifest.cases)}
    result = Mended(
        mended,
        tuple(sorted(repairs, key=lambda repair: order[repair.case])),
        tuple(_left(findings.problems, done, mended)),
    )
    facts = {
        "repairs": [repair.to_json() for repair in result.repairs],
        "left": [problem.to_json() for problem in result.left],
    }
    write_json(folder / REPAIRS_NAME, facts)
    write_manifest(mended, folder)
    return result


def _check_target(manifest: Manifest, folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists() and not (folder / REPAIRS_NAME).exists():
        raise ConfigError(
            "the folder for repaired copies holds another manifest",
            file=folder / MANIFEST_NAME,
            do="choose another folder",
            code="would-overwrite",
        )
    inside = [folder / "images", folder / "labels"]
    for case in manifest.cases:
        for path in (*case.images, *([case.labels] if case.labels else [])):
            if any(path.resolve().is_relative_to(part.resolve()) for part in inside):
                raise ConfigError(
                    "repaired copies would lie among the originals",
                    case=case.id,
                    file=path,
                    do="choose another folder",
                    code="would-overwrite",
                )


def _jobs(manifest: Manifest, problems: Iterable[Problem], folder: Path) -> list[_Job]:
    codes: dict[str, list[str]] = {}
    for problem in problems:
        if problem.code in _OF_FILES:
            codes.setdefault(problem.case, []).append(problem.code)
    return [
        _Job(manifest.replace_cases([case]), tuple(sorted(set(codes[case.id]))), folder)
        for case in manifest.cases
        if case.id in codes
    ]


def _replaced(manifest: Manifest, done: Mapping[str, _Done]) -> Manifest:
    cases = [done[case.id].case if case.id in done else case for case in manifest.cases]
    data_sets = {**manifest.data_sets, **{each.data_set.name: each.data_set for each in done.values()}}
    used = {case.data_set for case in cases}
    return Manifest(
        manifest.label_space,
        {name: data_set for name, data_set in data_sets.items() if name in used},
        tuple(cases),
    )


def _left(problems: Iterable[Problem], done: Mapping[str, _Done], mended: Manifest) -> list[Problem]:
    """What the check would still say: repaired cases were looked at again, twins are together."""
    left = [
        problem
        for problem in problems
        if problem.case
        and not problem.code.startswith("duplicate")
        and not (problem.case in done and problem.code not in _OF_ALL_CASES)
    ]
    left += [problem for each in done.values() for problem in each.left]
    left += [problem for problem in problems if problem.code == "class-without-voxels"]
    return [*left, *judge_manifest(mended)]


# files


def _mend(job: _Job) -> _Done:
    whole = _with_ignore(job.single) if "unlabelled-slices" in job.codes else job.single
    case, data_set = whole.cases[0], whole.data_set_of(whole.cases[0])
    record_file = job.folder / "records" / f"{case.id}.json"
    stamps = _stamps(case)
    known = _read_record(record_file)
    if known.get("originals") == stamps and known.get("codes") == list(job.codes):
        images, labels = [Path(image) for image in known["images"]], known["labels"]
        repairs = [Repair(**each) for each in known["repairs"]]
    else:
        images, written, repairs = write_copies(whole, job.codes, job.folder)
        labels = str(written) if written else None
    moved = data_set if data_set.layout == _PLAIN else replace(
        data_set, name=f"{data_set.name}_repaired", layout=_PLAIN
    )  # fmt: skip
    new = replace(case, images=tuple(images), labels=Path(labels) if labels else None, data_set=moved.name)
    single = Manifest(job.single.label_space, {moved.name: moved}, (new,))
    record = {
        "originals": stamps,
        "codes": list(job.codes),
        "images": [str(image) for image in images],
        "labels": labels,
        "repairs": [repair.to_json() for repair in repairs],
    }
    write_json(record_file, record)
    return _Done(new, moved, tuple(repairs), inspect_case(single).problems)


def _with_ignore(single: Manifest) -> Manifest:
    """A manifest of one case whose data set has a value for voxels about which nothing is known."""
    case, data_set = single.cases[0], single.data_set_of(single.cases[0])
    if IGNORE_NAME in data_set.values.values():
        return single
    value = next(value for value in range(IGNORE, -1, -1) if value not in data_set.values)
    new = replace(data_set, name=f"{data_set.name}_slices", values={**data_set.values, value: IGNORE_NAME})
    return Manifest(single.label_space, {new.name: new}, (replace(case, data_set=new.name),))


def _stamps(case: Case) -> dict[str, list[int]]:
    """Size and time of the last change of every original file."""
    paths = [*case.images, *([case.labels] if case.labels else [])]
    files = [(file, file.stat()) for path in paths for file in files_of(path) if file.exists()]
    return {str(file): [state.st_size, state.st_mtime_ns] for file, state in files}


def _read_record(file: Path) -> dict[str, Any]:
    """What was done to a case; nothing if the record is missing or damaged, or a copy is gone."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        paths = [*record["images"], *filter(None, [record["labels"]])]
        return record if all(Path(path).exists() for path in paths) else {}
    except (OSError, ValueError, KeyError, TypeError, LabelwiseError):
        return {}


# groups and splits


def _with_twins_together(
    manifest: Manifest, twins: Iterable[Sequence[str]]
) -> tuple[Manifest, tuple[Repair, ...]]:
    """Cases with one image in one group; their groups move together, to the split that is held out."""
    by_id = {case.id: case for case in manifest.cases}
    root: dict[str, str] = {}

    def find(group: str) -> str:
        while group in root:
            group = root[group]
        return group

    for first, *others in twins:
        for other in others:
            target, joined = find(by_id[first].group), find(by_id[other].group)
            if joined != target:
                root[joined] = target
    merged = {find(by_id[name].group) for names in twins for name in names}
    splits: dict[str, str] = {}
    for split in reversed(_HELD_OUT_FIRST):
        splits |= {find(case.group): split for case in manifest.cases if case.split == split}
    cases, repairs = [], []
    for case in manifest.cases:
        group = find(case.group)
        if group in merged:
            split = splits.get(group, case.split) if case.split else ""
            if (group, split) != (case.group, case.split):
                moved = f", moved from {case.split} to {split}" if split != case.split else ""
                what = f"has an image that occurs twice, or is of such a patient: group '{group}'{moved}"
                repairs.append(Repair("duplicate", case.id, "", what))
                case = replace(case, group=group, split=split)
        cases.append(case)
    return manifest.replace_cases(cases), tuple(repairs)
