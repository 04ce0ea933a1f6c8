"""Two scans spliced into one: boxes of another case, cut into each case of a batch (CutMix).

A mask says where a case keeps its own voxels. Images, labels, maps of what is known and any other target are mixed
by the same mask and with the same partner, so that they still belong together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Pairing = Literal["next", "different_set"]

logger = logging.getLogger("labelwise")

CANDIDATES = 64  # shapes of a box to choose from, per case


def cut_boxes(
    count: int,
    shape: Sequence[int],
    *,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Where each case keeps its own voxels: everywhere but in one box, which lies inside the image.

    The part a of the image that the box covers is uniform in `area`, the ratio of its second to its first side
    uniform in `ratio` (in 3D that of the third to the first, too), its place uniform. Whatever would reach beyond the
    image is drawn again with the same a, which makes elongated boxes rarer; here a shape is chosen among 64 by its
    chance to lie inside, which comes to the same without a loop. All is drawn on the host, as the loop seeds it.

    Shapes
        returns     (count, *shape) bool, false inside the box

    Source
        Yun et al., ICCV 2019 (CutMix), https://arxiv.org/abs/1905.04899; ratios as in Jiang et al., Medical Image
        Analysis 2025 (LTUDA), generalised to three axes.
    """
    dims = len(shape)
    part = torch.empty(count, 1, 1).uniform_(*area)
    ratios = torch.empty(count, CANDIDATES, dims - 1).uniform_(*ratio)
    sides = torch.cat([torch.ones(count, CANDIDATES, 1), ratios], dim=2)
    sides = sides * (part / sides.prod(dim=2, keepdim=True)) ** (1 / dims)
    chance = (1 - sides).clamp_min(0).prod(dim=2)  # of a uniform corner to leave the box inside
    # A cube of that volume stands in where no candidate fits, which takes an `area` near 1.
    fits = (chance > 0).any(dim=1)
    drawn = torch.multinomial(chance.where(fits.unsqueeze(1), 1), 1)
    chosen = sides.gather(1, drawn.unsqueeze(2).expand(-1, -1, dims)).squeeze(1)
    chosen = chosen.where(fits.unsqueeze(1), part.squeeze(2) ** (1 / dims))
    lengths = torch.tensor(shape)
    size = (chosen * lengths).long()
    low = (torch.rand(count, dims) * (lengths - size + 1)).long()
    return _outside(torch.stack([low, low + size]), shape, torch.device(device))


def _outside(corners: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """(2, B, axes) first and last + 1 of each box -> (B, *shape) bool, false inside the box."""
    corners = corners.pin_memory() if device.type == "cuda" else corners
    low, high = corners.to(device, non_blocking=True)
    inside = torch.ones(len(low), *(1 for _ in shape), dtype=torch.bool, device=device)
    for axis, length in enumerate(shape):
        view = (-1, *(1 for _ in shape))
        place = torch.arange(length, device=device).view(-1, *(1 for _ in shape[axis + 1 :]))
        inside = inside & (place >= low[:, axis].view(view)) & (place < high[:, axis].view(view))
    return ~inside


def mix(mine: Tensor, theirs: Tensor, keep: Tensor) -> Tensor:
    """`mine` where `keep` is true, `theirs` elsewhere; for images, labels, masks and targets of any type.

    Shapes
        mine, theirs    (B, *S) or (B, K, *S), equal
        keep            (B, *S) bool
        returns         as `mine`
    """
    return torch.where(keep.unsqueeze(1) if mine.ndim > keep.ndim else keep, mine, theirs)


def partners(annotated: Sequence[Sequence[bool]], pair: Pairing = "next") -> list[int]:
    """The row of a batch that each row is mixed with, chosen on the host.

    next            the next one, and the first for the last
    different_set   the next one in which other organs are annotated; the next one if there is none

    A batch of one case has no partner but itself: mixing then changes nothing, and a warning says so once.

    Arguments
        annotated   (B, C) as plain values, as in `Batch.annotated_on_host`

    Example
        >>> liver, spleen = (False, True, False), (False, False, True)
        >>> partners([liver, liver, spleen]), partners([liver, liver, spleen], "different_set")
        ([1, 2, 0], [2, 2, 0])
    """
    count = len(annotated)
    if count == 1:
        _warn_of_a_single_case()
    chosen = []
    for row, mine in enumerate(annotated):
        others = [(row + distance) % count for distance in range(1, count)]
        different = [other for other in others if tuple(annotated[other][1:]) != tuple(mine[1:])]
        chosen.append([*(different if pair == "different_set" else []), *others, row][0])
    return chosen


@cache
def _warn_of_a_single_case() -> None:
    logger.warning(
        "a batch holds a single case, so there is none to mix it with: take at least two per batch and rank"
        " (sampling.labelled_cases + sampling.incomplete_cases)"
    )
