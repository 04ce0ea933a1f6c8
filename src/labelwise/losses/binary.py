"""Structures as yes-or-no questions: one independent map per structure, asked only where the answer is known.

A question is a case and a structure that is annotated in it. Structures may overlap, and nothing is said about a
structure that nobody annotated. K = C - 1 structures; map k stands for class k + 1.

A region generalises a structure: a set of classes, such as a structure with its tumour. K maps then stand for K
regions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.partial import OverlapSums, dice_loss, full_precision, members, over_space
from labelwise.types import IGNORE


def region_answers(labels: Tensor, annotated: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """As `partial.structure_answers` for regions: known where all classes of the region are annotated.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        regions     (K, C)      bool, the classes of each region; column 0, the background, is false
        returns     truth (B, K, *S) bool, known (B, K, *S) bool; truth is false outside known

    Example
        >>> with_tumour = torch.tensor([[False, True, True], [False, False, True]])
        >>> truth, _ = region_answers(torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool), with_tumour)
        >>> truth[0].int()
        tensor([[0, 1, 1],
                [0, 0, 1]], dtype=torch.int32)
    """
    missing = torch.einsum("kc,bc...->bk...", regions.float(), (~annotated).float())
    labelled = labels != IGNORE
    known = over_space(missing == 0, labels.ndim - 1) & labelled.unsqueeze(1)
    truth = regions.index_select(1, labels.where(labelled, 0).flatten()).view(-1, *labels.shape)
    return truth.transpose(0, 1) & known, known


def known_negatives(labels: Tensor, annotated: Tensor, excludes: Tensor | None = None) -> Tensor:
    """Where a structure that its case does not annotate is known to be absent: another structure is labelled there.

    Independent maps say nothing of each other, so without these answers a map that nobody asked about a case may win
    the argmax over the structure that is labelled there.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        excludes    (K, C)      bool: which classes exclude what map k asks for (`excluding_classes`); none: a map
                                for each structure, excluded by every other structure
        returns     (B, K, *S)  bool

    Example
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> known_negatives(torch.tensor([[0, 1, IGNORE]]), liver_only)[0].int()
        tensor([[0, 0, 0],
                [0, 1, 0]], dtype=torch.int32)
    """
    structure = (labels > 0) & (labels != IGNORE)
    if excludes is None:
        structures = over_space(annotated, labels.ndim - 1)[:, 1:]
        return structure.unsqueeze(1) & ~structures & ~members(labels, annotated.shape[1])[:, 1:]
    absent = excludes.index_select(1, labels.where(structure, 0).flatten()).view(-1, *labels.shape)
    return absent.transpose(0, 1) & structure.unsqueeze(1)


def excluding_classes(regions: Tensor) -> Tensor:
    """Which classes exclude each region: those outside it, but for the classes of a region that it lies within.

    A voxel that a case labels "liver" may be tumour, where nobody marked the tumour: only the region that holds both
    is known there.

    Shapes
        regions, returns    (K, C) bool; column 0, the background, is false

    Example
        >>> with_tumour_and_spleen = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
        >>> excluding_classes(with_tumour_and_spleen).int()
        tensor([[0, 0, 0, 1],
                [0, 0, 0, 1],
                [0, 1, 1, 0]], dtype=torch.int32)
    """
    common = regions.int() @ regions.int().T
    within = common == regions.sum(dim=1, keepdim=True)  # (inner, outer), each within itself
    around = (within.int() @ regions.int()) > 0  # the classes of all regions around
    structures = torch.ones_like(regions)
    structures[:, 0] = False
    return structures & ~around


def binary_cross_entropy(logits: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each question, as the mean over its known voxels.

    Shapes
        logits      (B, K, *S)  float, before the sigmoid
        truth       (B, K, *S)  bool or float in [0, 1]
        known       (B, K, *S)  bool
        returns     (B, K) float32, 0 where nothing is known; (B, K) bool, whether anything is

    Source
        rule B of docs/explanation/partial-labels.md
    """
    logits = full_precision(logits)
    per_voxel = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    count = known.flatten(2).sum(dim=2)
    return (per_voxel * known).flatten(2).sum(dim=2) / count.clamp_min(1), count > 0


def present_dice(sums: OverlapSums) -> Tensor:
    """1 - Dice of each map, without smoothing; 0 for a map of which no voxel is true.

    The Dice of such a map is 0 whatever the network says: it has no gradient, and 1 - Dice would add a constant.

    Shapes
        sums        (...)   each; sums over a batch make it a batch Dice
        returns     (...)

    Source
        Ulrich et al., MICCAI 2023 (MultiTalent), whose loss is -Dice; the gradient is the same.
    """
    return dice_loss(sums, 1e-7, numerator=0.0) * (sums.true > 0)
