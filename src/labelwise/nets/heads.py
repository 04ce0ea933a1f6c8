"""Heads: the last layer, from the decoder's embedding to logits."""

from __future__ import annotations

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
