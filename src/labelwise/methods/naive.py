"""Naive training: a structure that nobody annotated is taken for background.

Spec       docs/methods/naive.md

    for every batch (x, y) of labelled cases:
        minimise  1/2 (cross-entropy + Dice) (softmax(network(x)), y)        with y = 0 read as background

What happens when data sets with different labels are simply pooled. The lower bound of every comparison.
"""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.deep import at_all_scales
from labelwise.losses.partial import DiceForm, Pooling, supervised
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NaiveConfig(DiceForm):
    squared_dice: bool = False
    dice_pooling: Pooling = "case"


class Naive(Method):
    card = Card(
        title="Naive",
        paper="",
        idea="Reads every un-annotated structure as background: the baseline that ignores what is not known.",
        learns_from=frozenset({"full", "partial"}),
        deep_supervision=True,
    )
    Config = NaiveConfig

    def __init__(self, nets: NetFactory, config: NaiveConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        config = self.config

        def loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
            return supervised(
                logits, labels, annotated, squared=config.squared_dice, pooling=config.dice_pooling
            )

        # All is claimed to be annotated in every case in which anything is.
        everything = batch.annotated.any(dim=1, keepdim=True).expand_as(batch.annotated)
        scales = self.network.at_all_scales(batch.images)
        return {"supervised": at_all_scales(scales, (batch.labels, everything), loss)}

    def predictor(self) -> nn.Module:
        return Softmax(self.network)
