"""Losses against pseudo-labels: one class for every voxel, which another network has chosen.

`hard_labels` makes them, so that they never contradict what is annotated. Cross-entropy and Dice read them as
complete labels over all classes, background included. No gradient reaches the network that chose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwise.losses.cross_entropy import label_log_probability
from labelwise.losses.overlap import OverlapSums, dice_loss, members, overlap_sums
from labelwise.losses.partial import Absent, Pooling, possible_classes
from labelwise.losses.reduction import full_precision, mean_over_cases
from labelwise.types import IGNORE

SMALLEST_WEIGHT = 1e-8  # a sum of weights below this counts as nothing


def hard_labels(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """The likeliest class of each voxel among those that its label leaves possible.

    A voxel with a known class gets that class; a voxel of a partly labelled case with label 0 the likeliest of
    background and the un-annotated organs; a voxel of an unlabelled case the plain argmax.

    Shapes
        logits      (B, C, *S)  float, or probabilities
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        returns     (B, *S)     int64 in [0, C), never IGNORE

    Example
        >>> logits = torch.tensor([[[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]])
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> hard_labels(logits, torch.tensor([[0, IGNORE]]), liver_only)  # no liver where the label says so
        tensor([[2, 1]])
    """
    return logits.detach().masked_fill(~possible_classes(labels, annotated), -torch.inf).max(dim=1).indices


def pseudo_cross_entropy(
    logits: Tensor,
    target: Tensor,
    where: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
    voxel_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy as a weighted mean over the voxels of the whole batch: ``sum of w nll / sum of w``.

    Shapes
        logits          (B, C, *S)  float, before softmax
        target          (B, *S)     int64 in [0, C) or IGNORE; IGNORE counts as outside `where`
        where           (B, *S)     bool; None means everywhere
        class_weights   (C,)        float, at least 0; a voxel takes that of its target
        voxel_weights   (B, *S)     float, at least 0, such as a confidence
        returns         ()          0 with a zero gradient if there is no weight

    Source
        Chen et al., CVPR 2021 (CPS), https://arxiv.org/abs/2106.01226, eq. 2
    """
    inside = target != IGNORE
    weights = (inside if where is None else inside & where).float()
    if class_weights is not None:
        weights = weights * class_weights.detach().float()[target.masked_fill(~inside, 0)]
    if voxel_weights is not None:
        weights = weights * voxel_weights.detach().float()
    log_probabilities = full_precision(logits).log_softmax(dim=1)
    per_voxel = -label_log_probability(log_probabilities, target)
    return (weights * per_voxel).sum() / weights.sum().clamp_min(SMALLEST_WEIGHT)


def pseudo_dice(
    logits: Tensor,
    target: Tensor,
    where: Tensor | None = None,
    *,
    voxel_weights: Tensor | None = None,
    background: bool = True,
    squared: bool = False,
    pooling: Pooling = "case",
    absent: Absent = "include",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice loss of all classes against complete labels.

    Shapes
        logits      (B, C, *S)  float, before softmax
        target      (B, *S)     int64 in [0, C) or IGNORE; IGNORE counts as outside `where`
        where       (B, *S)     bool; None means everywhere
        voxel_weights   (B, *S) float, at least 0: each voxel counts so often in every sum; None: once
        background  whether class 0 counts as a class
        squared     sum p squared instead of sum p in the denominator
        pooling     "case": mean over the classes of each case, then over the cases; "batch": sums over all cases
        absent      "skip" leaves out classes that the target does not hold; "include" keeps them: their loss is
                    near 1 unless p vanishes everywhere, which pushes p to 0
        returns     ()          0 with a zero gradient if no voxel takes part
    """
    inside = target != IGNORE
    inside = inside if where is None else inside & where
    probabilities = full_precision(logits).softmax(dim=1)
    truth = members(target, logits.shape[1]) & inside.unsqueeze(1)
    counted = inside.unsqueeze(1)
    if voxel_weights is not None:
        counted = counted * voxel_weights.detach().unsqueeze(1)
        truth = truth * counted
    sums = overlap_sums(probabilities, truth, counted, squared=squared)
    valid = inside.flatten(1).any(dim=1, keepdim=True).expand_as(sums.true)
    if not background:
        sums, valid = OverlapSums(*(part[:, 1:] for part in sums)), valid[:, 1:]
    if pooling == "batch":
        sums = OverlapSums(*(part.sum(dim=0, keepdim=True) for part in sums))
        valid = valid.any(dim=0, keepdim=True)
    if absent == "skip":
        valid = valid & (sums.true > 0)
    return mean_over_cases(dice_loss(sums, smooth), valid)
