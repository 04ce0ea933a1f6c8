"""Other views of a batch: spliced, noisy, strongly changed, blurred."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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
    different_set   the next one in which other structures are annotated; the next one if there is none

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
        " (sampling.labelled_cases + sampling.unlabelled_cases)"
    )


def add_noise(images: Tensor, std: float, clip: float) -> Tensor:
    """images + clamp(N(0, std), -clip, clip), drawn per voxel. Images are normalised to unit variance."""
    return images + (torch.randn_like(images) * std).clamp_(-clip, clip)


def strong_view(
    images: Tensor, *, gamma: float = 0.5, contrast: float = 0.3, noise_std: float = 0.1
) -> Tensor:
    """A strongly changed view of each image: gamma, contrast, brightness and noise; geometry untouched.

    Each case and channel is brought to [0, 1] by its own range, raised to exp(U(-gamma, gamma)), scaled by
    1 + U(-contrast, contrast), shifted by U(-contrast, contrast) / 2, brought back, and given noise of
    `noise_std` times its standard deviation.

    Shapes
        images      (B, M, *S) float
        returns     (B, M, *S) float

    Source
        The weak-to-strong views that the leaders of the LA benchmark have in common (gamma exponent of CrossMatch).
    """
    spatial = tuple(range(2, images.ndim))
    low, high = images.amin(spatial, keepdim=True), images.amax(spatial, keepdim=True)
    extent = (high - low).clamp_min(1e-6)

    def uniform(limit: float) -> Tensor:
        return (torch.rand_like(low) * 2 - 1) * limit

    unit = ((images - low) / extent).clamp(0, 1) ** uniform(gamma).exp()
    middle = unit.mean(spatial, keepdim=True)
    unit = (unit - middle) * (1 + uniform(contrast)) + middle + uniform(contrast) / 2
    deviation = images.std(spatial, keepdim=True)
    return unit * extent + low + torch.randn_like(images) * deviation * noise_std


NO_WIDTH = 1e-3  # voxels: the kernel of this width is 1 in the middle and 0 beside it


def gaussian_blur(images: Tensor, widths: Tensor, *, radius: int) -> Tensor:
    """Convolve every axis with a Gaussian; beyond the border the image goes on with its last value.

    Shapes
        images      (B, M, *S)  float
        widths      (B,)        standard deviations in voxels; 0 leaves a case as it is
        radius      voxels on each side at which the kernel is cut off
        returns     (B, M, *S)  float32
    """
    dims = images.ndim - 2
    distances = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-0.5 * (distances / widths.float().clamp_min(NO_WIDTH).unsqueeze(1)).square()).exp()
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    kernels = kernels.unsqueeze(1).expand(-1, images.shape[1], -1).flatten(0, 1)
    convolve = F.conv2d if dims == 2 else F.conv3d
    # Every channel of every case is a group with a kernel of its own.
    blurred = images.float().reshape(1, -1, *images.shape[2:])
    with torch.autocast(device_type=images.device.type, enabled=False):
        for axis in range(dims):
            padding = [radius * (dims - 1 - place // 2 == axis) for place in range(2 * dims)]
            shape = [2 * radius + 1 if other == axis else 1 for other in range(dims)]
            kernel = kernels.view(-1, 1, *shape)
            blurred = convolve(F.pad(blurred, padding, mode="replicate"), kernel, groups=len(kernels))
    return blurred.view(images.shape)


def sometimes_blurred(
    images: Tensor, *, chance: float = 0.8, widths: tuple[float, float] = (0.1, 2.0)
) -> Tensor:
    """Blur each case with the given chance, by a width in voxels that is uniform within the bounds.

    Shapes
        images      (B, M, *S) float
        returns     (B, M, *S) float32

    Source
        The views of Shen et al., IJCAI 2023 (UCMT), on 3D scans.
    """
    chosen, place = torch.rand(2, len(images), device=images.device)
    drawn = widths[0] + (widths[1] - widths[0]) * place
    return gaussian_blur(images, drawn * (chosen < chance), radius=math.ceil(3 * widths[1]))
