"""PL-Seg: structures as binary problems weighted by difficulty, class maps that do not overlap, scales that imitate.

Paper      Li et al., Medical Image Analysis 2025, https://doi.org/10.1016/j.media.2025.103885
Spec       docs/methods/pl_seg.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        z_1 ... z_S = outputs of the network at every scale, fine to coarse;   p_s = softmax(z_s)
        for every scale s, with the labels resized to it, and every structure c in A of a case, drawn in its patch:
            l = CE + Dice of "c or not c",  with the probabilities p_s,c and 1 - p_s,c
            D_s,c = mean Dice loss of c over the last batches with c, this one included
            w_s,c = max(D_s,c / mean of D_s over the structures, floor)
        minimise  mean over scales of the sum of w l                                       hardness-aware foreground
                + alpha * mean of -log softmax(cosine of the class maps of p_1) on its diagonal   orthogonal classes
                + lambda(t) * mean over s of CE(softmax(z_s / T), softmax(z_s+1 / T))             self-distillation
    The last two need no label. Prediction: softmax(z_1); the other heads are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import labels_at, select_rows, sum_over_ranks
from labelwise.losses.partial import full_precision, marginal_cross_entropy
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.methods.pl_seg.losses import (
    PairLosses,
    classwise_orthogonal_loss,
    decoupled_foreground,
    progressive_self_distillation,
)
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PLSegConfig:
    hardness: bool = True  # weigh structures by their past Dice loss; False: every structure alike
    window: PositiveInt = 50  # number of batches that this past spans
    floor: Annotated[float, Field(ge=0, le=1)] = 0.5  # smallest weight of a structure
    absent_weight: NonNegativeFloat = (
        0.0  # cross-entropy of annotated structures without a voxel in the patch
    )
    reduction: Literal["sum", "mean"] = "sum"  # over the pairs of a case and a structure
    extra_marginal_ce: NonNegativeFloat = 0.0  # weight of the marginal cross-entropy of the finest output
    contrast_weight: NonNegativeFloat = 0.1  # alpha
    distillation_weight: NonNegativeFloat = 0.1  # lambda at the end of the training
    temperature: PositiveFloat = 10.0  # T of the distillation


class PLSeg(Method):
    card = Card(
        title="PL-Seg",
        paper="https://doi.org/10.1016/j.media.2025.103885",
        idea="Structures as weighted binary problems; classes and scales teach each other without labels.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = PLSegConfig

    def __init__(self, nets: NetFactory, config: PLSegConfig):
        super().__init__()
        self.config = config
        self.network = nets.network()
        coarser = [*self.network.decoder.channels[-2::-1], self.network.encoder.channels[-1]]
        self.coarse_heads = nn.ModuleList(nets.head(channels, nets.num_classes) for channels in coarser)
        self.history = DifficultyHistory(1 + len(coarser), config.window, nets.num_classes)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        outputs = self.outputs(batch.images)
        probabilities = [full_precision(logits).softmax(dim=1) for logits in outputs]
        supervised = self.foreground(probabilities, batch)
        if self.config.extra_marginal_ce:
            extra = marginal_cross_entropy(outputs[0], batch.labels, batch.annotated)
            supervised = supervised + self.config.extra_marginal_ce * extra
        distillation = progressive_self_distillation(outputs, self.config.temperature, batch.valid)
        return {
            "supervised": supervised,
            "contrast": self.config.contrast_weight
            * classwise_orthogonal_loss(probabilities[0], batch.valid),
            "distillation": self.distillation_weight(progress) * distillation,
        }

    def outputs(self, images: Tensor) -> list[Tensor]:
        """Logits of every scale of the decoder, then of the bottleneck: fine to coarse."""
        features = self.network.encoder(images)
        scales = [*self.network.decoder(features)[::-1], features[-1]]
        heads = [self.network.head, *self.coarse_heads]
        return [head(scale) for head, scale in zip(heads, scales, strict=True)]

    def foreground(self, probabilities: Sequence[Tensor], batch: Batch) -> Tensor:
        """Mean over the scales of the weighted losses of all pairs: the hardness-aware decoupled foreground loss."""
        cases, structures = annotated_pairs(batch)
        labels = batch.labels.to(torch.uint8)  # once per pair in memory; class indices and IGNORE fit
        annotated = batch.annotated if batch.annotated.ndim > 2 else None
        scales = []
        for p in probabilities:
            size = p.shape[2:]
            there = None if annotated is None else labels_at(annotated, size)
            scales.append(decoupled_foreground(p, labels_at(labels, size), cases, structures, there))
        losses = PairLosses(
            *(torch.stack(part) for part in zip(*scales, strict=True))
        )  # (scales, pairs) each
        per_pair = losses.total(self.config.absent_weight)
        if self.config.hardness:
            self.history.push(losses, structures)
            per_pair = self.history.weights(self.config.floor).index_select(1, structures) * per_pair
        total = per_pair.sum(dim=1)
        if self.config.reduction == "mean":
            counted = losses.present if not self.config.absent_weight else torch.ones_like(losses.present)
            total = total / counted.sum(dim=1).clamp_min(1)
        return total.mean()

    def distillation_weight(self, progress: Progress) -> float:
        """lambda(t): rises during the whole training."""
        return self.config.distillation_weight * progress.ramp(1.0)

    def predictor(self) -> nn.Module:
        return Softmax(self.network)


class DifficultyHistory(nn.Module):
    """How badly each class overlapped in the last batches, for each output scale on its own.

    Buffers
        rows    (scales, window, C)  mean Dice loss of each class in a batch; 0: the batch had no pair of it
        calls   (scales,) int64      number of rows written so far; the next one replaces the oldest
    """

    rows: Tensor
    calls: Tensor

    def __init__(self, scales: int, window: int, num_classes: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(scales, window, num_classes))
        self.register_buffer("calls", torch.zeros(scales, dtype=torch.int64))

    @torch.no_grad()
    def push(self, losses: PairLosses, structures: Tensor) -> None:
        """Write the mean Dice loss of each class over the pairs of all ranks; a scale without a pair writes nothing.

        No loss reads the buffers themselves, so they may change before the backward pass.

        Shapes
            losses      (scales, K) each
            structures      (K,) int64
        """
        window, num_classes = self.rows.shape[1:]
        member = structures.unsqueeze(1) == torch.arange(num_classes, device=structures.device)  # (K, C)
        of_class = losses.present.unsqueeze(2) & member  # (scales, K, C)
        sums = (losses.dice.unsqueeze(2) * of_class).sum(dim=1)
        sums, counts = sum_over_ranks(torch.stack([sums, of_class.sum(dim=1).to(sums.dtype)]))
        any_pair = counts.sum(dim=1) > 0
        oldest = torch.arange(window, device=self.calls.device) == (self.calls % window).unsqueeze(1)
        written = (oldest & any_pair.unsqueeze(1)).unsqueeze(2)
        self.rows.copy_(torch.where(written, (sums / counts.clamp_min(1)).unsqueeze(1), self.rows))
        self.calls += any_pair

    @torch.no_grad()
    def weights(self, floor: float) -> Tensor:
        """Mean of each class over the rows that have it, divided by the mean of these means, at least `floor`.

        Shapes
            returns     (scales, C)
        """
        of_class = _mean_of_positive(self.rows)
        overall = _mean_of_positive(of_class).unsqueeze(1)
        return torch.where(overall > 0, of_class / overall, 0).clamp_min(floor)


def _mean_of_positive(values: Tensor) -> Tensor:
    """(scales, N, ...) -> (scales, ...): mean of the entries above 0; 0 if there are none. None is below 0."""
    return values.sum(dim=1) / (values > 0).sum(dim=1).clamp_min(1)


def annotated_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Case and structure of every pair in which the structure is annotated, present or not, chosen on the host.

    Shapes
        returns     two (K,) int64
    """
    num_classes = batch.annotated.shape[1]
    places = [
        case * num_classes + structure
        for case, row in enumerate(batch.annotated_rows)
        for structure, known in enumerate(row)
        if known and structure > 0
    ]
    every = torch.arange(len(batch.annotated) * num_classes, device=batch.annotated.device)
    pairs = select_rows(every, places)
    return pairs // num_classes, pairs % num_classes
