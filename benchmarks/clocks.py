"""Processor and elapsed time of work that is done again and again, the sides of a comparison in turns.

Processor time does not count what else the machine does, elapsed time is what a user waits: both stand in a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")


class Seconds(NamedTuple):
    """What some work took, by both clocks; of all threads of this process."""

    processor: float
    elapsed: float


def timed(work: Callable[[], Result]) -> tuple[Result, Seconds]:
    """What it gives, and what it took."""
    processor, elapsed = time.process_time(), time.perf_counter()
    result = work()
    return result, Seconds(time.process_time() - processor, time.perf_counter() - elapsed)


def summary(
    measured: Sequence[Seconds], *, per_second: float = 1, digits: int = 2
) -> dict[str, dict[str, float]]:
    """Median and quartiles by each clock, in seconds, or in parts of which a second has `per_second`."""
    return {
        clock: dict(
            zip(
                ("low", "median", "high"),
                np.percentile(np.multiply(values, per_second), (25, 50, 75)).round(digits).tolist(),
                strict=True,
            )
        )
        for clock, values in zip(Seconds._fields, zip(*measured, strict=True), strict=True)
    }


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1
) -> dict[str, list[Seconds]]:
    """Seconds of each side in each round, after rounds that warm up."""
    measured: dict[str, list[Seconds]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, work in sides.items():
            seconds = timed(work)[1]
            if number >= warm_up:
                measured[name].append(seconds)
    return measured
