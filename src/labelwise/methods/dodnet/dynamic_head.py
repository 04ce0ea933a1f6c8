"""A head whose weights are written for each case and question: controller and tiny network of DoDNet.

Source
    Zhang et al., CVPR 2021, https://arxiv.org/abs/2011.10217.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelwise.nets.parts import normalisation


def head_parameters(width: int, layers: int = 3, outputs: int = 1) -> int:
    """How many weights and biases a dynamic head has.

    Example
        >>> head_parameters(8), head_parameters(8, outputs=2)
        (153, 162)
    """
    return (layers - 1) * (width + 1) * width + (width + 1) * outputs


class Controller(nn.Module):
    """Writes the weights of a dynamic head from the coarsest features and the structure that is asked for.

    The features are normalised (groups), activated and averaged over the image once; each question appends the
    one-hot of its structure, and one linear layer does the rest. In float32, whatever the precision around it.
    """

    def __init__(self, dims: int, channels: int, structures: int, parameters: int):
        super().__init__()
        self.structures = structures
        self.norm = normalisation("group", dims, channels)
        self.linear = nn.Linear(channels + structures, parameters)

    def forward(self, features: Tensor, structures: Tensor) -> Tensor:
        """The weights for K questions to each case.

        Shapes
            features    (B, channels, *S)
            structures      (B, K) or (1, K) int64: classes from 1; 0 is nobody's one-hot
            returns     (B, K, parameters) float32
        """
        with torch.autocast(device_type=features.device.type, enabled=False):
            pooled = self.norm(features.float()).relu().flatten(2).mean(dim=2)
            classes = torch.arange(1, self.structures + 1, device=structures.device)
            asked = (structures.unsqueeze(2) == classes).to(pooled.dtype).expand(len(pooled), -1, -1)
            seen = pooled.unsqueeze(1).expand(-1, structures.shape[1], -1)
            written: Tensor = self.linear(torch.cat([seen, asked], dim=2))
        return written


def dynamic_head(features: Tensor, parameters: Tensor, *, layers: int = 3, outputs: int = 1) -> Tensor:
    """K small networks of 1x1 convolutions on the features of each case, with ReLU in between.

    The first layers of all K lie on top of each other, so that the features of a case are read once and never
    copied; the others are one batched product.

    Shapes
        features    (B, F, *S)
        parameters  (B, K, P): first the weights of all layers, each (out, in), then their biases; F wide except
                    the last layer, which has `outputs` rows
        returns     (B, K, outputs, *S) float32
    """
    (cases, width), structures = features.shape[:2], parameters.shape[1]
    rows = [width] * (layers - 1) + [outputs]
    parts = torch.split_with_sizes(parameters, [width * count for count in rows] + rows, dim=2)
    hidden, groups = features.flatten(2), 1
    for number, (weight, bias) in enumerate(zip(parts[:layers], parts[layers:], strict=True)):
        # One product per case in the first layer, one per case and question afterwards.
        stacked = structures // groups * rows[number]
        hidden = torch.baddbmm(
            bias.reshape(cases * groups, stacked, 1),
            weight.reshape(cases * groups, stacked, width),
            hidden.reshape(cases * groups, width, -1),
        )
        groups = structures
        if number < layers - 1:
            hidden = hidden.relu_()
    return hidden.reshape(cases, structures, outputs, *features.shape[2:]).float()
