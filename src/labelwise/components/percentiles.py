"""Percentiles of the values that a mask chooses, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PERCENTILE_SAMPLE = 1_000_000  # values that are sorted


def percentiles(values: Tensor, where: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Percentiles of the values inside `where`, interpolated, of a random million if there are more; inf if none."""
    values, where = values.flatten(), where.flatten()
    if len(values) > PERCENTILE_SAMPLE:
        drawn = torch.randint(len(values), (PERCENTILE_SAMPLE,), device=values.device)
        values, where = values[drawn], where[drawn]
    ordered = values.masked_fill(~where, torch.inf).sort().values
    last = (where.sum() - 1).clamp_min(0)

    def at(percent: float) -> Tensor:
        place = last * (percent / 100)
        below, above = ordered[torch.stack([place.floor(), place.ceil()]).long()].unbind()
        return torch.where(below < above, below + (above - below) * place.frac(), below)

    return [at(percent) for percent in percents]
