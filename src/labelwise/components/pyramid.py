"""Labels at the sizes of a network's coarser outputs, for losses at several scales (deep supervision)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def labels_at(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at another size by nearest neighbours: voxel i of an axis is voxel floor(i * before / after) of `labels`.

    Nothing is mixed, so every value, IGNORE included, stays what it was. The index is exact: it is computed in
    integers, in 2D as in 3D. At their own size the labels come back as they are, not as a copy.

    Shapes
        labels      (B, ..., *S)    any type; the last axes, as many as `size` has, are spatial
        size        (*S',)          may be smaller or larger than S, axis by axis
        returns     (B, ..., *S')

    Example
        >>> labels_at(torch.tensor([[0, 1, 2, 3, 4]]), [3])
        tensor([[0, 1, 3]])
    """
    for axis, after in zip(range(-len(size), 0), size, strict=True):
        before = labels.shape[axis]
        if before != after:
            index = torch.arange(after, device=labels.device) * before // after
            labels = labels.index_select(axis, index)
    return labels
