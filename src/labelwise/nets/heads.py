"""Heads: the last layer, from the decoder's embedding to logits."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn

from labelwise.nets.parts import brick


class Head(nn.Module):
    """One convolution whose result leaves in float32, whatever the precision before it.

    Shapes
        forward     (B, in_channels, *S) -> (B, out_channels, *S)
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__()
        convolution = brick("convolution", dims)
        self.convolution = convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, embedding: Tensor) -> Tensor:
        return cast(Tensor, self.convolution(embedding)).float()


def start_from_prior(bias: Tensor, probability: float) -> None:
    """Make a sigmoid of this bias begin with the given probability, in place.

    An organ covers one voxel in a hundred. Maps that begin at one half spend the first hundreds of steps on
    unlearning that, and come out of it saturated.

    Source
        Lin et al., ICCV 2017 (focal loss, section 4.1), https://arxiv.org/abs/1708.02002.
    """
    nn.init.constant_(bias, math.log(probability / (1 - probability)))
