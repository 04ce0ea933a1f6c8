"""Means, intervals and tests over tables with holes: NaN is an undefined value and never counts.

The sample are the patients. All cases of a patient are drawn together, and trainings with other seeds are a second
level: they say how far the result of a method moves when nothing but its random numbers change.

Legend: N cases, G patients (groups of cases), C classes, W rows (weighted means of the classes), R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # loads its statistics when they are asked for

from labelwise.types import Array

# With fewer patients no interval is told. Where one patient in ten fails, 20 patients show no failure at all in 12 of
# 100 samples, and then every interval is wrong; from 30 on the interval holds what it says, see the simulation in
# benchmarks/interval_coverage.py.
FEWEST_PATIENTS = 30
CONFIDENCE = 0.95
_NAN = float("nan")


class Interval(NamedTuple):
    """Where a mean lies; NaN where there are too few patients to say."""

    low: float
    high: float


NO_INTERVAL = Interval(_NAN, _NAN)


class Estimate(NamedTuple):
    """A mean over patients with its standard error and interval."""

    mean: float
    error: float  # standard error over patients; NaN for fewer than two
    interval: Interval
    patients: int  # with a defined value; of several classes the fewest


class SeedError(NamedTuple):
    """Standard error of a mean over trainings that differ by their seed only; NaN where one is not repeated."""

    error: float
    freedom: float  # degrees of freedom


@dataclass(frozen=True)
class Clusters:
    """Sums and counts of the defined values of each patient."""

    sums: Array  # (G, C)
    counts: Array  # (G, C)

    @classmethod
    def of(cls, values: Array, patients: Array) -> Clusters:
        """From (N, C) values, and the (N,) number of the patient of each case."""
        size = int(patients.max()) + 1 if len(patients) else 0
        member = np.zeros((size, len(patients)))
        member[patients, np.arange(len(patients))] = 1
        finite = np.isfinite(values)
        return cls(member @ np.where(finite, values, 0.0), member @ finite)

    def means(self) -> Array:
        """(C,) mean over the cases; NaN where there are none."""
        return quotient(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def resampled_means(self, draws: Array) -> Array:
        """(R, C) means of drawn patients; NaN where no drawn one has a value."""
        return quotient(draws @ self.sums, draws @ self.counts)


def draw_patients(patients: int, resamples: int, seed: int) -> Array:
    """(R, G) how often each patient is drawn; that says all about a resample, and makes it one product."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(patients, np.full(patients, 1 / max(patients, 1)), size=resamples).astype(
        float
    )


def estimate(clusters: Clusters, weights: Array, draws: Array) -> list[Estimate]:
    """Mean, error and studentised bootstrap interval of rows that are weighted means of the classes.

    Each resample gives its own mean and its own standard error (of a ratio, linearised); the quantiles of their
    quotient replace those of Student's t. So the interval takes over how skewed the values are, and is as wide as few
    patients make it.

    Shapes
        weights     (W, C)  the weights of a row add up to 1; NaN marks a row without a value
        draws       (R, G)  of `draw_patients`

    Source
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.
    """
    means, present = clusters.means(), (clusters.counts > 0).sum(axis=0)
    everyone = np.ones((1, len(clusters.sums)))
    found = []
    resampled = clusters.resampled_means(draws)
    for row in weights:
        used = np.flatnonzero(np.nan_to_num(row) != 0)
        if not len(used):
            found.append(Estimate(_NAN, _NAN, NO_INTERVAL, 0))
            continue
        mean, patients = float(row[used] @ means[used]), int(present[used].min())
        error = float(_errors(clusters, row, used, means[None], everyone)[0]) if patients > 1 else _NAN
        interval = NO_INTERVAL
        if patients >= FEWEST_PATIENTS:
            errors = _errors(clusters, row, used, resampled, draws)
            interval = _studentised(mean, error, resampled[:, used] @ row[used] - mean, errors)
        found.append(Estimate(mean, error, interval, patients))
    return found


