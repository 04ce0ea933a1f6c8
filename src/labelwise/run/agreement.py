"""`agreement`: do the data sets draw the same structures, by models that have not learnt from one of them?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.atomic import write_text
from labelwise.cohort.manifest import Manifest
from labelwise.errors import ConfigError, DataError
from labelwise.report.agreement import DataSets, Reading, data_sets, to_csv
from labelwise.run.compare import Folds, learnt_from, runs_by_name, scores_of
from labelwise.run.patients import patients_of

__all__ = ["AgreementResult", "agreement"]

CASES = 10  # that disagree most


@dataclass(frozen=True)
class AgreementResult:
    """How far the data sets agree, by each run, and the files that say so."""

    found: tuple[DataSets, ...]
    cases: int
    files: tuple[Path, ...]

    def to_text(self) -> str:
        """Sentences and tables of each run, and where they were written."""
        told = "\n".join(one.to_text(self.cases) for one in self.found)
        return told + "".join(f"written: {file}\n" for file in self.files)

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        runs = [one.facts(self.cases) for one in self.found]
        return {"runs": runs, "files": [str(file) for file in self.files]}


def agreement(
    runs: Sequence[Path | str], output: Path | str | None = None, *, cases: int = CASES
) -> AgreementResult:
    """Compare how data sets draw the same structures, from runs that did not learn from one of them.

    Such runs come from the folds of ``labelwise split --by-data-set`` or a manifest of ``import --test-data-set``; only
    patients count whom a run has not seen.

    Arguments
        runs        folders of evaluated runs; ``NAME_fold0``, ``NAME_fold1`` ... and seeds belong together
        output      folder for agreement.csv and agreement.txt
        cases       how many of the cases that disagree most are listed

    Errors
        ConfigError     no run, or a negative number of cases
        DataError       a run without scores or whose manifest is gone; no run left a data set out that it was scored on
    """
    if cases < 0:
        raise ConfigError("a number of cases cannot be negative", found=cases)
    found = tuple(
        one for name, repetitions in runs_by_name(runs).items() if (one := agreement_of(name, repetitions))
    )
    if not found:
        raise DataError(
            "no run was scored on a data set that it has not learnt from",
            found=", ".join(Path(run).name for run in runs),
            do="leave each data set out once: labelwise split DATA -o FOLDS --by-data-set, then train, predict and "
            "evaluate each fold",
        )
    result = AgreementResult(found, cases, ())
    if output is None:
        return result
    files = tuple(Path(output) / f"agreement.{kind}" for kind in ("csv", "txt"))
    write_text(files[0], to_csv(found))
    write_text(files[1], result.to_text())
    return AgreementResult(found, cases, files)


def agreement_of(name: str, repetitions: Sequence[Folds]) -> DataSets | None:
    """What the runs of one name say; None if none of them was scored on a data set that it has not learnt from."""
    folders = [folder for folds in repetitions for folder in folds]
    manifests = {folder: learnt_from(folder) for folder in folders}
    taught = {folder: _taught(manifest) for folder, manifest in manifests.items()}
    ever = frozenset[str]().union(*taught.values())
    readings: list[Reading] = []
    seen = 0
    for folder, manifest in manifests.items():
        added, known = _readings(folder, manifest, taught[folder], ever)
        readings, seen = readings + added, seen + known
    return data_sets(name, readings, seen=seen) if any(one.unseen for one in readings) else None


def _taught(manifest: Manifest) -> frozenset[str]:
    """The data sets whose drawings a training learns from."""
    return frozenset(case.data_set for case in manifest.split("train") if case.annotated)


def _readings(
    folder: Path, manifest: Manifest, taught: frozenset[str], ever: frozenset[str]
) -> tuple[list[Reading], int]:
    """What a run predicts of patients that it has not seen, and how many scores of others it has.

    `ever` are the data sets that some run has learnt from: a run is named by those of them that it has not.
    """
    data_set_of = {case.id: case.data_set for case in manifest.cases}
    values = _values(folder)
    if unknown := sorted({case for case, _ in values} - data_set_of.keys()):
        raise DataError(
            "the run was scored on a case that is not in the manifest it learnt from, so its data set is not known",
            case=unknown[0],
            file=folder,
            do="evaluate it on that manifest",
        )
    unseen = {data_set_of[case] for case, _ in values} - taught
    left_out = tuple(sorted(unseen & ever or unseen))
    patients = patients_of(folder)
    found, seen = [], 0
    for (case, structure), (patient, metrics) in values.items():
        dice = metrics.get("dice", math.nan)
        if math.isnan(dice):
            continue
        if patient in patients:
            seen += 1
            continue
        predicted, drawn = metrics.get("prediction_volume", 0.0), metrics.get("reference_volume", 0.0)
        ratio = predicted / drawn if predicted > 0 and drawn > 0 else math.nan
        data_set = data_set_of[case]
        found.append(Reading(left_out, data_set, data_set in unseen, case, patient, structure, dice, ratio))
    return found, seen


def _values(folder: Path) -> Mapping[tuple[str, str], tuple[str, dict[str, float]]]:
    """Case and structure -> patient, and metric -> value."""
    found: dict[tuple[str, str], tuple[str, dict[str, float]]] = {}
    for score in scores_of(folder, {"dice", "prediction_volume", "reference_volume"}):
        found.setdefault((score.case, score.class_name), (score.patient, {}))[1][score.metric] = score.value
    return found
