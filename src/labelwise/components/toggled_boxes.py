"""Masks of several boxes, each of which turns what lies under it around: CutMix with more than one piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def toggled_boxes(
    count: int,
    shape: Sequence[int],
    *,
    boxes: int = 3,
    area: tuple[float, float] = (0.25, 0.5),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Where each case keeps its own voxels: where an even number of its boxes lie.

    Each box covers the part a / boxes of the image, a uniform in `area`. Its sides are a power of a / boxes each, and
    the exponents are uniform among those that sum to 1. It lies anywhere inside the image with equal chance.
    All is drawn on the host, as the loop seeds it; only the corners of the boxes go to the device.

    Shapes
        returns     (count, *shape) bool, for `components.mix.mix`

    Source
        French et al., BMVC 2020, https://arxiv.org/abs/1906.01916, as used for CutMix by Chen et al., CVPR 2021 (CPS);
        the exponents (u, 1 - u) of two sides are generalised to any number of axes.
    """
    dims = len(shape)
    part = torch.empty(count, boxes, 1).uniform_(*area) / boxes
    exponents = torch.empty(count, boxes, dims).exponential_()
    lengths = torch.tensor(shape)
    size = (part ** (exponents / exponents.sum(dim=2, keepdim=True)) * lengths).round()
    low = (torch.rand(count, boxes, dims) * (lengths - size + 1)).floor()
    corners = torch.stack([low, low + size])
    target = torch.device(device)
    if target.type == "cuda":
        corners = corners.pin_memory()
    first, end = corners.to(target, non_blocking=True)
    inside = torch.ones(count, boxes, *(1 for _ in shape), dtype=torch.bool, device=target)
    for axis, length in enumerate(shape):
        place = torch.arange(length, device=target)
        covered = (place >= first[..., axis, None]) & (place < end[..., axis, None])
        inside = inside & covered.view(
            count, boxes, *(length if other == axis else 1 for other in range(dims))
        )
    return inside.sum(dim=1) % 2 == 0
