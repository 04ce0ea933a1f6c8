"""U-Mix: the most uncertain patches of an image are covered by its most certain ones.

The image is cut into a regular grid of L patches, numbered in the order of memory (last axis fastest). Everything
that belongs to the image, such as its labels, is rearranged by the same map, and nothing leaves its own image.

Source
    Shen et al., IJCAI 2023 (UCMT), https://arxiv.org/abs/2301.04465
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from labelwise.errors import ConfigError
from labelwise.losses.partial import full_precision


def patch_shape(shape: Sequence[int], cuts: int) -> tuple[int, ...]:
    """Sides of the patches of an image: the largest that divide it, and cut each axis into at least `cuts` parts.

    An axis with fewer than `cuts` voxels is cut into single voxels.

    Example
        >>> patch_shape((112, 112, 80), 8), patch_shape((30, 6), 8)
        ((14, 14, 10), (3, 1))
    """
    return tuple(
        max(side for side in range(1, max(length // cuts, 1) + 1) if length % side == 0) for length in shape
    )


def patch_means(values: Tensor, patch: Sequence[int]) -> Tensor:
    """Mean of a map over each patch: (B, *S) -> (B, L) in float32 or better."""
    return _cut(full_precision(values).unsqueeze(1), patch).mean(dim=2)


def certain_over_uncertain(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Which patch every patch is filled with, given how uncertain two networks are about each.

    The `count` patches that are most uncertain for the first network receive those most certain for the second one,
    then the other way round. All are read as they were before; the second filling wins where both want a patch.

    Shapes
        first, second   (B, L) float, mean uncertainty of each patch
        returns         (B, L) int64, number of the patch that is read; its own where nothing changes

    Errors
        ConfigError     fewer than 2 `count` patches

    Example
        >>> first, second = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 4.0, 3.0]])
        >>> certain_over_uncertain(first, second, 1)  # 0 <- 0 (certain for the second), 2 <- 3 (for the first)
        tensor([[0, 1, 3, 3]])
    """
    patches = first.shape[1]
    if patches < 2 * count:
        raise ConfigError(
            "the image is cut into too few patches for U-Mix",
            found=f"{patches} patches",
            expected=f"at least {2 * count}: twice as many as are covered",
            do="cut the image more often, or cover fewer patches",
        )
    source = torch.arange(patches, device=first.device).repeat(len(first), 1)
    orders = [values.argsort(dim=1, descending=True, stable=True) for values in (first, second)]
    for mine, theirs in (orders, orders[::-1]):
        source = source.scatter(1, mine[:, :count], theirs[:, patches - count :])
    return source


def rearrange(values: Tensor, source: Tensor, patch: Sequence[int]) -> Tensor:
    """Fill every patch with the content of its source.

    Shapes
        values      (B, *S) or (B, K, *S), any type; the sides of S are multiples of those of `patch`
        source      (B, L)  int64
        returns     as `values`
    """
    channels = values if values.ndim == len(patch) + 2 else values.unsqueeze(1)
    blocks = _cut(channels, patch)
    moved = blocks.gather(1, source.unsqueeze(2).expand_as(blocks))
    return _join(moved, channels.shape, patch).view_as(values)


def _cut(values: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, K, *S) -> (B, L, K * voxels of a patch)."""
    dims = len(patch)
    grid = [length // side for length, side in zip(values.shape[2:], patch, strict=True)]
    pairs = [size for pair in zip(grid, patch, strict=True) for size in pair]
    apart = values.reshape(*values.shape[:2], *pairs)
    numbers, insides = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    return apart.permute(0, *numbers, 1, *insides).reshape(len(values), prod(grid), -1)


def _join(blocks: Tensor, shape: torch.Size, patch: Sequence[int]) -> Tensor:
    """The inverse of `_cut`, for values of `shape`."""
    dims = len(patch)
    grid = [length // side for length, side in zip(shape[2:], patch, strict=True)]
    apart = blocks.reshape(shape[0], *grid, shape[1], *patch)
    together = [
        axis for pair in zip(range(1, 1 + dims), range(2 + dims, 2 + 2 * dims), strict=True) for axis in pair
    ]
    return apart.permute(0, 1 + dims, *together).reshape(shape)
