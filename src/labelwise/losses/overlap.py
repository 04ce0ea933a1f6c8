"""Soft Dice in three steps, so that others can recombine them: members, sums over voxels, loss per class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class OverlapSums(NamedTuple):
    """Sums over the voxels of each case: (B, C) each."""

    common: Tensor  # of p y
    predicted: Tensor  # of p, or of p squared
    true: Tensor  # of y


def members(labels: Tensor, num_classes: int) -> Tensor:
    """Which class each voxel is labelled with; IGNORE is none.

    Shapes
        labels      (B, *S)     int64
        returns     (B, C, *S)  bool
    """
    classes = torch.arange(num_classes, device=labels.device).view(-1, *(1 for _ in labels.shape[1:]))
    return labels.unsqueeze(1) == classes


def overlap_sums(
    probabilities: Tensor, truth: Tensor, where: Tensor, *, squared: bool = False
) -> OverlapSums:
    """The sums that Dice is made of, over the voxels of `where`.

    Shapes
        probabilities   (B, C, *S)  float
        truth           (B, C, *S)  bool; false outside `where`
        where           (B, C, *S) or (B, 1, *S) bool
    """
    axes = tuple(range(2, probabilities.ndim))
    sizes = probabilities.square() if squared else probabilities
    # The masks multiply as booleans: that is what autograd keeps of them, a quarter of a float mask.
    return OverlapSums(
        common=(probabilities * truth).sum(axes),
        predicted=(sizes * where).sum(axes),
        true=truth.sum(axes, dtype=probabilities.dtype),
    )


def dice_loss(sums: OverlapSums, smooth: float = 1e-5, *, numerator: float | None = None) -> Tensor:
    """1 - Dice for each entry of the sums: 0 for perfect overlap, 1 for none.

    `smooth` is added below the line, and above it too unless `numerator` says what is added there.
    """
    above = smooth if numerator is None else numerator
    return 1 - (2 * sums.common + above) / (sums.predicted + sums.true + smooth)
