"""Equally many voxels of every class, drawn without waiting for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DrawnVoxels(NamedTuple):
    """G groups with n places each."""

    voxels: Tensor  # (G, n) int64: numbers of voxels in [0, N); any voxel where a place is not filled
    filled: Tensor  # (G, n) bool


def draw_from_groups(groups: Tensor, num_groups: int, count: int) -> DrawnVoxels:
    """Up to `count` voxels of each group: all of a group that has no more, else one of each of `count` equal parts.

    One sort finds the voxels of all groups, so time and memory hardly depend on the number of groups.

    Shapes
        groups      (N,)    integers; those outside [0, num_groups) belong to no group

    Example
        >>> drawn = draw_from_groups(torch.tensor([1, 0, 1, 7, 1]), num_groups=2, count=3)
        >>> drawn.voxels[1].tolist(), drawn.filled.tolist()
        ([0, 2, 4], [[False, False, True], [True, True, True]])
    """
    ordered, order = groups.sort(stable=True)
    edges = torch.searchsorted(
        ordered, torch.arange(num_groups + 1, dtype=groups.dtype, device=groups.device)
    )
    sizes = edges.diff().unsqueeze(1)
    place = torch.arange(count, device=groups.device)
    low, high = place * sizes // count, (place + 1) * sizes // count
    length = (high - low).clamp_min(1)
    rank = low + (torch.rand(low.shape, device=groups.device) * length).long().minimum(length - 1)
    filled = high > low  # the part is not empty
    first = edges[:-1].unsqueeze(1)
    voxels = order[(first + rank).clamp_max(len(groups) - 1)]
    # All kinds of voxels for the others: gradients of many rows of one voxel are added up slowly.
    return DrawnVoxels(voxels.where(filled, place % len(groups)), filled)
