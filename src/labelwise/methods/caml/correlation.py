"""Two networks see the same voxel as similar to the same remembered vectors.

n voxels (rows), m remembered vectors (columns), F features.

Source
    Gao et al., MICCAI 2023 (CAML, omni-correlation consistency), https://arxiv.org/abs/2307.06312.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.partial import full_precision, masked_mean


def log_profile(rows: Tensor, columns: Tensor, filled: Tensor, temperature: float = 0.1) -> Tensor:
    """Log of the softmax over the columns of ``rows @ columns.T / temperature``: raw dot products, in float32.

    Shapes
        rows        (n, F)
        columns     (m, F)
        filled      (m,) bool: columns that exist; the others get no share
        returns     (n, m)  finite, also where there is no share
    """
    rows, columns = full_precision(rows), full_precision(columns)
    # Finite: 0 shares times the logarithm of 0 must be 0.
    nothing = torch.zeros_like(columns[:, 0]).masked_fill(~filled, torch.finfo(torch.float32).min / 4)
    with torch.autocast(rows.device.type, enabled=False):
        return F.linear(rows / temperature, columns, nothing).log_softmax(dim=1)


def correlation_loss(
    profile: Tensor, target: Tensor, where: Tensor, *, floor: float = 1e-8, detach_target: bool = False
) -> Tensor:
    """Cross-entropy of one profile to the other: ``-mean over rows of sum_j R'_j ln (R_j + floor)``.

    Shapes
        profile, target     (n, m)  logarithms, as from `log_profile`
        where               (n,) bool: rows that count
        floor               below it a share has no gradient; 0 for the exact logarithm
        detach_target       no gradient through the target (the official code has one)
        returns             ()  exactly 0 with a zero gradient if no row counts
    """
    if floor:
        profile = (profile.exp() + floor).log()
    shares = (target.detach() if detach_target else target).exp()
    return masked_mean(-(shares * profile).sum(dim=1), where)
