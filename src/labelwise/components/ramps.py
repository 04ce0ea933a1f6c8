"""Weights that rise during the training."""

from __future__ import annotations

import math


def sigmoid_ramp(step: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t = step / length clipped to [0, 1]; 1 if the length is 0.

    Source
        Laine & Aila, ICLR 2017; G(t; T) of the LA benchmark.

    Example
        >>> [round(sigmoid_ramp(step, 40), 4) for step in (0, 20, 40, 100)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    if length == 0:
        return 1.0
    remaining = 1 - min(max(step, 0), length) / length
    return math.exp(-5 * remaining**2)
