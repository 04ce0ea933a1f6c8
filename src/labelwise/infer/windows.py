"""Where the windows of a sliding window lie, and what each place in a window weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwise.errors import ConfigError

Size = tuple[int, int, int]
Blending = Literal["gaussian", "constant"]


def window_starts(size: int, patch: int, stride: int) -> tuple[int, ...]:
    """First voxels of the windows along one axis: every `stride`, the last one flush with the end.

    Example
        >>> window_starts(size=10, patch=4, stride=4)
        (0, 4, 6)
    """
    return tuple(min(index * stride, size - patch) for index in range(ceil((size - patch) / stride) + 1))


def blending_weight(patch_size: Size, blending: Blending) -> Tensor:
    """(1, *patch) weight of a score by its place in the window, 1 in the middle.

    The Gaussian has a standard deviation of an eighth of the patch and a floor of 0.001: what only the rims
    of windows see, the rim of the scan, must not be left to rounding.
    """
    weight = torch.ones(1, *patch_size)
    if blending == "gaussian":
        for axis, length in enumerate(patch_size, start=1):
            place = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
            shape = [1, 1, 1, 1]
            shape[axis] = length
            weight = weight * torch.exp(place.square() / (-2 * (length / 8) ** 2)).reshape(shape)
    return weight.clamp_min(1e-3)


def pad_to_patch(image: Tensor, patch_size: Size) -> tuple[Tensor, tuple[slice, slice, slice]]:
    """Pad (M, X, Y, Z) with zeros on both sides to at least the patch; returns also where the scan lies."""
    size = image.shape[1:]
    missing = [max(patch - length, 0) for length, patch in zip(size, patch_size, strict=True)]
    if any(missing):
        image = F.pad(image, [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)])
    x, y, z = (slice(gap // 2, gap // 2 + length) for gap, length in zip(missing, size, strict=True))
    return image, (x, y, z)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one scan, in rows along the axis on which the scan is longest, measured in patches."""

    size: Size  # of the padded scan
    patch: Size
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # along X, Y, Z

    @classmethod
    def of(cls, size: Sequence[int], patch: Size, stride: Size | None, overlap: float) -> WindowGrid:
        """Windows `stride` voxels apart, or so far apart that they share the part `overlap`.

        Errors
            ConfigError     the stride leaves gaps between the windows
        """
        strides = stride or [max(int(length * (1 - overlap)), 1) for length in patch]
        if any(step > length for step, length in zip(strides, patch, strict=True)):
            raise ConfigError(
                "the stride leaves gaps between windows", found=stride, expected=f"up to {patch}"
            )
        x, y, z = size
        across, along, through = (window_starts(*axis) for axis in zip(size, patch, strides, strict=True))
        return cls((x, y, z), patch, (across, along, through))

    @property
    def axis(self) -> int:
        """The sweep axis: the one that makes a slab as thick as a patch the smallest part of the scan."""
        return max(range(3), key=lambda axis: self.size[axis] / self.patch[axis])

    @property
    def num_windows(self) -> int:
        """Number of windows in the whole scan."""
        return prod(len(starts) for starts in self.starts)

    def rows(self, batch_size: int) -> list[tuple[int, ...]]:
        """Starts along the sweep axis, in groups just large enough to fill a batch."""
        starts = self.starts[self.axis]
        together = ceil(batch_size * len(starts) / self.num_windows)
        return [starts[first : first + together] for first in range(0, len(starts), together)]

    def windows(self, rows: tuple[int, ...]) -> list[Size]:
        """First voxels (x, y, z) of all windows of these rows."""
        x, y, z = (rows if axis == self.axis else self.starts[axis] for axis in range(3))
        return list(product(x, y, z))

    def cut(self, array: Tensor, window: Size, first_plane: int = 0) -> Tensor:
        """View of one window in a (C, ...) array whose planes along the sweep axis begin at `first_plane`."""
        for axis, (start, length) in enumerate(zip(window, self.patch, strict=True)):
            array = array.narrow(axis + 1, start - first_plane * (axis == self.axis), length)
        return array

    def planes(self, planes: slice) -> tuple[slice, ...]:
        """Index of these planes along the sweep axis in an (X, Y, Z) array."""
        return tuple(planes if axis == self.axis else slice(None) for axis in range(3))
