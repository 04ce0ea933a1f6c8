"""UA-MT: a mean teacher is followed only where it is certain.

Paper      Yu, Wang, Li, Fu & Heng, MICCAI 2019, https://arxiv.org/abs/1907.07034
Spec       docs/methods/ua_mt.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        p = softmax(student(x))
        q = softmax(teacher(x + noise))                                 unlabelled cases only, no gradient
        mu = mean of T more passes of the teacher, each with fresh noise and dropout
        u = entropy of mu;   m = [u < (3/4 + 1/4 G(t)) ln(classes that are left open)]
        minimise  supervised(p, y, A) + w(t) * sum of m (p - q)^2 / (C * sum of m)
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student

q and mu are first restricted to the classes that y and A leave open.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import ConfigDict, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import add_noise, select_rows
from labelwise.components.teachers import Consistency, Decay, EmaTeacher, StudentAndTeacher
from labelwise.losses.agreement import mean_log_probability, voxel_entropy
from labelwise.losses.partial import (
    DiceForm,
    complete,
    open_voxels,
    possible_classes,
    squared_difference,
    supervised,
)
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UncertaintyAwareMeanTeacherConfig(StudentAndTeacher, Consistency, DiceForm):
    passes: PositiveInt = 8  # T
    threshold_start: NonNegativeFloat = 0.75  # of the largest possible entropy, at the first step
    threshold_end: NonNegativeFloat = 1.0  # the same at the last step
    noise_std: NonNegativeFloat = 0.1  # of the normalised image
    noise_clip: NonNegativeFloat = 0.2


class UncertaintyAwareMeanTeacher(Method):
    card = Card(
        title="UA-MT",
        paper="https://arxiv.org/abs/1907.07034",
        idea="A mean teacher that is followed only where the entropy of its repeated answers is low.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = UncertaintyAwareMeanTeacherConfig
    presets: ClassVar[Presets] = {"acdc": {"ema_half_life": 0.0023, "ramp_interval": 0.005}}  # 30000 steps

    def __init__(self, nets: NetFactory, config: UncertaintyAwareMeanTeacherConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()
        self.teacher = EmaTeacher(self.student, self.decays(config)["ema_decay"])

    @classmethod
    def decays(cls, config: UncertaintyAwareMeanTeacherConfig) -> dict[str, Decay]:
        return {"ema_decay": config.decay(warm_up=True)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.student(batch.images)
        return {
            "supervised": supervised(
                logits,
                batch.labels,
                batch.annotated,
                squared=self.config.squared_dice,
                pooling=self.config.dice_pooling,
            ),
            "consistency": self.config.weight(progress) * self.consistency(logits, batch, progress),
        }

    def consistency(self, logits: Tensor, batch: Batch, progress: Progress) -> Tensor:
        """Mean squared distance between student and teacher over the open voxels where the teacher is certain."""
        rows = batch.unlabelled_rows
        if not rows:
            return logits.sum() * 0
        images, labels, annotated, inside = (
            select_rows(values, rows)
            for values in (batch.images, batch.labels, batch.annotated, batch.inside)
        )
        teacher_probabilities = complete(self.noisy_pass(images).exp(), labels, annotated)
        repeated = mean_log_probability(self.noisy_pass(images) for _ in range(self.config.passes))
        uncertainty = voxel_entropy(complete(repeated.exp(), labels, annotated).log())
        certain = (
            uncertainty < self.threshold(progress) * possible_classes(labels, annotated).sum(dim=1).log()
        )
        where = certain & open_voxels(labels, annotated, inside)
        return squared_difference(select_rows(logits, rows).softmax(dim=1), teacher_probabilities, where)

    def noisy_pass(self, images: Tensor) -> Tensor:
        """Log-probabilities of the teacher for images with fresh noise (and fresh dropout)."""
        noisy = add_noise(images, self.config.noise_std, self.config.noise_clip)
        log_probabilities: Tensor = torch.log_softmax(self.teacher(noisy), dim=1)
        return log_probabilities

    def threshold(self, progress: Progress) -> float:
        """Part of the largest possible entropy up to which the teacher counts as certain."""
        start, end = self.config.threshold_start, self.config.threshold_end
        return start + (end - start) * progress.ramp(1.0)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def predictor(self) -> nn.Module:
        return Softmax(self.config.predicting(self.student, self.teacher))
