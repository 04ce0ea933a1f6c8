"""Ranks of runs, and how stable they are when other patients and other trainings are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy  # loads its statistics when they are asked for

from labelwise.report.statistics import FEWEST_PATIENTS, Clusters, defined_mean
from labelwise.types import Array


class Rank(NamedTuple):
    """The place of a run: 1 is the best, runs with equal means share the mean of their places."""

    run: str
    rank: float
    # None for fewer than FEWEST_PATIENTS, of whom resamples say nothing.
    low: float | None  # 95 of 100 resamples lie between low and high
    high: float | None
    first: float | None  # part of the resamples in which no other run is better


def rank_runs(
    per_seed: Mapping[str, Array], patients: Array, draws: Array, *, higher_is_better: bool, seed: int = 0
) -> tuple[Rank, ...]:
    """Rank runs by their mean over the classes, and, of enough patients, again in every resample of them and of seeds.

    Shapes
        per_seed    (S, N, C) values of each run; the runs have values of the same cases
        patients    (N,) number of the patient of each case
        draws       (R, G) how often each patient is drawn

    Source
        Wiesenfarth et al., Scientific Reports 2021, rank the same way: average first, then rank.
    """
    generator = np.random.default_rng(seed)
    sign = -1.0 if higher_is_better else 1.0
    means, resampled = [], []
    for values in per_seed.values():
        means.append(float(defined_mean(defined_mean(defined_mean(values, axis=0), axis=0), axis=0)))
        each = [defined_mean(Clusters.of(one, patients).resampled_means(draws), axis=1) for one in values]
        seeds = generator.multinomial(len(each), np.full(len(each), 1 / len(each)), size=len(draws))
        resampled.append((seeds * np.stack(each, axis=1)).sum(axis=1) / len(each))
    ranks = scipy.stats.rankdata(np.round(sign * np.array(means), 12), method="average")
    if draws.shape[1] < FEWEST_PATIENTS:
        unsure = [
            Rank(run, rank, None, None, None) for run, rank in zip(per_seed, ranks.tolist(), strict=True)
        ]
        return tuple(sorted(unsure, key=lambda one: one.rank))
    table = np.round(sign * np.stack(resampled, axis=1), 12)
    places = scipy.stats.rankdata(table[np.isfinite(table).all(axis=1)], method="average", axis=1)
    low, high = np.quantile(places, [0.025, 0.975], axis=0, method="inverted_cdf")
    first = (places == places.min(axis=1, keepdims=True)).mean(axis=0)
    found = [
        Rank(run, *numbers)
        for run, *numbers in zip(
            per_seed, ranks.tolist(), low.tolist(), high.tolist(), first.tolist(), strict=True
        )
    ]
    return tuple(sorted(found, key=lambda one: one.rank))
