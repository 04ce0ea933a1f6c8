"""Scores of several runs as arrays on common axes: cases, classes, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.evaluate.scores import NOT_ANNOTATED, PRESENT, Score
from labelwise.report.measures import SHOWN, in_order
from labelwise.types import Array

MISSING = "missing"  # status of a value that another run has and this one does not
PREDICTED = "prediction_volume"  # the metric that tells a prediction also where nobody annotated


class Presence(NamedTuple):
    """In how many scans a run finds a structure; scans count once for each seed."""

    there: int  # the reference has it
    found: int  # of `there`
    without: int  # of `there`: the run has no prediction of the scan
    absent: int  # annotated, and the reference has none
    invented: int  # of `absent`
    unknown: int  # not annotated, and the run has a prediction
    predicted: int  # of `unknown`


@dataclass(frozen=True)
class Axes:
    """What the places of a value array stand for."""

    metrics: tuple[str, ...]
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    units: Mapping[str, Mapping[str, str]]  # metric -> class -> unit
    variant: str
    patients: tuple[str, ...]  # whom each case belongs to
    present: Array  # (N, C) whether the reference has the structure, by any score

    @property
    def counted(self) -> Array:
        """(C,) the structures that the reference has in some case: those that a mean over structures goes over."""
        return np.asarray(self.present.any(axis=0))

    @property
    def patient_numbers(self) -> Array:
        """(N,) number of the patient of each case, in order of appearance."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.patients))}
        return np.array([numbers[name] for name in self.patients], dtype=np.intp)


@dataclass(frozen=True)
class RunValues:
    """All values of one run.

    `per_seed` is (seeds, metrics, cases, classes), NaN = undefined; `excluded` counts the undefined
    values of a (class, metric) by status.
    """

    per_seed: Array
    excluded: Mapping[tuple[str, str], Counter[str]]
    presence: Mapping[str, Presence]  # class -> in how many scans it is found


def seed_lists(run: str, scores: Sequence[Score] | Sequence[Sequence[Score]]) -> list[list[Score]]:
    """The score lists of a run: one for each seed. A plain list of scores is one seed."""
    plain: list[Score] = []
    lists: list[list[Score]] = []
    for item in scores:
        if isinstance(item, Score):
            plain.append(item)
        else:
            lists.append(list(item))
    lists = [plain, *lists] if plain else lists
    if not lists or not all(lists):
        raise DataError(f"run '{run}' has no scores", do="evaluate the run first")
    return lists


def common_axes(scores: Sequence[Score], metrics: Sequence[str] | None, variant: str | None) -> Axes:
    """Axes that hold all scores of a variant: cases and classes in order of appearance, metrics as asked.

    `metrics` None takes the usual ones, `variant` None the only one.
    """
    variant = _the_variant({score.variant for score in scores}, variant)
    cases: dict[str, str] = {}
    classes: dict[str, None] = {}
    units: dict[str, dict[str, str]] = {}
    present: set[tuple[str, str]] = set()
    for score in scores:
        if score.variant != variant:
            continue
        if score.status in PRESENT:
            present.add((score.case, score.class_name))
        patient = cases.setdefault(score.case, score.patient)
        if patient != score.patient:
            raise DataError(
                "the case belongs to two patients",
                case=score.case,
                found=f"'{patient}' and '{score.patient}'",
                do="evaluate all runs with the same manifest",
            )
        classes[score.class_name] = None
        unit = units.setdefault(score.metric, {}).setdefault(score.class_name, score.unit)
        if unit != score.unit:
            raise DataError(
                f"{score.metric} of class '{score.class_name}' comes in two units",
                case=score.case,
                found=f"'{unit}' and '{score.unit}'",
                do="evaluate all runs with the same spacing and tolerance",
            )
    chosen = _chosen(metrics, units, variant)
    return Axes(
        chosen, tuple(cases), tuple(classes), units, variant, tuple(cases.values()),
        np.array([[(case, name) in present for name in classes] for case in cases], dtype=bool),
    )  # fmt: skip


def require_one_cohort(lists: Mapping[str, Sequence[Sequence[Score]]], variant: str) -> None:
    """Refuse runs that were scored on other cases, other classes, or against other references.

    A run may lack cases that another one has: they are counted as missing. Two runs that each have cases of their own
    were scored on two cohorts, and their means say nothing about each other.
    """
    cases: dict[str, set[str]] = {}
    classes: dict[str, set[str]] = {}
    volumes: dict[tuple[str, str], tuple[str, float]] = {}
    for run, seeds in lists.items():
        scores = [score for one in seeds for score in one if score.variant == variant]
        if not scores:
            raise DataError(f"run '{run}' has no score of the variant '{variant}'", do="evaluate it again")
        cases[run] = {score.case for score in scores}
        classes[run] = {score.class_name for score in scores}
        for score in scores:
            if score.metric == "reference_volume" and np.isfinite(score.value):
                key = (score.case, score.class_name)
                first, volume = volumes.setdefault(key, (run, score.value))
                if not np.isclose(volume, score.value, rtol=1e-6):
                    raise DataError(
                        f"'{first}' and '{run}' were scored against different references",
                        case=score.case,
                        found=f"{score.class_name}: {volume:.6g} and {score.value:.6g} {score.unit}",
                        do="evaluate both with the same manifest",
                    )
    first = next(iter(lists))
    for run in lists:
        if classes[run] != classes[first]:
            raise DataError(
                f"'{run}' has other classes than '{first}'",
                found=_difference(classes[run], classes[first], run, first),
                do="compare runs of one label space; evaluate all with one manifest",
            )
    for run in lists:
        largest = max(lists, key=lambda name: len(cases[name]))
        if not cases[run] <= cases[largest]:
            raise DataError(
                f"'{run}' was scored on other cases than '{largest}'",
                found=_difference(cases[run], cases[largest], run, largest),
                do="evaluate all runs on the same split of one manifest",
            )


