"""How far two predictions are apart, over the voxels where they should agree.

Neither argument is detached here: give a target that came without a gradient, or `target.detach()`.
"""

from __future__ import annotations

from torch import Tensor

from labelwise.losses.reduction import full_precision, masked_mean


def squared_difference(p: Tensor, q: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean squared difference over classes and over the voxels of `where` of the whole batch.

    ``sum over where of (p - q)^2 / (C * number of voxels in where)``; exactly 0 if `where` is empty.

    Shapes
        p, q        (B, C, *S)  float, usually probabilities
        where       (B, *S)     bool; None means everywhere
        returns     ()

    Source
        Yu et al., MICCAI 2019 (UA-MT), official code: the sum is divided by C, unlike in the paper's formula.
    """
    per_voxel = (full_precision(p) - full_precision(q)).square().sum(dim=1)
    mean = per_voxel.mean() if where is None else masked_mean(per_voxel, where)
    return mean / p.shape[1]
