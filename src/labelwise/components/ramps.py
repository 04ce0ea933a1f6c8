"""Weights that rise during the training, and the settings that methods have in common for them."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, NonNegativeFloat
from pydantic.dataclasses import dataclass

from labelwise.types import Progress

Part = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ramp:
    """How the weight of a term rises; the settings of a method that has one begin with these."""

    ramp_fraction: NonNegativeFloat = 1.0  # part of the training over which the weight rises; 0: constant
    ramp_interval: Part = (
        0.025  # part of the training between two changes of it: 150 of 6000 steps; 0: every step
    )

    counts_from_one: ClassVar[bool] = False  # the first step is 1, as in some codes

    def ramp(self, progress: Progress) -> float:
        """The sigmoid ramp of the step, in stairs, in [0, 1]."""
        return stair_ramp(progress, self.ramp_fraction, self.ramp_interval, from_one=self.counts_from_one)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Consistency(Ramp):
    """The weight of a consistency term."""

    consistency_weight: NonNegativeFloat = 0.1  # w at the end of the ramp

    def weight(self, progress: Progress) -> float:
        """w(t): the weight at this step."""
        return self.consistency_weight * self.ramp(progress)


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
