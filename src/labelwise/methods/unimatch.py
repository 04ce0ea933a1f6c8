"""UniMatch: what a network is sure of in the weak view it must see in strong views, and through dropped features.

Paper      Yang, Qi, Feng, Zhang & Shi, CVPR 2023, https://arxiv.org/abs/2208.09910
           (the principle: Sohn et al., NeurIPS 2020 (FixMatch), https://arxiv.org/abs/2001.07685)
Spec       docs/methods/unimatch.md: what follows the paper, and what does not

    for every batch (x, y, A), turned and mirrored by the loader (the weak view); u: its unlabelled cases
        z   = head(decoder(encoder(x)));             z_f = the same with dropped channels at all scales, u only
        q~  = softmax(z) restricted to the classes that y and A leave open                          no gradient
        t   = argmax q~ where max q~ >= tau, else IGNORE
        s_v = other gamma, contrast and noise of u, half of them with a box of the next case; t_v with the same box
        l(z, t) = 1/2 (CE + Dice) where t is kept;   CE is divided by all voxels, not only by those that are kept
        minimise  supervised(z, y, A) + mu * mean over v of l(network(s_v), t_v) + lambda * l(z_f, t)
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import cut_boxes, mix, select_rows, strong_view
from labelwise.components.teachers import Part
from labelwise.losses.partial import (
    DiceForm,
    annotated_dice,
    complete,
    full_precision,
    label_log_probability,
    mean_over_cases,
    open_voxels,
    supervised,
)
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.types import IGNORE, Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UniMatchConfig(DiceForm):
    threshold: Part = 0.95  # tau
    views_weight: NonNegativeFloat = 0.5  # mu
    feature_weight: NonNegativeFloat = 0.5  # lambda
    strong_views: PositiveInt = 2
    cut_mix: Part = 0.5  # chance of a case to get the box of another one, in each strong view
    gamma: NonNegativeFloat = 0.5  # strong view: exponents exp(U(-gamma, gamma))
    contrast: Part = 0.3  # strong view: factors 1 + U(-contrast, contrast), and half as large shifts
    noise_std: NonNegativeFloat = 0.1  # strong view: noise, in standard deviations of the case
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = (
        0.5  # part of the encoder's channels that is dropped
    )
    consistency_on: Literal["unlabelled", "open", "all"] = "unlabelled"  # which voxels the targets cover


class Targets(NamedTuple):
    """What other views shall become; mixed with a box like their images."""

    labels: Tensor  # (N, *S) int64 in [0, C), IGNORE where nobody is sure
    counted: Tensor  # (N, *S) bool: voxels that could have a label


class UniMatch(Method):
    card = Card(
        title="UniMatch",
        paper="https://arxiv.org/abs/2208.09910",
        idea="What is certain in the weak view must be found in strong views and through dropped features.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = UniMatchConfig

    def __init__(self, nets: NetFactory, config: UniMatchConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        everyone = list(range(len(batch.images)))
        rows = everyone if self.config.consistency_on == "all" else batch.unlabelled_rows
        logits, through_dropout = self.weak_view(batch.images, rows)
        terms = {
            "supervised": supervised(
                logits,
                batch.labels,
                batch.annotated,
                squared=self.config.squared_dice,
                pooling=self.config.dice_pooling,
            )
        }
        if not rows:
            return {**terms, "strong_views": logits.sum() * 0, "feature_dropout": logits.sum() * 0}
        targets = self.targets(
            *(select_rows(part, rows) for part in (logits, batch.labels, batch.annotated, batch.inside))
        )
        strong = self.strong_views(select_rows(batch.images, rows), targets)
        terms["strong_views"] = self.config.views_weight * strong
        dropped = confident_loss(through_dropout, targets, self.config)
        terms["feature_dropout"] = self.config.feature_weight * dropped
        return terms

    def weak_view(self, images: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Logits of all cases (B, C, *S), and of N of them with dropped features (N, C, *S), decoded together."""
        features = self.student.encoder(images)
        if rows:
            rate = self.config.feature_dropout
            features = [
                torch.cat([scale, torch.feature_dropout(select_rows(scale, rows), rate, True)])
                for scale in features
            ]
        logits: Tensor = self.student.head(self.student.decoder(features)[-1])
        return logits[: len(images)], logits[len(images) :]

    def targets(
        self, logits: Tensor, labels: Tensor, annotated: Tensor, inside: Tensor | None = None
    ) -> Targets:
        """Hard labels where the weak view is sure; where the labels decide, they are the target."""
        probabilities = complete(logits.softmax(dim=1), labels, annotated)
        certainty, best = probabilities.max(dim=1)
        counted = torch.ones_like(labels, dtype=torch.bool) if inside is None else inside
        if self.config.consistency_on == "open":
            counted = open_voxels(labels, annotated, inside)
        return Targets(best.where(counted & (certainty >= self.config.threshold), IGNORE), counted)

    def strong_views(self, images: Tensor, targets: Targets) -> Tensor:
        """Mean loss of the strong views, which pass the network together."""
        views = [self.strong_view(images, targets) for _ in range(self.config.strong_views)]
        logits = self.student(torch.cat([view for view, _ in views])).chunk(len(views))
        losses = [
            confident_loss(part, mixed, self.config) for part, (_, mixed) in zip(logits, views, strict=True)
        ]
        return torch.stack(losses).mean()

    def strong_view(self, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Other intensities, and for some cases a box of the next one, whose intensities are changed as well."""
        config = self.config
        changed = strong_view(
            images, gamma=config.gamma, contrast=config.contrast, noise_std=config.noise_std
        )
        keep = cut_boxes(len(images), images.shape[2:], device=images.device)
        whole = torch.rand(len(images), device=images.device) >= config.cut_mix
        keep = keep | whole.view(-1, *(1 for _ in images.shape[2:]))
        return mix(changed, changed.roll(-1, 0), keep), Targets(
            *(mix(target, target.roll(-1, 0), keep) for target in targets)
        )

    def predictor(self) -> nn.Module:
        return Softmax(self.student)


def confident_loss(logits: Tensor, targets: Targets, config: UniMatchConfig) -> Tensor:
    """Half of cross-entropy plus Dice where the target is sure.

    The cross-entropy is the sum over these voxels, divided by all that are counted: what is seldom sure weighs little.

    Shapes
        logits      (N, C, *S)
        returns     ()          0 with a zero gradient if nothing is sure
    """
    logits = full_precision(logits)
    surprise = -label_log_probability(logits.log_softmax(dim=1), targets.labels)
    sure = targets.labels != IGNORE
    cross_entropy = mean_over_cases(torch.where(sure, surprise, 0), targets.counted)
    everything = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    dice = annotated_dice(
        logits, targets.labels, everything, squared=config.squared_dice, pooling=config.dice_pooling
    )
    return (cross_entropy + dice) / 2
