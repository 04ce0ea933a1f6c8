"""Weights that rise during the training."""

from __future__ import annotations

import math

from labelwise.types import Progress


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


def stair_ramp(progress: Progress, fraction: float, interval: float, *, from_one: bool = False) -> float:
    """The sigmoid ramp over a part of the training, in stairs: the codes of the LA benchmark change it every 150 steps.

    Arguments
        fraction    of the training over which the ramp rises
        interval    of the training, the length of a stair; a stair has at least one step
        from_one    the first step counts as 1, as in some codes

    Example
        >>> [round(stair_ramp(Progress(step, 400), 1.0, 0.025), 3) for step in (9, 10, 210, 399)]
        [0.007, 0.009, 0.324, 0.997]
    """
    length = max(round(interval * progress.total), 1)
    return sigmoid_ramp((progress.step + from_one) // length * length, fraction * progress.total)
