"""Means over what is valid: always a number, always part of the graph, exactly 0 if nothing is valid."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """`values` in float32 if they came in half precision, else as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` over all entries where the mask `where` of the same shape is true; else 0.

    Shapes
        values, where   any, equal; float and bool
        returns         ()
    """
    return torch.where(where, values, 0).sum() / where.sum().clamp_min(1)


def mean_over_cases(values: Tensor, where: Tensor) -> Tensor:
    """Mean within each case first, then over the cases in which anything is valid; else 0.

    Shapes
        values, where   (B, ...), equal; float and bool
        returns         ()
    """
    counts = where.flatten(1).sum(dim=1)
    sums = torch.where(where, values, 0).flatten(1).sum(dim=1)
    return masked_mean(sums / counts.clamp_min(1), counts > 0)
