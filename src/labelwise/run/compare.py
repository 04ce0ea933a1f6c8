"""`compare`: from evaluated runs to a table.

``NAME_seed0``, ``NAME_seed1`` ... are repetitions of one run; ``NAME_fold0``, ``NAME_fold1`` ... are the folds of one
cross-validation, whose scores are looked at together. A run may have both: ``NAME_seed0_fold1``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from labelwise.cohort.manifest import Manifest, manifest_file, read_manifest
from labelwise.documents import decode, parse_toml
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.cases import Score, read_scores
from labelwise.report.compare import compare as compare_scores
from labelwise.report.comparison import Comparison
from labelwise.report.tabulate import PREDICTED
from labelwise.run.pairing import SCORES
from labelwise.run.patients import patients_of
from labelwise.run.provenance import check_scores, scored_model
from labelwise.run.split import data_set_of_fold, missing_folds

__all__ = ["compare"]

_PARTS = re.compile(r"(?P<name>.+?)(?P<parts>(?:_(?:seed|fold)\d+)+)")
_FOLD = re.compile(r"_fold(\d+)")
Folds = list[Path]  # the runs of one repetition: its folds, or the only one


def compare(
    runs: Sequence[Path | str],
    *,
    metrics: Sequence[str] = ("dice", "hd95"),
    reference: str | None = None,
) -> Comparison:
    """Compare evaluated runs; ``NAME_seed0``, ``NAME_seed1`` ... are repetitions of one.

    The folds of a cross-validation, ``NAME_fold0``, ``NAME_fold1`` ..., are one run, scored on the cases that were
    tested in any of them; folds that were scored on the same cases are repetitions. `reference` is the run of the
    paired differences, by default the first. A run whose training or validation cases hold a patient of its scores is
    marked, whether the run or the scores themselves say so; folds that are missing are said.

    Errors
        ConfigError     no run named, or runs scored by different rules
        DataError       a run without scores.csv, or with scores of earlier predictions or of another model; runs on
                        other cases or classes; folds that share a part of their cases
    """
    named = runs_by_name(runs)
    scores, seen = _read(named, {*metrics, "reference_volume", "volume_difference", PREDICTED})
    if not set(metrics) <= {score.metric for lists in scores.values() for one in lists for score in one}:
        scores, seen = _read(named, None)  # so that the refusal names what there is
    notes = [note for name, repetitions in named.items() for note in _notes(name, repetitions)]
    return compare_scores(scores, tuple(metrics), reference=reference, seen=seen, notes=notes)


def runs_by_name(runs: Sequence[Path | str]) -> dict[str, list[Folds]]:
    """Name -> repetitions, each of them as its folds."""
    if not runs:
        raise ConfigError("no run named", do="name at least one folder of a run")
    folders = [Path(run).resolve() for run in runs]
    if twice := [
        folder.name for folder in folders if [other.name for other in folders].count(folder.name) > 1
    ]:
        raise ConfigError(
            f"two runs are called '{twice[0]}'",
            do="rename one of the folders, or name each run once; seeds of one run end in _seed0, _seed1, ..., folds "
            "in _fold0, _fold1, ...",
        )
    named: dict[str, dict[str, Folds]] = {}
    for run in map(Path, runs):
        found = _PARTS.fullmatch(run.resolve().name)
        name, parts = (found["name"], found["parts"]) if found else (run.resolve().name, "")
        named.setdefault(name, {}).setdefault(_FOLD.sub("", parts), []).append(run)
    return {name: list(repetitions.values()) for name, repetitions in named.items()}


def part_of(run: Path) -> str:
    """What a repetition is called within its run: "seed 1 fold 0"; the name of its folder if it is not numbered."""
    found = _PARTS.fullmatch(run.resolve().name)
    return re.sub(r"_([a-z]+)(\d+)", r" \1 \2", found["parts"]).strip() if found else run.resolve().name


def _read(
    named: Mapping[str, Sequence[Folds]], metrics: Collection[str] | None
) -> tuple[dict[str, list[list[Score]]], dict[str, set[str]]]:
    """The scores of each run, one list for each repetition, and the patients of its scores that it has seen."""
    lists: dict[str, list[list[Score]]] = {}
    seen: dict[str, set[str]] = {}
    for name, repetitions in named.items():
        lists[name], seen[name] = [], set()
        for folds in repetitions:
            scores = {folder: _of_its_data_set(folder, scores_of(folder, metrics)) for folder in folds}
            for folder, found in scores.items():
                seen[name] |= patients_of(folder).keys() & {score.patient for score in found}
                seen[name] |= {score.patient for score in found if score.seen}
            lists[name] += _together(name, scores)
    return lists, seen


def repetitions_of(
    name: str, repetitions: Sequence[Folds], metrics: Collection[str]
) -> tuple[list[list[Score]], set[str]]:
    """The scores of a run, one list for each repetition, and the patients of its scores that it has seen."""
    lists, seen = _read({name: repetitions}, metrics)
    return lists[name], seen[name]


def _of_its_data_set(folder: Path, scores: list[Score]) -> list[Score]:
    """The scores of a run; of a fold that leaves a data set out only those of that data set, whatever else it tests."""
    data = data_of(folder)
    left_out = None if data is None else data_set_of_fold(data)
    if data is None or left_out is None:
        return scores
    cases = {case.id for case in read_manifest(data).cases if case.data_set == left_out}
    return [score for score in scores if score.case in cases]


def _together(name: str, scores: Mapping[Path, list[Score]]) -> list[list[Score]]:
    """The scores of the folds as one list; those of folds that were scored on the same cases as one list each."""
    cases = {folder: {score.case for score in found} for folder, found in scores.items()}
    (first, known), *others = cases.items()
    if others and all(found == known for _, found in others):
        return list(scores.values())
    owner = dict.fromkeys(known, first)
    for folder, found in others:
        if twice := sorted(found & owner.keys()):
            raise DataError(
                f"two folds of '{name}' have scores of the same case",
                case=twice[0],
                found=f"{owner[twice[0]].name} and {folder.name}",
                do="evaluate each fold on the cases that it tests: labelwise evaluate RUN FOLDS/fold_K",
            )
        owner |= dict.fromkeys(found, folder)
    return [[score for found in scores.values() for score in found]]


def _notes(name: str, repetitions: Sequence[Folds]) -> list[str]:
    """What a reader must know of the parts of a run: which are one model or missing, and that folds are data sets."""
    missing: set[int] = set()
    by_data_set: set[Path] = set()
    for folds in repetitions:
        found = {
            int(number[1]): folder for folder in folds if (number := _FOLD.search(folder.resolve().name))
        }
        learnt = {number: data for number, folder in found.items() if (data := data_of(folder)) is not None}
        missing |= set(missing_folds(learnt)) - found.keys()
        by_data_set |= {data for data in learnt.values() if data_set_of_fold(data) is not None}
    models: dict[str, list[str]] = {}
    for folder in (folder for folds in repetitions for folder in folds):
        if model := scored_model(folder):
            models.setdefault(model, []).append(part_of(folder))
    notes = [
        f"{' and '.join(parts)} of {name} are one and the same model: what they have in common is no repetition."
        for parts in models.values()
        if len(parts) > 1
    ]
    told = f"Of the folds of {name} these are missing: {', '.join(map(str, sorted(missing)))}."
    notes += [told] if missing else []
    if by_data_set:
        notes.append(f"Each case is scored by the model of {name} that has not learnt from its data set.")
    return notes


def data_of(run: Path) -> Path | None:
    """The manifest that a run learnt from, as its record says."""
    try:
        table = parse_toml(decode((run / "run.toml").read_bytes()))
    except (OSError, ValueError):
        return None
    return Path(str(table["data"])) if table.get("data") else None


def learnt_from(run: Path) -> Manifest:
    """The manifest that a run learnt from.

    Errors
        DataError   it is not there any more
    """
    data = data_of(run)
    if data is None or not manifest_file(data).is_file():
        raise DataError(
            "what the run has learnt from is not there any more",
            file=data or run / "run.toml",
            do="put the manifest back to where run.toml says",
        )
    return read_manifest(data)


def scores_of(folder: Path, metrics: Collection[str] | None = None) -> list[Score]:
    file = folder / SCORES
    if not folder.exists():
        raise DataError("there is no such run", file=folder, do="correct its path", code="not-found")
    if not file.exists():
        raise DataError(
            "the run has no scores", file=file, do="run `labelwise predict` and `labelwise evaluate` first"
        )
    scores = read_scores(file, metrics)
    check_scores(folder, sorted({score.case for score in scores}))
    return scores
