"""What several processes of one training remember together."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


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
