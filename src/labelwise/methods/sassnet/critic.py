"""A critic: a network that looks at a map together with its image and says which of two kinds the map is.

Source
    the discriminator of Li, Zhang & He, MICCAI 2020 (SASSNet), https://arxiv.org/abs/2007.10732: 11,020,290 parameters
    for one modality and one structure in 3D.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from labelwise.components.batches import select_rows
from labelwise.errors import ConfigError
from labelwise.nets.parts import brick

NEGATIVE_SLOPE = 0.2  # of its leaky ReLUs
STRIDE = 16  # four convolutions that halve the size


class Critic(nn.Module):
    """Four strided convolutions, the mean over space, and two logits: class 1 is the kind to be imitated.

    A question is a case and one of K structures. With several structures a learned vector per structure, 0 at the
    start, tells the critic which one the map is of.

    Errors
        ConfigError     a map has fewer than 16 voxels along an axis
    """

    def __init__(self, dims: int, modalities: int, structures: int, *, width: int = 64, dropout: float = 0.5):
        super().__init__()
        convolution = brick("convolution", dims)
        widths = [width * 2**level for level in range(4)]
        self.of_map = convolution(1, width, 4, stride=2, padding=1)
        self.of_image = convolution(modalities, width, 4, stride=2, padding=1)
        self.of_organ = nn.Parameter(torch.zeros(structures, width)) if structures > 1 else None
        self.further = nn.ModuleList(
            convolution(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.verdict = nn.Linear(widths[-1], 2)
        self.rate = dropout

    def forward(
        self,
        maps: Tensor,
        images: Tensor,
        cases: Sequence[int],
        structures: Sequence[int],
        dropout: bool = True,
    ) -> Tensor:
        """Logits (N, 2) float32 of N questions.

        Shapes
            maps        (N, 1, *S)
            images      (B, M, *S)  each is looked at once, however many questions it has
            cases       N rows of `images`
            structures      N numbers in [0, K)
        """
        if min(maps.shape[2:]) < STRIDE:
            raise ConfigError(
                "the critic cannot look at patches of this size",
                found=" x ".join(map(str, maps.shape[2:])),
                expected=f"at least {STRIDE} voxels along every axis",
                do="choose a larger sampling.patch_size",
            )
        features = self.of_map(maps) + select_rows(self.of_image(images), cases)
        if self.of_organ is not None:
            vectors = select_rows(self.of_organ, structures)
            features = features + vectors.view(*vectors.shape, *(1 for _ in maps.shape[2:]))
        features = F.leaky_relu(features, NEGATIVE_SLOPE)
        for convolution in self.further:
            # feature_dropout drops whole channels, in 2D and in 3D.
            features = torch.feature_dropout(features, self.rate, self.training and dropout)
            features = F.leaky_relu(convolution(features), NEGATIVE_SLOPE)
        return cast(Tensor, self.verdict(features.flatten(2).mean(dim=2))).float()

    def frozen(self, maps: Tensor, images: Tensor, cases: Sequence[int], structures: Sequence[int]) -> Tensor:
        """As `forward` without dropout, and with a gradient for the maps only: the critic learns nothing from it."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return cast(Tensor, functional_call(self, weights, (maps, images, cases, structures, False)))


def two_kinds(logits: Tensor, real: int) -> Tensor:
    """Cross-entropy of a critic's logits (N, 2): the first `real` rows are of class 1, the others of class 0."""
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities[:real, 1].sum() + log_probabilities[real:, 0].sum()) / max(len(logits), 1)
