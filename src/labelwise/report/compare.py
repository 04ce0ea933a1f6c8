"""Scores of several runs become one comparison: means, intervals, paired differences, ranks.

Means go over cases first and over structures second. A mean over structures is one over all structures that the
reference has, in every run and every seed; where one of them has no value, no mean is given. A run may have several
seeds: the values of one case are averaged over the seeds before anything else, so n always counts cases. The sample
are the patients: cases of one patient are drawn together and tested as one. The seeds are a second level of chance,
beside the patients. An undefined value (NaN) is left out and counted.

Legend: N cases, G patients, C classes, S seeds, W rows (the classes, then their mean if there are several).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from labelwise.errors import ConfigError, did_you_mean
from labelwise.evaluate.agreement import Agreement, limits_of_agreement
from labelwise.evaluate.scores import Score
from labelwise.report.comparison import MEAN, Cell, Comparison, Difference, Key
from labelwise.report.measures import Measure, measure
from labelwise.report.ranks import Rank, rank_runs
from labelwise.report.sizes import Strata, by_size
from labelwise.report.statistics import (
    Clusters,
    defined_mean,
    defined_sd,
    draw_patients,
    estimate,
    holm,
    patient_means,
    quotient,
    seed_error,
    signed_rank_p,
    two_level_p,
    with_seeds,
)
from labelwise.report.tabulate import Axes, RunValues, common_axes, require_one_cohort, seed_lists, tabulate
from labelwise.types import Array

VOLUME, SIZE = "volume_difference", "reference_volume"


def compare(
    runs: Mapping[str, Sequence[Score] | Sequence[Sequence[Score]]],
    metrics: Sequence[str] | None = None,
    *,
    reference: str | None = None,
    variant: str | None = None,
    seen: Mapping[str, Collection[str]] | None = None,
    notes: Sequence[str] = (),
    resamples: int = 2_000,
    seed: int = 0,
) -> Comparison:
    """Compare runs that were scored on the same cases.

    Every mean has a studentised bootstrap interval over patients, widened by the spread of its seeds; with fewer
    than `statistics.FEWEST_PATIENTS` patients it has none. Each run but the reference is also compared with the
    reference, patient by patient: difference of the means on the cases that both have, its interval, and a Wilcoxon
    signed-rank test over patients. If both have several seeds, p is the larger one of that test and of a t test in
    which patients and seeds vary. The p values are corrected after Holm in two families for each metric: the mean
    over structures (all runs), and the single structures (all runs and structures).

    Args
        runs            name -> scores, or name -> one list of scores for each seed
        metrics         which metrics, in this order; None takes the usual ones (measures.SHOWN)
        reference       the run that the others are compared with; None takes the first
        variant         variant of the evaluation; None takes the only one in the scores
        seen            run -> patients that its training or its choice of a checkpoint has seen; a run that has seen
                        a patient of the comparison is marked
        notes           further cautions, as sentences
        resamples       of the bootstrap; `seed` makes them repeatable

    Errors
        ConfigError     no run, an unknown reference, metric or variant, or several variants and none chosen
        DataError       a run without scores, other cases, classes, units or references than the other runs have, or
                        two values for the same case and class
    """
    if not runs:
        raise ConfigError("there is nothing to compare", expected="at least one run")
    reference = next(iter(runs)) if reference is None else reference
    if reference not in runs:
        raise ConfigError(
            f"unknown reference run '{reference}'{did_you_mean(reference, runs)}",
            expected=", ".join(runs),
            code="unknown-name",
        )
    lists = {run: seed_lists(run, scores) for run, scores in runs.items()}
    all_scores = {run: [score for scores in seeds for score in scores] for run, seeds in lists.items()}
    axes = common_axes([score for found in all_scores.values() for score in found], metrics, variant)
    require_one_cohort(lists, axes.variant)
    values = {run: tabulate(run, lists[run], axes) for run in runs}
    rows = (*axes.classes, MEAN) if len(axes.classes) > 1 else axes.classes
    measures = tuple(measure(name, axes.units[name]) for name in axes.metrics)
    chance = _Chance.of(axes, resamples, seed)
    cells = {key: cell for run in runs for key, cell in _cells(run, values[run], axes, rows, chance).items()}
    best = _best(values, cells, measures, rows)
    return Comparison(
        runs=tuple(runs),
        rows=rows,
        cases=axes.cases,
        patients=axes.patients,
        measures=measures,
        seeds={run: len(lists[run]) for run in runs},
        reference=reference,
        variant=axes.variant,
        cells=cells,
        best=frozenset(best),
        differences=_differences(values, reference, axes, rows, chance),
        ranks=_ranks(values, measures, axes, chance),
        sizes=_sizes(values, lists, axes, measures, chance),
        volumes=_volumes(lists, axes),
        volume_measure=measure(VOLUME, axes.units.get(VOLUME)),
        seen={
            run: tuple(sorted(known))
            for run, scores in all_scores.items()
            if (known := _seen(scores, (seen or {}).get(run, ()), axes))
        },
        splits={run: tuple(sorted({s.split for s in found} - {""})) for run, found in all_scores.items()},
        averaged=tuple(name for name, has in zip(axes.classes, axes.counted, strict=True) if has),
        lacking={
            (run, name): tuple(axes.classes[c] for c in np.flatnonzero(_lacking(table.per_seed[:, m], axes)))
            for run, table in values.items()
            for m, name in enumerate(axes.metrics)
        },
        notes=tuple(notes),
        per_case={
            (run, row, name): column
            for run, table in values.items()
            for m, name in enumerate(axes.metrics)
            for row, column in zip(rows, _columns(table.per_seed[:, m], axes.present).T, strict=True)
        },
        per_seed={
            (run, row, name): columns
            for run, table in values.items()
            for m, name in enumerate(axes.metrics)
            for row, columns in zip(
                rows, np.moveaxis(_with_mean(table.per_seed[:, m], axes.present), -1, 0), strict=True
            )
        },
        presence={(run, name): values[run].presence[name] for run in runs for name in axes.classes},
    )


@dataclass(frozen=True)
class _Chance:
    """The patients of the cases, and how often each resample draws them: the same for all runs."""

    patients: Array  # (N,) number of the patient of each case
    draws: Array  # (R, G)

    @classmethod
    def of(cls, axes: Axes, resamples: int, seed: int) -> _Chance:
        patients = axes.patient_numbers
        return cls(patients, draw_patients(int(patients.max()) + 1, resamples, seed))


def worst_cases(comparison: Comparison) -> tuple[str, ...]:
    """The cases with a value of the first metric that has a better and a worse, the worst on average first."""
    judged = next((m for m in comparison.measures if m.higher_is_better is not None), comparison.measures[0])
    # Over what is defined: a case without a mean, for a structure was missed, must not be passed over.
    table = np.stack(
        [
            defined_mean(
                np.stack([comparison.per_case[run, row, judged.name] for row in comparison.classes]), axis=0
            )
            for run in comparison.runs
        ]
    )
    means = defined_mean(table, axis=0)
    sign = -1.0 if judged.higher_is_better is False else 1.0
    return tuple(
        comparison.cases[n] for n in np.argsort(sign * means, kind="stable") if np.isfinite(means[n])
    )


def _seen(scores: Sequence[Score], patients: Collection[str], axes: Axes) -> set[str]:
    """The patients of the comparison that a run has seen, as its record says or its scores."""
    return (set(patients) | {score.patient for score in scores if score.seen}) & set(axes.patients)


def _with_mean(by_class: Array, counted: Array) -> Array:
    """(..., C) -> (..., W): the mean over the classes as one more place, if there are several classes.

    It goes over the `counted` classes, (C,) or (N, C), and is NaN where one of them has no value, or none is counted.
    """
    if by_class.shape[-1] == 1:
        return by_class
    total = np.where(counted, by_class, 0.0).sum(axis=-1)  # NaN where one has no value
    mean = quotient(total, np.broadcast_to(counted.sum(axis=-1), total.shape))
    return np.concatenate([by_class, mean[..., None]], axis=-1)


def _columns(per_seed: Array, present: Array) -> Array:
    """(S, N, C) values -> (N, W) of each case, seeds averaged; a mean over classes only if every seed has it."""
    columns = _with_mean(defined_mean(per_seed, axis=0), present)
    if per_seed.shape[-1] > 1:
        columns[:, -1] = _with_mean(per_seed, present)[..., -1].mean(axis=0)
    return columns


def _lacking(per_seed: Array, axes: Axes) -> Array:
    """(C,) structures of the reference of which a seed has no value at all, from (S, N, C) values."""
    return np.asarray(axes.counted & ~np.isfinite(per_seed).any(axis=1).all(axis=0))


def _weights(by_class: Array, counted: Array, lacking: Array) -> Array:
    """(W, C) what each class adds to each row; NaN for a row without a value.

    Shapes
        by_class    (C,) means of the classes
        counted     (C,) which of them the mean over classes goes over
        lacking     (C,) which of these have no value somewhere: then there is no mean
    """
    defined = np.isfinite(by_class)
    single = np.where(np.eye(len(by_class), dtype=bool), np.where(defined, 1.0, np.nan), 0.0)
    if len(by_class) == 1:
        return single
    given = counted.any() and not lacking.any()
    together = counted / counted.sum() if given else np.full(len(by_class), np.nan)
    return np.vstack([single, together])


def _cells(run: str, values: RunValues, axes: Axes, rows: Sequence[str], chance: _Chance) -> dict[Key, Cell]:
    cells = {}
    for m, metric in enumerate(axes.metrics):
        per_seed = values.per_seed[:, m]
        per_case = defined_mean(per_seed, axis=0)
        counted = axes.counted
        seed_means = _with_mean(defined_mean(per_seed, axis=1), counted)
        columns = _columns(per_seed, axes.present)
        weights = _weights(defined_mean(per_case, axis=0), counted, _lacking(per_seed, axes))
        estimates = estimate(Clusters.of(per_case, chance.patients), weights, chance.draws)
        excluded = [values.excluded[name, metric] for name in axes.classes]
        excluded.append(sum(excluded, Counter[str]()))
        for r, row in enumerate(rows):
            found = estimates[r]
            interval = with_seeds(found.mean, found.interval, seed_error(seed_means[:, r]))
            cells[run, row, metric] = Cell(
                mean=found.mean,
                sd=defined_sd(columns[:, r]),
                n=int(np.isfinite(columns[:, r]).sum()),
                seed_means=tuple(seed_means[:, r].tolist()),
                excluded=excluded[r],
                low=interval.low,
                high=interval.high,
                patients=found.patients,
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
        same = _comparable(values, m)
        for row, comparable in zip(rows, (*same, same.all()), strict=False):
            keys = [(run, row, judged.name) for run in values]
            if judged.higher_is_better is None or not comparable:
                continue
            if not all(math.isfinite(cells[key].mean) for key in keys):
                continue
            top = judged.number((max if judged.higher_is_better else min)(cells[key].mean for key in keys))
            equal = [key for key in keys if judged.number(cells[key].mean) == top]
            best.update(equal if len(equal) < len(keys) else ())
    return best


def _differences(
    values: Mapping[str, RunValues], reference: str, axes: Axes, rows: Sequence[str], chance: _Chance
) -> dict[Key, Difference]:
    found: dict[Key, Difference] = {}
    for m, metric in enumerate(axes.metrics):
        base = values[reference].per_seed[:, m]
        for run in values:
            if run != reference:
                differences = _paired(values[run].per_seed[:, m], base, axes, chance)
                found.update({(run, row, metric): d for row, d in zip(rows, differences, strict=True)})
        for family in ([rows[-1]], rows[:-1]):
            _correct([key for key in found if key[2] == metric and key[1] in family], found)
    return found


def _paired(one: Array, base: Array, axes: Axes, chance: _Chance) -> list[Difference]:
    """One Difference for each row, from the (S, N, C) values of two runs."""
    differences = defined_mean(one, axis=0) - defined_mean(base, axis=0)
    columns = _columns(one, axes.present) - _columns(base, axes.present)
    counted, common = axes.counted, np.isfinite(differences)
    pair = [np.where(common, values, np.nan) for values in (one, base)]
    lacking = _lacking(pair[0], axes) | _lacking(pair[1], axes)
    weights = _weights(defined_mean(differences, axis=0), counted, lacking)
    estimates = estimate(Clusters.of(differences, chance.patients), weights, chance.draws)
    seeds = [_with_mean(defined_mean(values, axis=1), counted) for values in pair]
    found = []
    for r, estimated in enumerate(estimates):
        of_patients = patient_means(columns[:, r], chance.patients)
        trained = seed_error(seeds[0][:, r], seeds[1][:, r])
        low, high = with_seeds(estimated.mean, estimated.interval, trained)
        p = float(np.fmax(signed_rank_p(of_patients), two_level_p(estimated, trained)))
        n = int(np.isfinite(columns[:, r]).sum())
        found.append(Difference(estimated.mean, low, high, p, n, estimated.patients))
    return found


def _ranks(
    values: Mapping[str, RunValues], measures: Sequence[Measure], axes: Axes, chance: _Chance
) -> dict[str, tuple[Rank, ...]]:
    """Ranks of the runs in the main row of each metric that has a better and a worse, if all have the same values."""
    found: dict[str, tuple[Rank, ...]] = {}
    counted = axes.counted if len(axes.classes) > 1 else np.ones(1, dtype=bool)
    if len(values) < 2 or not counted.any():
        return found
    for m, judged in enumerate(measures):
        per_seed = {run: v.per_seed[:, m][..., counted] for run, v in values.items()}
        lacking = any(_lacking(v.per_seed[:, m], axes).any() for v in values.values())
        if judged.higher_is_better is not None and not lacking and _comparable(values, m).all():
            found[judged.name] = rank_runs(
                per_seed, chance.patients, chance.draws, higher_is_better=judged.higher_is_better
            )
    return found


def _comparable(values: Mapping[str, RunValues], m: int) -> Array:
    """(C,) whether all runs have values of the same cases."""
    defined = np.stack([np.isfinite(v.per_seed[:, m]).any(axis=0) for v in values.values()])
    return np.asarray((defined == defined[0]).all(axis=(0, 1)))


def _sizes(
    values: Mapping[str, RunValues],
    lists: Mapping[str, Sequence[Sequence[Score]]],
    axes: Axes,
    measures: Sequence[Measure],
    chance: _Chance,
) -> Strata | None:
    """The first metric by the size of the structure, if the scores say how large it is."""
    known = {
        (score.case, score.class_name): score.value
        for seeds in lists.values()
        for scores in seeds
        for score in scores
        if score.metric == SIZE and score.variant == axes.variant
    }
    volumes = np.array([[known.get((case, name), math.nan) for name in axes.classes] for case in axes.cases])
    table = {run: v.per_seed[:, 0] for run, v in values.items()}
    unit = measure(SIZE, axes.units.get(SIZE)).unit
    return by_size(measures[0].name, unit, axes.classes, volumes, table, chance.patients, chance.draws)


def _volumes(lists: Mapping[str, Sequence[Sequence[Score]]], axes: Axes) -> dict[tuple[str, str], Agreement]:
    """Run and class -> how predicted volumes agree with those of the reference, seeds averaged."""
    if VOLUME not in axes.units:
        return {}
    found = {}
    for run, seeds in lists.items():
        values = tabulate(run, seeds, replace(axes, metrics=(VOLUME,))).per_seed[:, 0]
        for name, column in zip(axes.classes, defined_mean(values, axis=0).T, strict=True):
            found[run, name] = limits_of_agreement(column, np.zeros_like(column))
    return found


def _correct(family: Sequence[Key], found: dict[Key, Difference]) -> None:
    corrected = holm(np.array([found[key].p for key in family]))
    for key, p in zip(family, corrected, strict=True):
        found[key] = replace(found[key], p_holm=float(p))
