"""A metric by the size of the structure: small, middle and large ones, each a third of the cases of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from labelwise.report.statistics import Clusters, defined_mean, estimate, seed_error, with_seeds
from labelwise.types import Array

NAMES = ("small", "middle", "large")
FEWEST_CASES = 6  # two in each third


class SizeCell(NamedTuple):
    """One run in one stratum."""

    mean: float  # over the cases with a value; NaN without any
    n: int  # these cases
    low: float  # 95 % interval over patients and seeds; NaN for fewer than `statistics.FEWEST_PATIENTS`
    high: float
    patients: int


class Stratum(NamedTuple):
    """The cases of one class whose structure has about one size."""

    class_name: str
    name: str  # one of NAMES
    low: float  # smallest and largest volume
    high: float
    cases: int
    runs: Mapping[str, SizeCell]


@dataclass(frozen=True)
class Strata:
    """What `by_size` found for one metric, with the points that it was made of."""

    metric: str
    unit: str  # of the volumes
    strata: tuple[Stratum, ...]
    volumes: Mapping[str, Array]  # class -> (N,) reference volume of each case; NaN = unknown
    values: Mapping[tuple[str, str], Array]  # run and class -> (N,) value of each case; NaN = undefined


def by_size(
    metric: str,
    unit: str,
    classes: Sequence[str],
    volumes: Array,
    values: Mapping[str, Array],
    patients: Array,
    draws: Array,
) -> Strata | None:
    """Split the cases of each class into thirds by the volume of its reference; None if no class has enough cases.

    Cases in which the structure is absent (volume 0) belong to no third.

    Shapes
        volumes  (N, C) volume of the reference; NaN where it is not known
        values      run -> (S, N, C) values of the metric for each seed; NaN = undefined
        patients    (N,) number of the patient of each case
        draws       (R, G) how often each patient is drawn
    """
    thirds = []
    for c in range(len(classes)):
        present = np.flatnonzero(np.isfinite(volumes[:, c]) & (volumes[:, c] > 0))
        if len(present) >= FEWEST_CASES:
            ordered = present[np.argsort(volumes[present, c], kind="stable")]
            thirds += [(c, name, part) for name, part in zip(NAMES, np.array_split(ordered, 3), strict=True)]
    if not thirds:
        return None
    cells = {run: _cells(table, thirds, patients, draws) for run, table in values.items()}
    strata = []
    for k, (c, name, cases) in enumerate(thirds):
        sizes = volumes[cases, c]
        runs = {run: found[k] for run, found in cells.items()}
        strata.append(Stratum(classes[c], name, float(sizes.min()), float(sizes.max()), len(cases), runs))
    means = {run: defined_mean(table, axis=0) for run, table in values.items()}
    return Strata(
        metric,
        unit,
        tuple(strata),
        {name: volumes[:, c] for c, name in enumerate(classes)},
        {(run, name): table[:, c] for run, table in means.items() for c, name in enumerate(classes)},
    )


def _cells(
    per_seed: Array, thirds: Sequence[tuple[int, str, Array]], patients: Array, draws: Array
) -> list[SizeCell]:
    """One run in every third, from its (S, N, C) values."""
    table = np.full((*per_seed.shape[:2], len(thirds)), np.nan)
    for k, (c, _, cases) in enumerate(thirds):
        table[:, cases, k] = per_seed[:, cases, c]
    per_case, seed_means = defined_mean(table, axis=0), defined_mean(table, axis=1)
    estimates = estimate(Clusters.of(per_case, patients), np.eye(len(thirds)), draws)
    found = []
    for k, one in enumerate(estimates):
        low, high = with_seeds(one.mean, one.interval, seed_error(seed_means[:, k]))
        n = int(np.isfinite(per_case[:, k]).sum())
        found.append(SizeCell(one.mean, n, low, high, one.patients))
    return found
