"""How undecided a prediction is, voxel by voxel."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from labelwise.losses.reduction import full_precision

# Below exp(-100) a probability adds nothing in float32; the bound keeps 0 * inf out.
SMALLEST_LOG = -100.0


def voxel_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy over the classes: 0 where one class is certain, ln C where all are equal.

    Shapes
        log_probabilities   (B, C, *S)  float, as from log_softmax; -inf is allowed
        returns             (B, *S)     in nats
    """
    log_probabilities = full_precision(log_probabilities)
    return -(log_probabilities.exp() * log_probabilities.clamp_min(SMALLEST_LOG)).sum(dim=1)


def mean_log_probability(passes: Iterable[Tensor]) -> Tensor:
    """Log of the mean probability over several predictions, of which only a running sum is kept.

    Shapes
        passes      at least one (B, C, *S) float, as from log_softmax
        returns     (B, C, *S)
    """
    count = 0
    total: Tensor | None = None
    for log_probabilities in passes:
        log_probabilities = full_precision(log_probabilities)
        total = log_probabilities if total is None else torch.logaddexp(total, log_probabilities)
        count += 1
    assert total is not None, "a mean needs at least one pass"
    return total - math.log(count)
