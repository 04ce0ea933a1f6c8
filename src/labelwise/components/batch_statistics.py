"""The statistics of batch norm that belong to the weights of a network.

An average of weights has no running statistics of its own: those of the networks that it averages belong to other
weights, and a network with the wrong ones says nearly anything in evaluation. They are therefore taken anew, from
batches that pass through the averaged network itself: through its method `everywhere`, if it has one because some of
its parts take no part in its forward, else through its forward.

Source
    Izmailov et al., UAI 2018 (averaged weights need their own statistics), https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The parts of a network that keep running statistics."""
    return [
        part for part in network.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by their mean over some batches, with the weights as they are.

    Nothing is dropped out meanwhile, as in evaluation. No batch is asked for if the network has no statistics.

    Shapes
        batches     (B, M, *S) each
    """
    if norms := batch_norms(network):
        for norm in norms:
            norm.reset_running_stats()
        with _only_norms_train(network, norms, mean=True):
            for images in batches:
                _send_everywhere(network, images)


@torch.no_grad()
def follow_statistics(network: nn.Module, images: Tensor) -> None:
    """Move the running statistics by one batch, as a training does, with the weights as they are."""
    if norms := batch_norms(network):
        with _only_norms_train(network, norms, mean=False):
            _send_everywhere(network, images)


def _send_everywhere(network: nn.Module, images: Tensor) -> None:
    getattr(network, "everywhere", network)(images)


@contextmanager
def _only_norms_train(network: nn.Module, norms: list[_BatchNorm], *, mean: bool) -> Iterator[None]:
    """Batch norm alone is in training mode; `mean`: all batches count alike."""
    modes = [(part, part.training) for part in network.modules()]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None if mean else norm.momentum
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
