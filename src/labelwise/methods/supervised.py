"""Supervised learning on what is annotated: the baseline that every other method must beat.

Source     marginal loss: Shi et al., Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868
Spec       docs/methods/supervised.md

    for every batch (x, y, A) of cases with annotated structures A:
        p = softmax(network(x))
        q_0 = p_0 + sum of p_c over the structures c not in A                 the others hide in the background
        minimise  1/2 (-log q_y + Dice over the structures in A)        at every scale that the network has a head for
"""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.deep import at_all_scales
from labelwise.losses.partial import AbsentDice, DiceForm, Pooling, supervised
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SupervisedConfig(DiceForm, AbsentDice):
    squared_dice: bool = False
    dice_pooling: Pooling = "case"


class Supervised(Method):
    card = Card(
        title="Supervised",
        paper="https://arxiv.org/abs/2007.03868",
        idea="Cross-entropy and Dice on what is annotated; un-annotated structures may hide in the background.",
        learns_from=frozenset({"full", "partial"}),
        deep_supervision=True,
    )
    Config = SupervisedConfig

    def __init__(self, nets: NetFactory, config: SupervisedConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        config = self.config

        def loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
            return supervised(
                logits,
                labels,
                annotated,
                squared=config.squared_dice,
                pooling=config.dice_pooling,
                absent=config.absent_dice,
            )

        scales = self.network.at_all_scales(batch.images)
        return {"supervised": at_all_scales(scales, (batch.labels, batch.annotated), loss)}

    def predictor(self) -> nn.Module:
        return Softmax(self.network)
