"""Likelihood of groups of classes, at full resolution or on coarser maps.

A group (all structures, all tumours, or one class) is what a set of cluster centres stands for. As in `losses.partial`
a voxel with label 0 may belong to the background or to any group that is not annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.partial import full_precision, masked_mean, members
from labelwise.types import IGNORE


def grouped_labels(labels: Tensor, group_of_class: Tensor) -> Tensor:
    """Labels of classes as labels of groups; IGNORE stays IGNORE.

    Shapes
        labels          (B, *S)  int64 in [0, C) or IGNORE
        group_of_class  (C,)     int64; the background's is 0
        returns         (B, *S)  int64 in [0, G) or IGNORE
    """
    known = labels != IGNORE
    return torch.where(known, group_of_class[torch.where(known, labels, 0)], IGNORE)


def known_groups(annotated: Tensor, class_in_group: Tensor) -> Tensor:
    """The groups that are annotated in a case: those of which every class is; never the background.

    Shapes
        annotated       (B, C) bool; column 0 is not read
        class_in_group  (G, C) bool
        returns         (B, G) bool
    """
    missing = ~annotated.unsqueeze(1) & class_in_group  # (B, G, C)
    known = ~missing.any(dim=2)
    known[:, 0] = False
    return known


def soft_targets(labels: Tensor, num_groups: int, size: Sequence[int]) -> Tensor:
    """The part of each coarse voxel that is labelled as each group; IGNORE is none.

    Shapes
        labels      (B, *S)      int64 in [0, G) or IGNORE
        size        the coarse size; divides S
        returns     (B, G, *size) float32, sums to at most 1 over G
    """
    targets = members(labels, num_groups).float()
    if tuple(size) == tuple(labels.shape[1:]):
        return targets
    pool: Callable[[Tensor, Sequence[int]], Tensor]
    pool = F.adaptive_avg_pool3d if labels.ndim == 4 else F.adaptive_avg_pool2d  # type: ignore[assignment]
    return pool(targets, size)


def group_cross_entropy(probabilities: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """-log of the probability that the labels leave possible, weighted by how much of the voxel they name.

    Weighted mean over the voxels of each case, then mean over the cases with a labelled voxel.
    The probability is that of the group; for a label 0 that of the background and of all groups that are not annotated.

    Shapes
        probabilities   (B, G, *S) float, sums to 1 over G
        targets         (B, G, *S) float, from `soft_targets`
        known           (B, G)     bool, from `known_groups`
        returns         ()         0 with a zero gradient if nothing is labelled
    """
    probabilities = full_precision(probabilities)
    hidden = (~known).view(*known.shape, *(1 for _ in targets.shape[2:]))
    nothing_known = (probabilities * hidden).sum(dim=1, keepdim=True)
    merged = torch.cat([nothing_known, probabilities[:, 1:]], dim=1)
    # Exact as long as a group's logits lie less than 80 below the largest one, and finite beyond.
    losses = -(merged.clamp_min(torch.finfo(merged.dtype).tiny).log() * targets).flatten(1).sum(dim=1)
    weights = targets.flatten(1).sum(dim=1)
    return masked_mean(losses / weights.clamp_min(1e-6), weights > 0)
