"""Class maps that do not overlap: a loss that needs no label.

Source
    Li et al., PL-Seg, Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from labelwise.losses.reduction import full_precision

SMALLEST_PROBABILITY = (
    1e-10  # a class whose map vanishes has a direction all the same: that of a constant map
)
SMALLEST_NORM = 1e-12


def class_affinity(probabilities: Tensor) -> Tensor:
    """Cosine between the probability maps of each two classes of a case, as vectors over its voxels.

    It follows from the scalar products of the maps, so no normalised copy of them is made, and the bounded copy of
    which the products are taken is not kept for the backward pass.

    Shapes
        probabilities   (B, C, *S)  float, after softmax
        returns         (B, C, C)   float32 in [0, 1], symmetric, 1 on the diagonal
    """
    maps = full_precision(probabilities)
    with torch.autocast(device_type=maps.device.type, enabled=False):
        products = cast(Tensor, checkpoint(_products, maps, use_reentrant=False, preserve_rng_state=False))
    norms = products.diagonal(dim1=1, dim2=2).sqrt().clamp_min(SMALLEST_NORM)
    return products / (norms.unsqueeze(1) * norms.unsqueeze(2))


def classwise_orthogonal_loss(probabilities: Tensor) -> Tensor:
    """How far the class maps of a case are from being orthogonal: cross-entropy of the affinities to the identity.

    Mean over cases and classes j of ``logsumexp_i A_ij - A_jj`` with A as in `class_affinity`, the background
    included. Lies between ``log (1 + (C - 1) / e)`` for disjoint maps and ``log C`` for identical ones.

    Shapes
        probabilities   (B, C, *S)  float, after softmax
        returns         ()

    Example
        >>> identical = torch.full((1, 2, 4), 0.5)
        >>> classwise_orthogonal_loss(identical)  # log 2
        tensor(0.6931)
    """
    affinity = class_affinity(probabilities)
    return (affinity.logsumexp(dim=1) - affinity.diagonal(dim1=1, dim2=2)).mean()


def _products(probabilities: Tensor) -> Tensor:
    maps = probabilities.flatten(2).clamp(SMALLEST_PROBABILITY, 1)
    return maps @ maps.mT
