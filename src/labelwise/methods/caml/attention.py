"""Attention within each sample of a batch, then among the samples: labelled and unlabelled cases see each other.

Source
    Gao et al., MICCAI 2023 (CAML, cross-sample mutual attention), https://arxiv.org/abs/2307.06312.
"""

from __future__ import annotations

from math import ceil, gcd, prod
from typing import Any, cast

import torch
from torch import Tensor, nn


class CrossSampleAttention(nn.Module):
    """Two transformer layers without position codes; in evaluation the identity.

    First every position of a sample attends to all positions of that sample, then to the same position of the other
    samples of the batch. Features with more than `positions` positions are cut into slabs along their first axis for
    the first layer, whose time grows with the square of their number.
    """

    def __init__(self, channels: int, *, heads: int = 4, dropout: float = 0.5, positions: int = 8192):
        super().__init__()
        self.positions = positions
        heads = gcd(heads, channels)
        self.within = nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout, batch_first=True)
        self.across = nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, *S) -> (B, D, *S)."""
        if not self.training:
            return features
        slabs = features.chunk(ceil(prod(features.shape[2:]) / self.positions), dim=2)
        tokens = torch.cat([self.within(slab.flatten(2).transpose(1, 2)) for slab in slabs], dim=1)
        mixed = self.across(tokens.transpose(0, 1)).permute(1, 2, 0)
        return cast(Tensor, mixed.reshape(features.shape).to(features.dtype))


class Followed(nn.Module):
    """A stage of a network and what is done with its output."""

    def __init__(self, stage: nn.Module, then: nn.Module):
        super().__init__()
        self.stage = stage
        self.then = then

    def forward(self, *inputs: Any) -> Tensor:
        """Inputs of the stage -> its output, changed."""
        return cast(Tensor, self.then(self.stage(*inputs)))