def _errors(clusters: Clusters, row: Array, used: Array, means: Array, draws: Array) -> Array:
    """(R,) standard error of a row in each resample, from what every patient adds to it."""
    share = row[used] * quotient(np.ones_like(means[:, used]), draws @ clusters.counts[:, used])
    added = share @ clusters.sums[:, used].T - (share * means[:, used]) @ clusters.counts[:, used].T
    size = draws.sum(axis=1)
    return np.asarray(np.sqrt((draws * added**2).sum(axis=1) * size / np.maximum(size - 1, 1)))


def _studentised(mean: float, error: float, shifts: Array, errors: Array) -> Interval:
    if error <= 1e-12:
        return Interval(mean, mean)
    known = np.isfinite(shifts) & (errors > 1e-12)
    low, high = np.quantile(
        shifts[known] / errors[known], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf"
    )
    return Interval(mean - float(high) * error, mean - float(low) * error)


def seed_error(*seed_means: Array) -> SeedError:
    """Error of a difference of means (or of one mean) that comes from the trainings: (seeds,) means of each run."""
    variances, shares = [], []
    for means in seed_means:
        finite = means[np.isfinite(means)]
        if len(finite) < 2:
            return SeedError(_NAN, _NAN)
        variances.append(float(finite.var(ddof=1)) / len(finite))
        shares.append(variances[-1] ** 2 / (len(finite) - 1))
    total = sum(variances)
    return SeedError(math.sqrt(total), total**2 / sum(shares) if sum(shares) > 0 else math.inf)


def with_seeds(mean: float, interval: Interval, seeds: SeedError) -> Interval:
    """The interval that counts both levels, patients and trainings; unchanged where no training is repeated.

    Source
        Zou and Donner, Statistics in Medicine 2008: the distances to the limits of independent parts add up in square.
    """
    if not math.isfinite(seeds.error):
        return interval
    reach = seeds.error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, seeds.freedom))
    return Interval(
        mean - math.hypot(mean - interval.low, reach), mean + math.hypot(interval.high - mean, reach)
    )


def two_level_p(estimate: Estimate, seeds: SeedError) -> float:
    """Two-sided p of a t test in which patients and trainings both vary; NaN where no training is repeated."""
    error = math.hypot(estimate.error, seeds.error)
    if not math.isfinite(error):
        return _NAN
    if error <= 1e-12:
        return 1.0 if abs(estimate.mean) <= 1e-12 else 0.0
    parts = estimate.error**4 / max(estimate.patients - 1, 1) + (
        seeds.error**4 / seeds.freedom if seeds.error else 0.0
    )
    return float(2 * scipy.stats.t.sf(abs(estimate.mean) / error, error**4 / parts))


def patient_means(values: Array, patients: Array) -> Array:
    """(N,) values of the cases -> (G,) means of the patients; NaN for a patient without a value."""
    clusters = Clusters.of(values[:, None], patients)
    return quotient(clusters.sums, clusters.counts)[:, 0]


def defined_mean(values: Array, axis: int) -> Array:
    """Mean of the finite values along an axis; NaN where there are none."""
    finite = np.isfinite(values)
    return quotient(np.where(finite, values, 0.0).sum(axis=axis), finite.sum(axis=axis))


def quotient(total: Array, count: Array) -> Array:
    """total / count; NaN where nothing was counted."""
    result = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=result, where=count > 0)
    return result


def defined_sd(values: Array) -> float:
    """Standard deviation (n - 1) of the finite values; NaN for fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else _NAN


def signed_rank_p(differences: Array) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; zeros are dropped, as Wilcoxon did.

    NaN without any pair, 1 if all pairs are equal.
    """
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit, and the test goes by ranks: equal must be equal.
    finite = np.round(differences[np.isfinite(differences)], 12)
    if not len(finite):
        return float("nan")
    moved = finite[finite != 0]
    return float(scipy.stats.wilcoxon(moved).pvalue) if len(moved) else 1.0


def holm(p_values: Array) -> Array:
    """Holm's step-down correction of (M,) p values; NaN stays NaN and is not counted as a test.

    Source
        Holm, Scandinavian Journal of Statistics 1979.

    Example
        >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected
