"""The small change of an image that changes a network's answer most, found without a label.

A direction is drawn at random, and turned once or more into that in which the answer moves fastest. Only the
gradient with respect to the image is computed: the weights collect none, and no hook of theirs is called.

Source
    Miyato et al., IEEE TPAMI 2019 (virtual adversarial training), https://arxiv.org/abs/1704.03976.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def adversarial_direction(
    distance: Callable[[Tensor], Tensor], start: Tensor, *, probe_length: float, rounds: int = 1
) -> Tensor:
    """The direction in which each case's answer moves fastest, by power iteration.

    ``d <- unit(gradient of distance(probe_length * d) with respect to d)``, `rounds` times from unit(start). A case
    whose gradient is zero gets the direction 0.

    Shapes
        distance    (B, M, *S) -> (): how far the answer for the changed images is from the one for the images. Best
                    a sum over voxels: a mean makes the gradient so small that its length loses digits
        start       (B, M, *S) float32, any length
        returns     (B, M, *S) of length one for each case, without a gradient
    """
    direction = unit_cases(start.detach())
    for _ in range(rounds):
        direction.requires_grad_()
        with torch.enable_grad():
            moved = distance(probe_length * direction)
        (gradient,) = torch.autograd.grad(moved, direction)
        direction = unit_cases(gradient)
    return direction


def unit_cases(values: Tensor) -> Tensor:
    """Each case divided by its Euclidean length over all channels and voxels; a case of zeros stays one.

    Shapes
        values, returns     (B, M, *S) float
    """
    lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1).clamp_min(1e-30)
    return values / lengths.view(-1, *(1 for _ in values.shape[1:]))


@contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Within this context batch norms use the statistics of their input, as always in training, but keep no account.

    For passes that look at the same images again, or at images that do not exist.
    """
    tracking = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
