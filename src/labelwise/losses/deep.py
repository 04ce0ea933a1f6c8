"""Deep supervision: the same loss at every scale that a network has a head for.

Source
    Lee et al., AISTATS 2015, https://arxiv.org/abs/1409.5185; weights as in Isensee et al., Nature Methods 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def at_all_scales(scales: Sequence[Tensor], targets: Sequence[Tensor], loss: Callable[..., Tensor]) -> Tensor:
    """The weighted mean of ``loss(logits, *targets)`` over scales; each coarser one weighs half of the one before.

    Targets are read at the voxels that lie on the coarser grid, so that no class is mixed from others, and no label
    says more than it did.

    Shapes
        scales      (B, C, *S / stride) each, the finest first
        targets     (B, *S) or (B, K, *S), such as labels, weights of voxels, or what is annotated at each of them;
                    (B, K) stays as it is
        returns     ()
    """
    size = scales[0].shape[2:]
    losses, weights = [], []
    for number, logits in enumerate(scales):
        stride = [full // small for full, small in zip(size, logits.shape[2:], strict=True)]
        losses.append(loss(logits, *(_every(target, stride) for target in targets)))
        weights.append(0.5**number)
    return (torch.stack(losses) * torch.tensor(weights, device=losses[0].device)).sum() / sum(weights)


def _every(target: Tensor, stride: Sequence[int]) -> Tensor:
    """Every stride-th voxel of (B, *S) or (B, K, *S), a view."""
    if target.ndim <= len(stride):
        return target
    steps = tuple(slice(None, None, step) for step in stride)
    return target[(slice(None),) * (target.ndim - len(stride)) + steps]
