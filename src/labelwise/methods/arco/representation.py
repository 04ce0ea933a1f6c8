"""Representations of voxels: made of the scales of a decoder, looked up, averaged by class and over space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RepresentationHead(nn.Module):
    """x <- map_0; for every finer map: x <- [enlarge(x + W_i x), map_i]; at last W x.

    All of that is linear, and enlarging does not care for channels. So each map is brought to the few channels of
    the result by one matrix before it is enlarged: the same numbers for a tenth of the work.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        totals = list(accumulate(channels))
        self.channels = tuple(channels)
        self.mixers = nn.ModuleList(nn.Linear(total, total, bias=False) for total in totals[:-1])
        self.last = nn.Linear(totals[-1], width, bias=False)

    def matrices(self) -> list[Tensor]:
        """For each scale, coarse to fine: (width, channels of the scale)."""
        found, weight = [], self.last.weight
        with torch.autocast(weight.device.type, enabled=False):
            for channels, mixer in zip(self.channels[:0:-1], reversed(self.mixers), strict=True):
                found.append(weight[:, -channels:])
                coarse = weight[:, :-channels]
                weight = coarse + coarse @ cast(nn.Linear, mixer).weight
        return [weight, *reversed(found)]

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Scales (B, channels[i], *S_i), coarse to fine -> (B, width, *S) of the last scale, float32."""
        result: Tensor | None = None
        axes = scales[0].ndim - 2
        mode, convolve = ("trilinear", F.conv3d) if axes == 3 else ("bilinear", F.conv2d)
        for scale, matrix in zip(scales, self.matrices(), strict=True):
            part = convolve(scale, matrix.view(*matrix.shape, *[1] * axes)).float()
            if result is not None:
                part = part + F.interpolate(result, size=part.shape[2:], mode=mode, align_corners=True)
            result = part
        return cast(Tensor, result)


def by_class(masks: Tensor) -> Tensor:
    """(B, C, *S) -> (C, B * voxels), case by case."""
    return masks.transpose(0, 1).flatten(1)


def rows_at(maps: Tensor, voxels: Tensor) -> Tensor:
    """What stands at voxels of a batch: maps (B, D, *S), numbers of voxels (C, n) -> (C, n, D)."""
    flat = maps.flatten(2)
    return flat[voxels // flat.shape[2], :, voxels % flat.shape[2]]


def class_means(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of maps (B, D, *S) over the voxels of each class, masks (B, C, *S): (C, D); whether it has any: (C,)."""
    with torch.autocast(maps.device.type, enabled=False):
        weights = masks.flatten(2).float()
        sums = torch.einsum("bcv,bdv->cd", weights, maps.detach().flatten(2).float())
        counts = weights.sum(dim=(0, 2))
    return sums / counts.clamp_min(1).unsqueeze(1), counts > 0


def pooled(maps: Tensor, count: int, bins: int) -> Tensor:
    """The last `count` of maps (B, D, *S), averaged to `bins` along every axis: (count, bins ** axes, D)."""
    pool = F.adaptive_avg_pool3d if maps.ndim == 5 else F.adaptive_avg_pool2d
    if not count:
        return maps.flatten(2)[:0, :, : bins ** (maps.ndim - 2)].mT
    return pool(maps[-count:].float(), bins).flatten(2).mT
