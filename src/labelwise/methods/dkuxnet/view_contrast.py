"""Contrast between two views of the same cases: what belongs together must be nearer than what does not.

Items are either channels, each as its map over the voxels of a case, or single voxels, each as its row of
probabilities. Both views of an item attract each other; the other items push.

Source
    Wu et al., ISBI 2024 (DKUXNet), https://arxiv.org/abs/2311.12364, whose formula leaves open what an item is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwise.losses.partial import full_precision, masked_mean

FORBIDDEN = -1e9  # a similarity that no exponential feels; minus infinity has no gradient in an empty row


def channel_contrast(
    strong: Tensor,
    weak: Tensor,
    where: Tensor | None = None,
    *,
    temperature: float = 0.1,
    smallest_mass: float = 1e-3,
) -> Tensor:
    """Every channel must resemble itself in the other view more than any other channel of its case, in either view.

    Channels are compared by the cosine of their maps. A channel with at most `smallest_mass` per voxel (an absent
    class, a query without voxels) neither pulls nor pushes. No labels are needed: channels of one case are
    disjoint by construction.

    Shapes
        strong, weak    (B, C, *S)  float, probabilities
        where           (B, *S)     bool; None means everywhere
        returns         ()          mean over the channels of all cases and both views; 0 if none takes part
    """
    rows, anchors = channel_rows(strong, weak, where, temperature=temperature, smallest_mass=smallest_mass)
    return masked_mean(rows, anchors)


def channel_rows(
    strong: Tensor, weak: Tensor, where: Tensor | None, *, temperature: float, smallest_mass: float
) -> tuple[Tensor, Tensor]:
    """The loss of every channel, and which of them take part: (B, 2 C) each, the strong view first."""
    channels = strong.shape[1]
    with torch.autocast(device_type=strong.device.type, enabled=False):
        maps = torch.cat([full_precision(strong), full_precision(weak)], dim=1).flatten(2)
        if where is not None:
            maps = maps * where.flatten(1).unsqueeze(1)
        products = maps @ maps.transpose(1, 2)
    voxels = maps.shape[2] if where is None else where.flatten(1).sum(dim=1, keepdim=True).clamp_min(1)
    mass = maps.detach().sum(dim=2).view(len(maps), 2, channels).mean(dim=1) / voxels
    anchors = (mass > smallest_mass).repeat(1, 2)
    lengths = products.diagonal(dim1=1, dim2=2).clamp_min(1e-16).sqrt()
    similarity = products / (lengths.unsqueeze(1) * lengths.unsqueeze(2) * temperature)
    itself = torch.eye(2 * channels, dtype=torch.bool, device=maps.device)
    rivals = similarity.masked_fill(itself | ~anchors.unsqueeze(1), FORBIDDEN)
    partner = torch.cat([similarity.diagonal(channels, 1, 2), similarity.diagonal(-channels, 1, 2)], dim=1)
    return rivals.logsumexp(dim=2) - partner, anchors


def voxel_contrast(
    strong: Tensor,
    weak: Tensor,
    groups: Tensor,
    where: Tensor,
    *,
    temperature: float = 0.1,
    same_group_repels: bool = False,
) -> Tensor:
    """Every voxel must resemble itself in the other view more than other voxels do.

    Voxels are compared by the cosine of their rows. `same_group_repels` lets all other voxels push, as the formula
    says literally; otherwise only those of other groups.

    Shapes
        strong, weak    (R, D)  float, a row for each sampled voxel
        groups          (R,)    int64
        where           (R,)    bool: the rows that take part
        returns         ()      mean over the rows of both views; 0 if none takes part
    """
    rows, anchors = voxel_rows(
        strong, weak, groups, where, temperature=temperature, same_group_repels=same_group_repels
    )
    return masked_mean(rows, anchors)


def voxel_rows(
    strong: Tensor,
    weak: Tensor,
    groups: Tensor,
    where: Tensor,
    *,
    temperature: float,
    same_group_repels: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of every row, and which of them take part: (2 R,) each, the strong view first."""
    count = len(strong)
    with torch.autocast(device_type=strong.device.type, enabled=False):
        rows = torch.cat([full_precision(strong), full_precision(weak)])
        rows = rows / rows.square().sum(dim=1, keepdim=True).clamp_min(1e-16).sqrt()
        similarity = rows @ rows.T / temperature
    anchors, groups = where.repeat(2), groups.repeat(2)
    number = torch.arange(2 * count, device=rows.device)
    forbidden = (number == number.unsqueeze(1)) | ~anchors
    if not same_group_repels:
        is_partner = (number + count) % (2 * count) == number.unsqueeze(1)
        forbidden = forbidden | ((groups == groups.unsqueeze(1)) & ~is_partner)
    partner = torch.cat([similarity.diagonal(count), similarity.diagonal(-count)])
    return similarity.masked_fill(forbidden, FORBIDDEN).logsumexp(dim=1) - partner, anchors
