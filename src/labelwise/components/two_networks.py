"""Two networks of one kind that teach each other: how they start, and which of them predicts."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Classifier = Literal["first", "second", "both"]
CLASSIFIERS: tuple[Classifier, ...] = get_args(Classifier)


class TwoNetworks(nn.Module):
    """Scores of the first network, of the second, or the mean of both; holds the weights of both."""

    def __init__(self, first: nn.Module, second: nn.Module, classifier: Classifier):
        super().__init__()
        self.first = first
        self.second = second
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) probabilities in float32."""
        networks = {"first": [self.first], "second": [self.second], "both": [self.first, self.second]}
        scores = [network(images).float().softmax(dim=1) for network in networks[self.classifier]]
        return torch.stack(scores).mean(dim=0) if len(scores) > 1 else scores[0]

    def everywhere(self, images: Tensor) -> None:
        """Send images through both networks."""
        self.first(images)
        self.second(images)


@torch.no_grad()
def start_differently(first: nn.Module, second: nn.Module) -> None:
    """Convolutions of the first network by He's normal distribution, of the second by Glorot's.

    Transposed convolutions, biases and norms keep PyTorch's start, as in the port.
    """
    for network, draw in ((first, nn.init.kaiming_normal_), (second, nn.init.xavier_normal_)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                draw(module.weight)
