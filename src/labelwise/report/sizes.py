"""A metric by the size of the structure: small, middle and large ones, each a third of the cases of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from labelwise.report.statistics import defined_mean
from labelwise.types import Array

NAMES = ("small", "middle", "large")
FEWEST_CASES = 6  # two in each third


class Stratum(NamedTuple):
    """The cases of one class whose structure has about one size."""

    class_name: str
    name: str  # one of NAMES
    low_ml: float
    high_ml: float
    cases: int
    means: Mapping[str, float]  # run -> mean over the cases with a value; NaN without any


@dataclass(frozen=True)
class Strata:
    """What `by_size` found for one metric, with the points that it was made of."""

    metric: str
    strata: tuple[Stratum, ...]
    volumes_ml: Mapping[str, Array]  # class -> (N,) reference volume of each case; NaN = unknown
    values: Mapping[tuple[str, str], Array]  # run and class -> (N,) value of each case; NaN = undefined


def by_size(
    metric: str, classes: Sequence[str], volumes_ml: Array, values: Mapping[str, Array]
) -> Strata | None:
    """Split the cases of each class into thirds by the volume of its reference; None if no class has enough cases.

    Cases in which the structure is absent (volume 0) belong to no third.

    Shapes
        volumes_ml  (N, C) volume of the reference; NaN where it is not known
        values      run -> (N, C) values of the metric, seeds averaged; NaN = undefined
    """
    found = []
    for c, name in enumerate(classes):
        present = np.flatnonzero(np.isfinite(volumes_ml[:, c]) & (volumes_ml[:, c] > 0))
        if len(present) < FEWEST_CASES:
            continue
        ordered = present[np.argsort(volumes_ml[present, c], kind="stable")]
        for third, cases in zip(NAMES, np.array_split(ordered, 3), strict=True):
            sizes = volumes_ml[cases, c]
            means = {run: float(defined_mean(table[cases, c], axis=0)) for run, table in values.items()}
            found.append(Stratum(name, third, float(sizes.min()), float(sizes.max()), len(cases), means))
    if not found:
        return None
    by_class = {name: volumes_ml[:, c] for c, name in enumerate(classes)}
    points = {(run, name): table[:, c] for run, table in values.items() for c, name in enumerate(classes)}
    return Strata(metric, tuple(found), by_class, points)
