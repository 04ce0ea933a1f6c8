"""A network that is told what to do by a condition: FiLM in its units, and the small network that sets it.

Source
    FiLM: Perez et al., AAAI 2018, https://arxiv.org/abs/1709.07871; in every unit of a U-Net: Billot et al.,
    MIDL 2024, https://proceedings.mlr.press/v250/billot24a.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from labelwise.errors import ConfigError
from labelwise.methods.conemos.network import FilmDecoder, FilmEncoder, Modulation, modulate

WIDTH = 64  # of all layers of the conditioning network
LAYERS = 4
NEGATIVE_SLOPE = 0.2  # of its leaky ReLUs
INITIAL_STD = 1e-2  # of the projections: FiLM starts near the identity


class FilmGenerator(nn.Module):
    """From a condition to the modulations of all conditioned units.

    A perceptron of four layers describes the condition; a linear projection per unit turns the description into
    gammas and betas. The projections are the rows of one matrix: for each unit its gammas, then its betas.

    Shapes
        forward     (N, num_conditions) float, for example one-hot -> for each unit 2 x (N, channels) float32
    """

    def __init__(self, num_conditions: int, channels: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for before in (num_conditions, *(WIDTH for _ in range(LAYERS - 1))):
            layers += [nn.Linear(before, WIDTH), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.description = nn.Sequential(*layers)
        self.channels = tuple(channels)
        self.projections = nn.Linear(WIDTH, 2 * sum(channels))
        nn.init.normal_(self.projections.weight, std=INITIAL_STD)
        nn.init.zeros_(self.projections.bias)

    def forward(self, conditions: Tensor) -> list[Modulation]:
        with torch.autocast(conditions.device.type, enabled=False):
            rows = self.projections(self.description(conditions.float()))
        parts = rows.split([width for channels in self.channels for width in (channels, channels)], dim=1)
        return [Modulation(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]

    def size(self) -> Tensor:
        """Sum of the squares of the projections' weights and biases: what a penalty keeps small."""
        return self.projections.weight.square().sum() + self.projections.bias.square().sum()


class ConditionedNet(nn.Module):
    """One U-Net with one output map, which is conditioned on the structure that is asked for.

    `conditioned_layers` counts from the end: head, decoder, encoder; None conditions all. Where that leaves the
    encoder out, images are encoded once for all structures. K = `num_structures`; structure k is class k + 1.

    Errors
        ConfigError     the network has fewer layers than shall be conditioned
    """

    def __init__(
        self,
        encoder: FilmEncoder,
        decoder: FilmDecoder,
        head: nn.Module,
        num_structures: int,
        *,
        conditioned_layers: int | None = None,
        structure_chunk: int = 4,
    ):
        super().__init__()
        channels = (*encoder.unit_channels, *decoder.unit_channels, 1)
        conditioned = len(channels) if conditioned_layers is None else conditioned_layers
        if not 0 < conditioned <= len(channels):
            raise ConfigError(
                "so many layers cannot be conditioned",
                found=f"conditioned_layers = {conditioned}",
                expected=f"1 to {len(channels)} for this network",
            )
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.num_structures = num_structures
        self.structure_chunk = structure_chunk
        self.unconditioned = len(channels) - conditioned
        self.film = FilmGenerator(num_structures, channels[self.unconditioned :])

    @property
    def shares_encoder(self) -> bool:
        """Whether the encoder is the same for all structures."""
        return self.unconditioned >= len(self.encoder.unit_channels)

    def answer(self, images: Tensor, cases: Tensor, structures: Tensor) -> Tensor:
        """The logits of N questions "where is this structure in this case?".

        Shapes
            images      (B, M, *S)  float
            cases       (N,)        int64, rows of `images`
            structures      (N,)        int64 in [0, K)
            returns     (N, 1, *S)  float32
        """
        return self._answer(images, self._shared_features(images), cases, structures)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, M, *S) -> logits (B, K, *S) float32 of all structures, `structure_chunk` structures at a time."""
        features = self._shared_features(images)
        cases = torch.arange(len(images), device=images.device)
        maps = []
        for chunk in torch.split(
            torch.arange(self.num_structures, device=images.device), self.structure_chunk
        ):
            structures = chunk.repeat_interleave(len(images))
            logits = self._answer(images, features, cases.repeat(len(chunk)), structures)
            maps.append(logits.view(len(chunk), *images[:, 0].shape).transpose(0, 1))
        return torch.cat(maps, dim=1)

    def _shared_features(self, images: Tensor) -> list[Tensor] | None:
        return self.encoder(images) if self.shares_encoder else None

    def _answer(
        self, images: Tensor, features: list[Tensor] | None, cases: Tensor, structures: Tensor
    ) -> Tensor:
        film = self._modulations(structures)
        units = len(self.encoder.unit_channels)
        if features is None:
            of_cases = self.encoder(images.index_select(0, cases), film[:units])
        else:
            of_cases = [scale.index_select(0, cases) for scale in features]
        embedding = self.decoder(of_cases, film[units:-1])[-1]
        return modulate(cast(Tensor, self.head(embedding)), film[-1])

    def _modulations(self, structures: Tensor) -> list[Modulation | None]:
        """One entry per layer, in the order of the forward pass."""
        asked = structures.unsqueeze(1) == torch.arange(self.num_structures, device=structures.device)
        return [*(None for _ in range(self.unconditioned)), *self.film(asked)]
