"""Means, intervals and tests over tables with holes: NaN is an undefined value and never counts.

Legend: N cases, C classes, R resamples.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import wilcoxon

from labelwise.types import Array


def defined_mean(values: Array, axis: int) -> Array:
    """Mean of the finite values along an axis; NaN where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    return _quotient(total, count)


def _quotient(total: Array, count: Array) -> Array:
    quotient = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=quotient, where=count > 0)
    return quotient


def defined_sd(values: Array) -> float:
    """Standard deviation (n - 1) of the finite values; NaN for fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")


def bootstrap_means(values: Array, resamples: int, seed: int) -> Array:
    """Class means of cases drawn with replacement.

    A case is drawn as a whole, so the classes of one case stay together.

    Shapes
        values      (N, C)  NaN = undefined
        returns     (R, C)  NaN where no drawn case has a value
    """
    finite = np.isfinite(values)
    values, finite = values[finite.any(axis=1)], finite[finite.any(axis=1)]
    cases = len(values)
    if not cases:
        return np.full((resamples, values.shape[1]), np.nan)
    # How often each case is drawn says all about a resample, and turns the resampling into one product.
    draws = (
        np.random.default_rng(seed)
        .multinomial(cases, np.full(cases, 1 / cases), size=resamples)
        .astype(float)
    )
    total, count = draws @ np.where(finite, values, 0.0), draws @ finite
    return _quotient(total, count)


def percentile_interval(resampled: Array, confidence: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle `confidence` of the (R,) resampled values."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def signed_rank_p(differences: Array) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; zeros are dropped, as Wilcoxon did.

    NaN without any pair, 1 if all pairs are equal.
    """
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit, and the test goes by ranks: equal must be equal.
    finite = np.round(differences[np.isfinite(differences)], 12)
    if not len(finite):
        return float("nan")
    moved = finite[finite != 0]
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0


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
