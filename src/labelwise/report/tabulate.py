"""Scores of several runs as arrays on common axes: cases, classes, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.evaluate.scores import Score
from labelwise.report.measures import SHOWN, in_order
from labelwise.types import Array

MISSING = "missing"  # status of a value that another run has and this one does not


@dataclass(frozen=True)
class Axes:
    """What the places of a value array stand for."""

    metrics: tuple[str, ...]
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    units: Mapping[str, Mapping[str, str]]  # metric -> class -> unit
    variant: str


@dataclass(frozen=True)
class RunValues:
    """All values of one run.

    `per_seed` is (seeds, metrics, cases, classes), NaN = undefined; `excluded` counts the undefined
    values of a (class, metric) by status.
    """

    per_seed: Array
    excluded: Mapping[tuple[str, str], Counter[str]]


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
    cases: dict[str, None] = {}
    classes: dict[str, None] = {}
    units: dict[str, dict[str, str]] = {}
    for score in scores:
        if score.variant != variant:
            continue
        cases[score.case] = classes[score.class_name] = None
        unit = units.setdefault(score.metric, {}).setdefault(score.class_name, score.unit)
        if unit != score.unit:
            raise DataError(
                f"{score.metric} of class '{score.class_name}' comes in two units",
                case=score.case,
                found=f"'{unit}' and '{score.unit}'",
                do="evaluate all runs with the same spacing and tolerance",
            )
    return Axes(_chosen(metrics, units, variant), tuple(cases), tuple(classes), units, variant)


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
            seen[place], values[place] = True, score.value
            if not np.isfinite(score.value):
                excluded[score.class_name, score.metric][score.status] += 1
    for m, c in zip(*np.nonzero((~seen).any(axis=(0, 2))), strict=True):
        excluded[axes.classes[c], axes.metrics[m]][MISSING] += int((~seen[:, m, :, c]).sum())
    return RunValues(np.where(np.isfinite(values), values, np.nan), excluded)
