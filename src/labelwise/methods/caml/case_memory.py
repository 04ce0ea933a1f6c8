"""A memory of vectors for each class that remembers from which case they came.

E entries, N slots, C classes, R vectors of each case and class, F features.

Source
    Gao et al., MICCAI 2023 (CAML), https://arxiv.org/abs/2307.06312: there all vectors of a case are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labelwise.components.batches import of_all_ranks


class Entries(NamedTuple):
    """What cases have to say."""

    cases: Tensor  # (E,) int64, from `case_numbers`
    vectors: Tensor  # (E, C, R, F) float32
    counts: Tensor  # (E, C) int64: from how many vectors the first min(count, R) were drawn, all alike
    valid: Tensor  # (E,) bool: others change nothing


class Drawn(NamedTuple):
    """Vectors of all classes, class after class."""

    vectors: Tensor  # (C * n, F)
    filled: Tensor  # (C * n,) bool: whether there is a vector


class CaseMemory(nn.Module):
    """The last entry of each of the N cases that were written last. Equal on all ranks."""

    vectors: Tensor
    counts: Tensor
    cases: Tensor
    written: Tensor

    def __init__(self, cases: int, num_classes: int, vectors: int, features: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(cases, num_classes, vectors, features))
        self.register_buffer("counts", torch.zeros(cases, num_classes, dtype=torch.int64))
        self.register_buffer("cases", torch.zeros(cases, dtype=torch.int64))
        self.register_buffer("written", torch.zeros(cases, dtype=torch.int64))  # when; 0: never

    @torch.no_grad()
    def write(self, entries: Entries) -> None:
        """Replace what is known of these cases, on all ranks. Every rank must call this equally often."""
        for case, vectors, counts, valid in zip(*map(of_all_ranks, entries), strict=True):
            known = (self.cases == case) & (self.written > 0)
            slot = torch.where(known.any(), known.int().argmax(), self.written.argmin()).unsqueeze(0)
            now = self.written.max() + 1
            for buffer, value in (
                (self.vectors, vectors),
                (self.counts, counts),
                (self.cases, case),
                (self.written, now),
            ):
                buffer.index_copy_(0, slot, torch.where(valid, value, buffer.index_select(0, slot)))

    @torch.no_grad()
    def draw(self, count: int, minimum: int) -> Drawn:
        """Up to `count` vectors of each class without replacement, as if from all that the cases ever offered.

        A case that offered more is drawn more often. A class with fewer than `minimum` vectors gives none. The result
        is a copy: the memory may change before it is used.
        """
        slots, classes, room, features = self.vectors.shape
        stored = self.counts.clamp_max(room)
        filled = torch.arange(room, device=stored.device) < stored.unsqueeze(2)
        share = (
            (self.counts / stored.clamp_min(1)).log().unsqueeze(2)
        )  # each stored vector stands for so many
        # The largest of log weight + Gumbel noise: a draw without replacement, for all classes at once.
        noise = -torch.empty_like(filled, dtype=torch.float32).exponential_().log()
        keys = torch.where(filled, share + noise, -torch.inf).transpose(0, 1).flatten(1)
        best = keys.topk(min(count, slots * room), dim=1)
        enough = stored.sum(dim=0).unsqueeze(1) >= minimum
        place = torch.arange(classes, device=stored.device).unsqueeze(1)
        slot = torch.div(best.indices, room, rounding_mode="floor")
        vectors = self.vectors[slot, place, best.indices % room]
        return Drawn(vectors.view(-1, features), ((best.values > -torch.inf) & enough).flatten())


def case_numbers(case_ids: Sequence[str], device: torch.device) -> Tensor:
    """A number of 63 bits for each case, the same in every run: (B,) int64, without waiting for the device."""
    numbers = [
        int.from_bytes(blake2b(case.encode(), digest_size=8).digest(), "little") >> 1 for case in case_ids
    ]
    index = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return index.to(device, non_blocking=True)
