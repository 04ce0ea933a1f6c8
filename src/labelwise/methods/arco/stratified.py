"""Drawing voxels from a set of candidates so that every part of the set is represented.

A mean over n draws varies less if the candidates are split into cells and each cell gets its share of the draws
(stratified), and possibly less again if half of them are the mirror images of the other half within their cell
(antithetic). G groups, for example classes, are drawn from at once; each has its own candidates. All arithmetic stays
on the device, and nothing of the size candidates x draws is stored.

Source
    You et al., NeurIPS 2023 (ARCO), https://arxiv.org/abs/2302.01735; exact for every number of candidates, where
    the official code fails or draws some candidates too rarely.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Remainder = Literal["largest", "random"]


class Cells(Protocol):
    """A partition of the candidates of each group into M cells."""

    @property
    def counts(self) -> Tensor:
        """(G, M) int64: candidates in each cell."""

    def pick(self, cell: Tensor, uniform: Tensor) -> Tensor:
        """The candidate at the part `uniform` in [0, 1] of its cell: (G, n) each."""

    def mirror(self, cell: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """The image of a candidate about the centre of its cell, and whether that is a candidate: (G, n) each."""


def draw(cells: Cells, total: int, *, antithetic: bool = False, remainder: Remainder = "largest") -> Tensor:
    """`total` candidates of each group, with replacement; each cell gets its share.

    Arguments
        antithetic  the second half of the draws of a cell are the mirror images of the first half, where these are
                    candidates
        remainder   as in `allocate`

    Shapes
        returns     (G, total) int64, cell by cell; meaningless where a group has no candidate
    """
    allocation = allocate(cells.counts, total, remainder)
    ends = allocation.cumsum(dim=1)
    slot = torch.arange(total, device=ends.device).expand(len(ends), -1).contiguous()
    cell = torch.searchsorted(ends, slot, right=True).clamp_max(ends.shape[1] - 1)
    chosen = cells.pick(cell, torch.rand(slot.shape, device=slot.device))
    if not antithetic:
        return chosen
    own = allocation.gather(1, cell)
    half = (own + 1) // 2
    again = slot - (ends.gather(1, cell) - own) >= half
    original = chosen.gather(1, (slot - half).where(again, slot).clamp(0, total - 1))
    mirrored, inside = cells.mirror(cell, original)
    return torch.where(again & inside, mirrored, chosen)


def allocate(counts: Tensor, total: int, remainder: Remainder = "largest") -> Tensor:
    """Share out `total` draws in proportion to the sizes of the cells.

    The integer parts are fixed. What is left goes to the cells with the largest fractions (the lower number first), or
    at random with exactly those fractions as chances, which makes the mean over the draws unbiased.

    Shapes
        counts      (G, M)  int64
        returns     (G, M)  int64, sums to `total` in every group that has a candidate

    Example
        >>> allocate(torch.tensor([[5, 3, 2]]), 4)
        tensor([[2, 1, 1]])
    """
    size = counts.sum(dim=1, keepdim=True).clamp_min(1)
    share, rest = counts * total // size, counts * total % size
    if remainder == "random":
        start = (torch.rand(len(counts), 1, device=counts.device) * size).long().minimum(size - 1)
        ends = (rest.cumsum(dim=1) + start) // size
        return share + ends.diff(dim=1, prepend=torch.zeros_like(start))
    place = rest.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return share + (place < total - share.sum(dim=1, keepdim=True))


class Raster(NamedTuple):
    """N candidates in their order, written row by row into the smallest square that holds them.

    The square is cut into `grid` x `grid` cells (fewer if its side e is shorter); all but the last row and column
    of cells have sides of e // grid. A candidate is its number in the order. ``grid=1`` draws without strata.
    """

    size: Tensor  # (G, 1) int64: N
    grid: int

    @property
    def side(self) -> Tensor:
        """(G, 1) the smallest e with e * e >= N, at least 1."""
        root = self.size.float().sqrt().ceil().long()
        root = root + (root.square() < self.size).long()  # float32 knows squares up to rounding only
        return (root - ((root - 1).square() >= self.size).long()).clamp_min(1)

    @property
    def per_side(self) -> Tensor:
        """(G, 1) cells along each side."""
        return self.side.clamp_max(self.grid)

    def bounds(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First row, row behind the last, first column, column behind the last, of cells (G, n)."""
        side, per_side = self.side, self.per_side
        length = side // per_side

        def interval(number: Tensor) -> tuple[Tensor, Tensor]:
            return number * length, torch.where(number == per_side - 1, side, (number + 1) * length)

        return (*interval(cell // per_side), *interval(cell % per_side))

    @property
    def counts(self) -> Tensor:
        """(G, grid^2) candidates in each cell, without a look at any of them."""
        cell = torch.arange(self.grid**2, device=self.size.device).unsqueeze(0)
        top, bottom, left, right = self.bounds(cell)
        full, rest = (
            self.size // self.side,
            self.size % self.side,
        )  # full rows, and candidates in the last one
        whole = (bottom.minimum(full) - top).clamp_min(0) * (right - left)
        broken = (right.minimum(rest) - left).clamp_min(0) * ((top <= full) & (full < bottom))
        return (whole + broken) * (cell < self.per_side**2)

    def pick(self, cell: Tensor, uniform: Tensor) -> Tensor:
        count = self.counts.gather(1, cell)
        place = (uniform * count).long().minimum(count - 1).clamp_min(0)
        top, _, left, right = self.bounds(cell)
        width = (right - left).clamp_min(1)
        return (top + place // width) * self.side + left + place % width

    def mirror(self, cell: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        top, bottom, left, right = self.bounds(cell)
        row = top + bottom - 1 - candidate // self.side
        mirrored = row * self.side + left + right - 1 - candidate % self.side
        return mirrored, mirrored < self.size


class Space:
    """Candidates by their place: each case is cut into `grid` cells along every axis.

    A candidate is the number of its voxel in the batch. The cells of all cases are numbered case by case.
    """

    def __init__(self, masks: Tensor, shape: Sequence[int], grid: int):
        """`masks` (G, B * voxels of `shape`) bool, flattened case by case."""
        self.masks, self.shape = masks, tuple(shape)
        self.grid = tuple(min(grid, length) for length in self.shape)
        voxels, cells = prod(self.shape), prod(self.grid)
        cases = torch.arange(masks.shape[1] // voxels, device=masks.device).unsqueeze(1)
        inside, self.order = self._cells().sort(stable=True)
        self.order = (cases * voxels + self.order).flatten()  # voxels, cell by cell
        self.found = masks.index_select(1, self.order).cumsum(dim=1, dtype=torch.int32)
        ends = torch.searchsorted(inside, torch.arange(cells, device=masks.device), right=True)
        last = (cases * voxels + ends - 1).flatten()  # every cell has a voxel
        self.ends = self.found.index_select(1, last).long()

    def _cells(self) -> Tensor:
        """(voxels,) the cell of each voxel of a case."""
        cell = torch.zeros(1, dtype=torch.int64, device=self.masks.device)
        for length, parts in zip(self.shape, self.grid, strict=True):
            place = torch.arange(length, device=cell.device) * parts // length
            cell = (cell.unsqueeze(-1) * parts + place).flatten()
        return cell

    @property
    def counts(self) -> Tensor:
        return self.ends.diff(dim=1, prepend=torch.zeros_like(self.ends[:, :1]))

    def pick(self, cell: Tensor, uniform: Tensor) -> Tensor:
        count = self.counts.gather(1, cell)
        place = (uniform * count).long().minimum(count - 1).clamp_min(0)
        rank = self.ends.gather(1, cell) - count + place
        return self.order[voxel_of(self.found, rank)]

    def mirror(self, cell: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        mirrored, stride = torch.zeros_like(candidate), 1
        rest, rest_cell = candidate, cell
        for length, parts in zip(reversed(self.shape), reversed(self.grid), strict=True):
            number = rest_cell % parts
            low, high = -(-number * length // parts), -(-(number + 1) * length // parts)
            mirrored = mirrored + (low + high - 1 - rest % length) * stride
            stride, rest, rest_cell = stride * length, rest // length, rest_cell // parts
        mirrored = mirrored + rest * stride
        return mirrored, self.masks.gather(1, mirrored)


def voxel_of(found: Tensor, rank: Tensor) -> Tensor:
    """The voxels at which the candidates number `rank` stand.

    Shapes
        found       (G, N) int32: how many candidates there are up to and with each voxel (cumulative sum of a mask)
        rank        (G, n) int64
        returns     (G, n) int64, in [0, N) also where there is no such candidate
    """
    place = torch.searchsorted(found, (rank + 1).to(found.dtype))
    return place.clamp_max(found.shape[1] - 1)
