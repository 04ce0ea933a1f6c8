"""Mean Teacher: a network learns from unlabelled images by agreeing with its own running average.

Paper      Tarvainen & Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780
           (segmentation settings: Yu et al., MICCAI 2019, https://arxiv.org/abs/1907.07034)
Spec       docs/methods/mean_teacher.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        p = softmax(student(x))
        q = softmax(teacher(x + noise))              unlabelled cases only, no gradient
        q~ = q restricted to the classes that y and A leave open
        minimise  supervised(p, y, A) + w(t) * mean (p - q~)^2          over voxels that are left open
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import add_noise, select_rows
from labelwise.components.teachers import Consistency, Decay, EmaTeacher, StudentAndTeacher
from labelwise.losses.partial import DiceForm, complete, open_voxels, squared_difference, supervised
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MeanTeacherConfig(StudentAndTeacher, Consistency, DiceForm):
    eval_model: Literal["student", "teacher"] = "teacher"
    noise_std: NonNegativeFloat = 0.1  # of the normalised image
    noise_clip: NonNegativeFloat = 0.2
    consistency_on: Literal["open", "all"] = "open"  # voxels that labels leave open, or every voxel


class MeanTeacher(Method):
    card = Card(
        title="Mean Teacher",
        paper="https://arxiv.org/abs/1703.01780",
        idea="The student must agree with its own running average, which sees a noisier image.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = MeanTeacherConfig
    presets: ClassVar[Presets] = {"acdc": {"ema_half_life": 0.0023, "ramp_interval": 0.005}}  # 30000 steps

    def __init__(self, nets: NetFactory, config: MeanTeacherConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()
        self.teacher = EmaTeacher(self.student, self.decays(config)["ema_decay"])

    @classmethod
    def decays(cls, config: MeanTeacherConfig) -> dict[str, Decay]:
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
            "consistency": self.config.weight(progress) * self.consistency(logits, batch),
        }

    def consistency(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean squared distance between student and teacher where the labels leave something open."""
        rows = list(range(len(logits))) if self.config.consistency_on == "all" else batch.unlabelled_rows
        if not rows:
            return logits.sum() * 0
        labels, annotated = select_rows(batch.labels, rows), select_rows(batch.annotated, rows)
        noisy = add_noise(select_rows(batch.images, rows), self.config.noise_std, self.config.noise_clip)
        teacher_probabilities = complete(self.teacher(noisy).softmax(dim=1), labels, annotated)
        inside = select_rows(batch.inside, rows)
        where = inside if self.config.consistency_on == "all" else open_voxels(labels, annotated, inside)
        return squared_difference(select_rows(logits, rows).softmax(dim=1), teacher_probabilities, where)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def predictor(self) -> nn.Module:
        return Softmax(self.config.predicting(self.student, self.teacher))
