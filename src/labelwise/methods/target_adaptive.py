"""Target adaptive loss: cross-entropy in which structures that nobody annotated count as background.

Paper      Fang & Yan, IEEE Transactions on Medical Imaging 39(11), 2020, https://arxiv.org/abs/2001.00208
Spec       docs/methods/target_adaptive.md: where paper and official code differ, and what we follow

    for every batch (x, y, A) of cases with annotated structures A:
        p = softmax(network(x))
        q_0 = p_0 + sum of p_c over the structures c not in A;   q_c = p_c for the structures in A
        minimise  mean of -log q_y + dice_weight * Dice over the structures in A            dice_weight = 0 in the paper
"""

from __future__ import annotations

from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.partial import target_adaptive_loss
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TargetAdaptiveConfig:
    dice_weight: NonNegativeFloat = 0.0  # of the Dice of the annotated structures, beside the cross-entropy


class TargetAdaptive(Method):
    card = Card(
        title="Target adaptive loss",
        paper="https://arxiv.org/abs/2001.00208",
        idea="Cross-entropy alone, in which the structures that nobody annotated may hide in the background.",
        learns_from=frozenset({"full", "partial"}),
    )
    Config = TargetAdaptiveConfig

    def __init__(self, nets: NetFactory, config: TargetAdaptiveConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.network(batch.images)
        return {
            "supervised": target_adaptive_loss(
                logits, batch.labels, batch.annotated, dice_weight=self.config.dice_weight
            )
        }

    def predictor(self) -> nn.Module:
        return Softmax(self.network)
