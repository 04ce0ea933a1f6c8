"""Entropy minimisation: where the labels leave something open, the network shall make up its mind.

Paper      Grandvalet & Bengio, NeurIPS 2004

    for every batch (x, y, A):
        p = softmax(network(x))
        minimise  supervised(p, y, A) + w * mean entropy of p        over voxels that are left open
"""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise import Batch, Card, Method, NetFactory, Progress, Softmax
from labelwise.losses import masked_mean, open_voxels, supervised, voxel_entropy


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MyMethodConfig:
    entropy_weight: float = 0.1  # w at the end of the training; it rises linearly


class MyMethod(Method):
    card = Card(
        title="Entropy minimisation",
        paper="https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization",
        idea="A network that is pushed to be certain wherever the labels leave something open.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = MyMethodConfig

    def __init__(self, nets: NetFactory, config: MyMethodConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.network(batch.images)
        entropy = voxel_entropy(logits.log_softmax(dim=1))
        undecided = masked_mean(entropy, open_voxels(batch.labels, batch.annotated, batch.inside))
        return {
            "supervised": supervised(logits, batch.labels, batch.annotated),
            "entropy": self.config.entropy_weight * progress.fraction * undecided,
        }

    def predictor(self) -> nn.Module:
        return Softmax(self.network)
