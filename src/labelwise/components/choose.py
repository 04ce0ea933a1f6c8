"""Rows, voxels and scales of a batch, chosen without waiting for the GPU; and sums over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed


def select_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """``values[rows]`` for row numbers that are known on the host.

    A list as an index would be copied to the device, and the host would wait for that copy and all work before
    it. From pinned memory it need not wait.

    Shapes
        values      (B, ...)
        returns     (len(rows), ...)
    """
    index = torch.tensor(rows, dtype=torch.int64, pin_memory=values.is_cuda)
    return values.index_select(0, index.to(values.device, non_blocking=True))


def as_pixels(features: Tensor) -> Tensor:
    """(B, D, *S) -> (B * S, D), case by case; no copy if the channels lie last in memory."""
    return features.movedim(1, -1).flatten(0, -2)


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


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, without a gradient; a copy of `values` where there is only one.

    A memory that changes by sums over all ranks is the same on every rank: a resumed run, which gives every rank the
    memories of rank 0, loses nothing. Every rank must call this equally often.

    Shapes
        values, returns     any, the same on all ranks
    """
    total = values.detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total


def of_all_ranks(values: Tensor, dim: int = 0) -> Tensor:
    """The `values` of all ranks, one after the other along an axis, without a gradient.

    Shapes
        values      any, the same on all ranks
        returns     `dim` is as many times longer as there are ranks
    """
    values = values.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    gathered = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, values.contiguous())
    return torch.cat(gathered, dim)


def as_if_one_batch(sums: Tensor) -> Tensor:
    """Sums over the batches of all ranks, whose gradient flows into the batch of this rank only.

    For losses of sums over the batch (batch Dice): their value is that of one large batch.

    Shapes
        sums, returns       any, the same on all ranks
    """
    return sums + (sum_over_ranks(sums) - sums.detach())
