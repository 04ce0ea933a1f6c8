"""Parts of a batch, chosen without waiting for the GPU, and other views of it: spliced, noisy, changed, blurred."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def select_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
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


class DrawnVoxels(NamedTuple):
    """G groups with n places each."""

    voxels: Tensor  # (G, n) int64: numbers of voxels in [0, N); any voxel where a place is not filled
    filled: Tensor  # (G, n) bool


def draw_from_groups(groups: Tensor, num_groups: int, count: int) -> DrawnVoxels:
    """Up to `count` voxels of each group: all of a group that has no more, else one of each of `count` equal parts.

    One sort finds the voxels of all groups, so time and memory hardly depend on the number of groups.

    Shapes
        groups      (N,)    integers; those outside [0, num_groups) belong to no group

    Example
        >>> drawn = draw_from_groups(torch.tensor([1, 0, 1, 7, 1]), num_groups=2, count=3)
        >>> drawn.voxels[1].tolist(), drawn.filled.tolist()
        ([0, 2, 4], [[False, False, True], [True, True, True]])
    """
    ordered, order = groups.sort(stable=True)
    edges = torch.searchsorted(
        ordered, torch.arange(num_groups + 1, dtype=groups.dtype, device=groups.device)
    )
    sizes = edges.diff().unsqueeze(1)
    place = torch.arange(count, device=groups.device)
    low, high = place * sizes // count, (place + 1) * sizes // count
    length = (high - low).clamp_min(1)
    rank = low + (torch.rand(low.shape, device=groups.device) * length).long().minimum(length - 1)
    filled = high > low  # the part is not empty
    first = edges[:-1].unsqueeze(1)
    voxels = order[(first + rank).clamp_max(len(groups) - 1)]
    # All kinds of voxels for the others: gradients of many rows of one voxel are added up slowly.
    return DrawnVoxels(voxels.where(filled, place % len(groups)), filled)


def labels_at(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at another size by nearest neighbours: voxel i of an axis is voxel floor(i * before / after) of `labels`.

    Nothing is mixed, so every value, IGNORE included, stays what it was. The index is exact: it is computed in
    integers, in 2D as in 3D. At their own size the labels come back as they are, not as a copy.

    Shapes
        labels      (B, ..., *S)    any type; the last axes, as many as `size` has, are spatial
        size        (*S',)          may be smaller or larger than S, axis by axis
        returns     (B, ..., *S')

    Example
        >>> labels_at(torch.tensor([[0, 1, 2, 3, 4]]), [3])
        tensor([[0, 1, 3]])
    """
    for axis, after in zip(range(-len(size), 0), size, strict=True):
        before = labels.shape[axis]
        if before != after:
            index = torch.arange(after, device=labels.device) * before // after
            labels = labels.index_select(axis, index)
    return labels


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, without a gradient; a copy of `values` where there is only one.

    A memory that changes by sums over all ranks is the same on every rank: a resumed run, which gives every rank the
    memories of rank 0, loses nothing. Every rank must call this equally often.

    Shapes
        values, returns     any, the same on all ranks
    """
    total = values.detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total


def of_all_ranks(values: Tensor, dim: int = 0) -> Tensor:
    """The `values` of all ranks, one after the other along an axis, without a gradient.

    Shapes
        values      any, the same on all ranks
        returns     `dim` is as many times longer as there are ranks
    """
    values = values.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    gathered = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, values.contiguous())
    return torch.cat(gathered, dim)


def as_if_one_batch(sums: Tensor) -> Tensor:
    """Sums over the batches of all ranks, whose gradient flows into the batch of this rank only.

    For losses of sums over the batch (batch Dice): their value is that of one large batch.

    Shapes
        sums, returns       any, the same on all ranks
    """
    return sums + (sum_over_ranks(sums) - sums.detach())


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
