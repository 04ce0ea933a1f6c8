"""Scores of several runs become one comparison: means, spreads, and paired differences.

Means go over cases first and over organs second. A run may have several seeds: the values of one case are
averaged over the seeds before anything else, so n always counts cases, and the spread over the seeds is
shown on its own. An undefined value (NaN) is left out and counted.

Legend: N cases, C classes, R rows (the classes, then their mean if there are several).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from labelwise.errors import ConfigError, did_you_mean
from labelwise.evaluate.scores import Score
from labelwise.report.comparison import MEAN, Cell, Comparison, Difference, Key
from labelwise.report.measures import Measure, measure
from labelwise.report.statistics import (
    bootstrap_means,
    defined_mean,
    defined_sd,
    holm,
    percentile_interval,
    signed_rank_p,
)
from labelwise.report.tabulate import Axes, RunValues, common_axes, seed_lists, tabulate
from labelwise.types import Array


def compare(
    runs: Mapping[str, Sequence[Score] | Sequence[Sequence[Score]]],
    metrics: Sequence[str] | None = None,
    *,
    reference: str | None = None,
    variant: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare runs that were scored on the same cases.

    Each run but the reference is also compared with the reference case by case: difference of the means on
    the cases that both have, bootstrap interval over cases, and a Wilcoxon signed-rank test. The p values
    are corrected after Holm in two families for each metric: the mean over organs (all runs), and the
    single organs (all runs and organs).

    Args
        runs            name -> scores, or name -> one list of scores for each seed
        metrics         which metrics, in this order; None takes the usual ones (measures.SHOWN)
        reference       the run that the others are compared with; None takes the first
        variant         variant of the evaluation; None takes the only one in the scores
        resamples       of the bootstrap; `seed` makes them repeatable

    Errors
        ConfigError     no run, an unknown reference, metric or variant, or several variants and none chosen
        DataError       a run without scores, different units, or two values for the same case and class
    """
    if not runs:
        raise ConfigError("there is nothing to compare", expected="at least one run")
    reference = next(iter(runs)) if reference is None else reference
    if reference not in runs:
        raise ConfigError(
            f"unknown reference run '{reference}'{did_you_mean(reference, runs)}", expected=", ".join(runs)
        )
    lists = {run: seed_lists(run, scores) for run, scores in runs.items()}
    axes = common_axes(
        [score for seeds in lists.values() for scores in seeds for score in scores], metrics, variant
    )
    values = {run: tabulate(run, lists[run], axes) for run in runs}
    rows = (*axes.classes, MEAN) if len(axes.classes) > 1 else axes.classes
    measures = tuple(measure(name, axes.units[name]) for name in axes.metrics)
    cells = {key: cell for run in runs for key, cell in _cells(run, values[run], axes, rows).items()}
    return Comparison(
        runs=tuple(runs),
        rows=rows,
        cases=axes.cases,
        measures=measures,
        seeds={run: len(lists[run]) for run in runs},
        reference=reference,
        variant=axes.variant,
        cells=cells,
        best=frozenset(_best(values, cells, measures, rows)),
        differences=_differences(values, reference, axes, rows, resamples, seed),
    )


def worst_cases(scores: Iterable[Score], count: int) -> tuple[str, ...]:
    """The `count` cases with the lowest mean Dice, the worst first; over all organs and runs in `scores`."""
    defined: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        if score.metric == "dice" and math.isfinite(score.value):
            defined[score.case].append(score.value)
    return tuple(sorted(defined, key=lambda case: fmean(defined[case]))[:count])


def _with_mean(by_class: Array) -> Array:
    """(..., C) -> (..., R): the mean over the classes as one more place, if there are several classes."""
    if by_class.shape[-1] == 1:
        return by_class
    return np.concatenate([by_class, defined_mean(by_class, axis=-1)[..., None]], axis=-1)


def _cells(run: str, values: RunValues, axes: Axes, rows: Sequence[str]) -> dict[Key, Cell]:
    cells = {}
    for m, metric in enumerate(axes.metrics):
        per_seed = values.per_seed[:, m]
        per_case = defined_mean(per_seed, axis=0)
        means = _with_mean(defined_mean(per_case, axis=0))
        seed_means = _with_mean(defined_mean(per_seed, axis=1))
        columns = _with_mean(per_case)
        excluded = [values.excluded[name, metric] for name in axes.classes]
        excluded.append(sum(excluded, Counter[str]()))
        for r, row in enumerate(rows):
            cells[run, row, metric] = Cell(
                mean=float(means[r]),
                sd=defined_sd(columns[:, r]),
                n=int(np.isfinite(columns[:, r]).sum()),
                seed_means=tuple(seed_means[:, r].tolist()),
                excluded=excluded[r],
            )
    return cells


def _best(
    values: Mapping[str, RunValues],
    cells: Mapping[Key, Cell],
    measures: Sequence[Measure],
    rows: Sequence[str],
) -> set[Key]:
    """Keys of the best cells; equal printed numbers share the mark, unless all runs have the same.

    Means over different cases cannot be ranked: where the runs lack different values, none is marked.
    """
    best: set[Key] = set()
    if len(values) < 2:
        return best
    for m, judged in enumerate(measures):
        defined = np.stack([np.isfinite(v.per_seed[:, m]).any(axis=0) for v in values.values()])
        same = (defined == defined[0]).all(axis=(0, 1))
        for row, comparable in zip(rows, (*same, same.all()), strict=False):
            keys = [(run, row, judged.name) for run in values]
            if judged.higher_is_better is None or not comparable or not cells[keys[0]].n:
                continue
            top = judged.number((max if judged.higher_is_better else min)(cells[key].mean for key in keys))
            equal = [key for key in keys if judged.number(cells[key].mean) == top]
            best.update(equal if len(equal) < len(keys) else ())
    return best


def _differences(
    values: Mapping[str, RunValues],
    reference: str,
    axes: Axes,
    rows: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[Key, Difference]:
    found: dict[Key, Difference] = {}
    for m, metric in enumerate(axes.metrics):
        base = defined_mean(values[reference].per_seed[:, m], axis=0)
        for run in values:
            if run != reference:
                paired = defined_mean(values[run].per_seed[:, m], axis=0) - base
                differences = _paired(paired, resamples, seed)
                found.update({(run, row, metric): d for row, d in zip(rows, differences, strict=True)})
        for family in ([rows[-1]], rows[:-1]):
            _correct([key for key in found if key[2] == metric and key[1] in family], found)
    return found


def _paired(differences: Array, resamples: int, seed: int) -> list[Difference]:
    """One Difference for each row, from the (N, C) differences of two runs."""
    columns = _with_mean(differences)
    means = _with_mean(defined_mean(differences, axis=0))
    resampled = _with_mean(bootstrap_means(differences, resamples, seed))
    found = []
    for r in range(columns.shape[1]):
        n = int(np.isfinite(columns[:, r]).sum())
        # One case has no spread to resample: an interval of width 0 would look like certainty.
        low, high = percentile_interval(resampled[:, r]) if n > 1 else (float("nan"), float("nan"))
        found.append(Difference(float(means[r]), low, high, signed_rank_p(columns[:, r]), n))
    return found


def _correct(family: Sequence[Key], found: dict[Key, Difference]) -> None:
    corrected = holm(np.array([found[key].p for key in family]))
    for key, p in zip(family, corrected, strict=True):
        found[key] = replace(found[key], p_holm=float(p))
