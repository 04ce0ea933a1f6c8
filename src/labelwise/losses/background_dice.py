"""Dice in which the background is a class beside the organs, also where some organs are not annotated."""

from __future__ import annotations

import torch
from torch import Tensor

from labelwise.losses.overlap import members, overlap_sums
from labelwise.losses.partial import Absent, Pooling, pooled_dice
from labelwise.losses.reduction import full_precision
from labelwise.types import IGNORE


def dice_with_background(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    squared: bool = False,
    pooling: Pooling = "case",
    absent: Absent = "skip",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice loss of the annotated organs and of everything else together.

    Where everything is annotated, everything else is the background. Where an organ is not, nobody knows where the
    background ends: its probability is added to the background's, and label 0 stands for both.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        squared     sum p squared instead of sum p in the denominator
        pooling     "case": mean over the classes of each case, then over the cases; "batch": sums over all cases in
                    which the class is known, then the mean over the classes
        absent      "skip" leaves out classes without a voxel in the case (in the batch); "include" keeps them
        returns     ()          0 with a zero gradient if no case has a labelled voxel and an annotated organ

    Source
        The linear form by case is that of the BCP code, Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673; the
        squared form by batch that of the SSL4MIS codes.

    Example
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class, 2/3 for "no liver"
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> dice_with_background(logits, torch.tensor([[0, 1]]), liver_only, smooth=0.0)  # (3/7 + 3/5) / 2
        tensor(0.5143)
    """
    probabilities = full_precision(logits).softmax(dim=1)
    organs = annotated.view(*annotated.shape, *(1 for _ in range(logits.ndim - annotated.ndim))).clone()
    organs[:, 0] = False
    elsewhere = (probabilities * ~organs).sum(dim=1, keepdim=True)
    merged = torch.cat([elsewhere, (probabilities * organs)[:, 1:]], dim=1)
    labelled = (labels != IGNORE).unsqueeze(1)
    known = labelled & organs
    known[:, :1] = labelled & organs.any(dim=1, keepdim=True)
    truth = members(labels, logits.shape[1]) & known
    sums = overlap_sums(merged, truth, known, squared=squared)
    asked = known.flatten(2).any(dim=2)
    return pooled_dice(sums, asked, pooling=pooling, absent=absent, smooth=smooth)