def _difference(one: set[str], other: set[str], name: str, other_name: str) -> str:
    parts = [
        f"only in {owner}: {', '.join(sorted(names)[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for owner, names in ((name, one - other), (other_name, other - one))
        if names
    ]
    return "; ".join(parts)


def _the_variant(found: set[str], asked: str | None) -> str:
    expected = ", ".join(sorted(found))
    if asked is None and len(found) > 1:
        raise ConfigError(
            "the scores are of several variants of the evaluation", found=expected, do="choose one of them"
        )
    if asked is not None and asked not in found:
        raise ConfigError(
            f"no score is of the variant '{asked}'{did_you_mean(asked, found)}", expected=expected
        )
    return asked if asked is not None else next(iter(found))


def _chosen(metrics: Sequence[str] | None, found: Iterable[str], variant: str) -> tuple[str, ...]:
    known = in_order(found)
    if metrics is None:
        return tuple(name for name in SHOWN.get(variant, known) if name in known) or known
    if not metrics:
        raise ConfigError("name at least one metric", expected=", ".join(known))
    for name in metrics:
        if name not in known:
            raise ConfigError(
                f"no run has the metric '{name}'{did_you_mean(name, known)}", expected=", ".join(known)
            )
    return tuple(dict.fromkeys(metrics))


def tabulate(run: str, lists: Sequence[Sequence[Score]], axes: Axes) -> RunValues:
    """Put the scores of a run on the axes; a value that is not there is NaN and counted as missing."""
    places = [
        {name: place for place, name in enumerate(axis)} for axis in (axes.metrics, axes.cases, axes.classes)
    ]
    values = np.full((len(lists), *map(len, places)), np.nan)
    seen = np.zeros(values.shape, dtype=bool)
    excluded = {(c, m): Counter[str]() for c in axes.classes for m in axes.metrics}
    for seed, scores in enumerate(lists):
        for score in scores:
            if score.metric not in places[0] or score.variant != axes.variant:
                continue
            place = (seed, places[0][score.metric], places[1][score.case], places[2][score.class_name])
            if seen[place]:
                raise DataError(
                    f"run '{run}' has two values of {score.metric} for class '{score.class_name}'",
                    case=score.case,
                    do="pass the scores of several seeds as several lists",
                )
            seen[place] = True
            values[place] = np.nan if score.status == NOT_ANNOTATED else score.value
            if not np.isfinite(values[place]):
                excluded[score.class_name, score.metric][score.status] += 1
    for m, c in zip(*np.nonzero((~seen).any(axis=(0, 2))), strict=True):
        excluded[axes.classes[c], axes.metrics[m]][MISSING] += int((~seen[:, m, :, c]).sum())
    return RunValues(np.where(np.isfinite(values), values, np.nan), excluded, _presence(lists, axes))


def _presence(lists: Sequence[Sequence[Score]], axes: Axes) -> dict[str, Presence]:
    """Class -> in how many scans it is found; a scan that another run has a prediction of is not forgotten."""
    counts = {name: Counter[str]() for name in axes.classes}
    judged = {(axes.cases[n], axes.classes[c]) for n, c in zip(*np.nonzero(axes.present), strict=True)}
    for scores in lists:
        statuses: dict[tuple[str, str], str] = {}
        for score in scores:
            key = (score.case, score.class_name)
            if score.variant != axes.variant or score.status == "reference_incomplete":
                continue
            statuses[key] = score.status
            if score.status == NOT_ANNOTATED and score.metric == PREDICTED and np.isfinite(score.value):
                counts[score.class_name]["predicted" if score.value > 0 else "not predicted"] += 1
        for (_, name), status in statuses.items():
            counts[name][status] += 1
        for _, name in judged - statuses.keys():
            counts[name][MISSING] += 1
    return {
        name: Presence(
            there=found["ok"] + found["prediction_empty"] + found[MISSING],
            found=found["ok"],
            without=found[MISSING],
            absent=found["both_empty"] + found["reference_empty"],
            invented=found["reference_empty"],
            unknown=found["predicted"] + found["not predicted"],
            predicted=found["predicted"],
        )
        for name, found in counts.items()
    }
