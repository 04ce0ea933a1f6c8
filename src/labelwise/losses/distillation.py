"""A prediction imitates another one, which is softened by a temperature.

Source
    Hinton et al., 2015, https://arxiv.org/abs/1503.02531; from scale to scale of one network:
    Li et al., PL-Seg, Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.reduction import full_precision

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation by number of spatial axes


def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the softened prediction to the softened target, mean over the voxels of all cases.

    ``-mean over voxels of sum_c softmax(target / T)_c log softmax(logits / T)_c``, without the factor T squared.

    Shapes
        logits, target_logits   (B, C, *S)  float; no gradient reaches the target
        returns                 ()
    """
    target = (full_precision(target_logits.detach()) / temperature).softmax(dim=1)
    log_probabilities = (full_precision(logits) / temperature).log_softmax(dim=1)
    return -(target * log_probabilities).sum(dim=1).mean()


def progressive_self_distillation(outputs: Sequence[Tensor], temperature: float = 10.0) -> Tensor:
    """Each coarser output imitates the next finer one, whose logits are resized to it.

    Shapes
        outputs     two or more (B, C, *S_s) logits, fine to coarse
        returns     ()  mean over the coarser outputs; the finest one gets no gradient
    """
    terms = [
        soft_cross_entropy(coarse, _resized(fine.detach(), coarse.shape[2:]), temperature)
        for fine, coarse in pairwise(outputs)
    ]
    return torch.stack(terms).mean()


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(full_precision(logits), size=size, mode=LINEAR[len(size)], align_corners=True)
