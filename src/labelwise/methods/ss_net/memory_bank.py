"""A memory of the best vectors of each class, anew with every step that has some.

K classes, E places for each, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import of_all_ranks


class Bank(NamedTuple):
    """What is remembered of each class."""

    vectors: Tensor  # (K, E, F) float32, zeros behind the first `counts`
    counts: Tensor  # (K,) int64

    @property
    def centres(self) -> Tensor:
        """(K, F) mean of the vectors, each divided by its length first; 0 for a class without vectors."""
        directions = F.normalize(self.vectors, dim=2)
        return directions.sum(dim=1) / self.counts.clamp_min(1).unsqueeze(1)


class MemoryBank(nn.Module):
    """Holds a `Bank` as buffers. It is equal on all ranks."""

    vectors: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, places: int, features: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_classes, places, features))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def updated(self, vectors: Tensor, keys: Tensor, wanted: Tensor) -> Bank:
        """What the memory becomes by these vectors of all ranks: those with the largest keys.

        A class of which no vector is wanted keeps what it has. The memory itself changes by `remember` only. Every
        rank must call this equally often, with equal shapes.

        Shapes
            vectors     (K, n, F)   float32
            keys        (K, n)      float, finite
            wanted      (K, n)      bool
        """
        vectors, keys = self._best(vectors, keys.masked_fill(~wanted, -torch.inf))
        vectors, keys = self._best(of_all_ranks(vectors, dim=1), of_all_ranks(keys, dim=1))
        found = keys > -torch.inf
        missing = self.vectors.shape[1] - keys.shape[1]
        vectors = F.pad(vectors * found.unsqueeze(2), (0, 0, 0, missing))
        counts = found.sum(dim=1)
        return Bank(
            torch.where((counts > 0).view(-1, 1, 1), vectors, self.vectors),
            torch.where(counts > 0, counts, self.counts),
        )

    def _best(self, vectors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors with the largest keys, in falling order, and their keys."""
        best = keys.topk(min(self.vectors.shape[1], keys.shape[1]), dim=1)
        index = best.indices.unsqueeze(2).expand(-1, -1, vectors.shape[2])
        return vectors.gather(1, index), best.values

    @torch.no_grad()
    def remember(self, bank: Bank) -> None:
        """Replace what is remembered."""
        self.vectors.copy_(bank.vectors)
        self.counts.copy_(bank.counts)
