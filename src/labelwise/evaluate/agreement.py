"""How two ways of measuring a volume agree, and how chances agree with what happens.

Source
    Limits of agreement: Bland and Altman, Lancet 1986. Expected calibration error: Naeini et al., AAAI 2015; Guo et
    al., ICML 2017.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from labelwise.types import Array

BINS = 15


class Agreement(NamedTuple):
    """Prediction minus reference over scans."""

    bias: float  # mean of the differences; NaN without a pair
    low: float  # bias - 1.96 standard deviations: 95 % of scans lie between; NaN for fewer than two pairs
    high: float
    n: int  # pairs


def limits_of_agreement(predicted: Array, reference: Array) -> Agreement:
    """Bias and 95 % limits of agreement of two series (N,) of the same unit; pairs with NaN are left out."""
    differences = np.asarray(predicted, float) - np.asarray(reference, float)
    differences = differences[np.isfinite(differences)]
    if not differences.size:
        return Agreement(math.nan, math.nan, math.nan, 0)
    bias = float(differences.mean())
    spread = 1.96 * float(differences.std(ddof=1)) if differences.size > 1 else math.nan
    return Agreement(bias, bias - spread, bias + spread, int(differences.size))


def calibration_error(chances: Array, happened: Array, *, bins: int = BINS) -> float:
    """Expected calibration error, 0..1: how far chances are from how often it happens, over bins of equal width.

        sum over bins b of |b| / N * | mean of `happened` in b - mean of `chances` in b |

    NaN without a value.

    Shapes
        chances     (N,)  0..1
        happened    (N,)  bool
    """
    chances, happened = np.asarray(chances, float).ravel(), np.asarray(happened).ravel()
    if not chances.size:
        return math.nan
    places = np.minimum((chances * bins).astype(int), bins - 1)
    said = np.bincount(places, weights=chances, minlength=bins)
    came = np.bincount(places, weights=happened, minlength=bins)
    return float(np.abs(came - said).sum() / chances.size)
