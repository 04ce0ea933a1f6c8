"""Some cases of a batch, chosen without waiting for the GPU, and its voxels as rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def take(values: Tensor, rows: Sequence[int]) -> Tensor:
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
