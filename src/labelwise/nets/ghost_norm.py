"""Batch norm over some cases of a batch at a time.

Hoffer et al., "Train longer, generalize better", NeurIPS 2017, https://arxiv.org/abs/1705.08741: "ghost batch norm".
With as many cases at a time as a batch has labelled ones, labelled and unlabelled cases are normalised apart (Zajac et
al., "Split batch normalization", https://arxiv.org/abs/1904.03515). Passed together, a network can learn to be right
for labelled cases in mixed company only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GhostBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of `cases` cases at a time, in the order of the batch.

    The running statistics follow every group; they alone count in evaluation, as in the usual batch norm.
    """

    def __init__(self, like: _BatchNorm, cases: int):
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.cases = cases
        self.load_state_dict(like.state_dict())

    def _check_input_dim(self, input: Tensor) -> None:
        """Images of any number of axes."""

    def extra_repr(self) -> str:
        return f"{self.num_features}, cases={self.cases}"

    def forward(self, features: Tensor) -> Tensor:
        normalise = super().forward
        if not self.training or len(features) <= self.cases:
            return normalise(features)
        return torch.cat([normalise(group) for group in torch.split(features, self.cases)])


def over_cases(module: nn.Module, cases: int) -> nn.Module:
    """The same module, each of its batch norms over so many cases at a time."""
    if isinstance(module, _BatchNorm):
        return GhostBatchNorm(module, cases)
    for name, child in module.named_children():
        setattr(module, name, over_cases(child, cases))
    return module


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any part of it is a batch norm."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())
