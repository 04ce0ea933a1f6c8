"""A memory of the last rows that were put in; the oldest ones are overwritten."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from labelwise.components.batches import of_all_ranks


class RingMemory(nn.Module):
    """For each of G groups, the last `sizes[g]` rows of D numbers.

    `rows` (G, largest size, D) is a buffer: saved, resumed, without a gradient. Which rows hold something is `filled`;
    the others are zero. What a step wants to remember is written by `put`, after the step.
    """

    rows: Tensor
    written: Tensor
    sizes: Tensor

    def __init__(self, sizes: Sequence[int], features: int, *, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.smallest = min(sizes)
        self.register_buffer("rows", torch.zeros(len(sizes), max(sizes), features, dtype=dtype))
        self.register_buffer("written", torch.zeros(len(sizes), dtype=torch.int64))  # rows put in so far
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)

    @property
    def filled(self) -> Tensor:
        """(G,) int64: how many rows hold something; they are the first ones."""
        return self.written.minimum(self.sizes)

    @property
    def is_filled(self) -> Tensor:
        """(G, largest size) bool."""
        return torch.arange(self.rows.shape[1], device=self.rows.device) < self.filled.unsqueeze(1)

    def read(self, numbers: Tensor) -> Tensor:
        """The rows (G, ..., D) of these numbers (G, ...); any row for a number beyond the memory."""
        size = self.rows.shape[1]
        first = torch.arange(len(numbers), device=numbers.device) * size
        place = numbers.clamp(0, size - 1) + first.view(-1, *(1 for _ in numbers.shape[1:]))
        return self.rows.flatten(0, 1).index_select(0, place.flatten()).view(*numbers.shape, -1)

    @torch.no_grad()
    def put(self, rows: Tensor, wanted: Tensor) -> None:
        """Remember the wanted rows of all ranks, in their order; of more than the smallest size, the last ones.

        Every rank must call this equally often, with equal shapes; what it wants may differ. The memories of all ranks
        stay equal.

        Shapes
            rows        (G, n, D)   float
            wanted      (G, n)      bool
        """
        rows, wanted = of_all_ranks(rows.to(self.rows.dtype), dim=1), of_all_ranks(wanted, dim=1)
        count = min(rows.shape[1], self.smallest)
        order = wanted.byte().argsort(dim=1, stable=True)[:, -count:]  # the wanted ones come last
        rows, wanted = rows.gather(1, _columns(order, rows)), wanted.gather(1, order)
        total = wanted.sum(dim=1)
        first = self.written - (
            count - total
        )  # unwanted rows stand for the youngest of the memory, unchanged
        place = first.unsqueeze(1) + torch.arange(count, device=rows.device)
        place = _columns(place % self.sizes.unsqueeze(1), rows)
        rows = torch.where(wanted.unsqueeze(2), rows, self.rows.gather(1, place))
        self.rows.scatter_(1, place, rows)  # no two go to one place
        self.written += total


def _columns(index: Tensor, rows: Tensor) -> Tensor:
    """(G, n) numbers of rows, for all D features: (G, n, D)."""
    return index.unsqueeze(2).expand(-1, -1, rows.shape[2])
