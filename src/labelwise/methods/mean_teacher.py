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

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.choose import select_rows
from labelwise.components.ramps import stair_ramp
from labelwise.components.teachers import Decay, EmaTeacher, complete
from labelwise.components.views import add_noise
from labelwise.losses.agreement import squared_difference
from labelwise.losses.partial import open_voxels, supervised
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.types import Batch, Progress

Part = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MeanTeacherConfig:
    ema_half_life: Part = 0.0115  # of the teacher, as a part of the training: a = 0.99 in 6000 steps
    ema_decay: Part | None = None  # a itself, at every length of training; published: 0.99
    consistency_weight: NonNegativeFloat = 0.1  # w at the end of the ramp
    ramp_fraction: NonNegativeFloat = 1.0  # part of the training over which w rises
    ramp_interval: Part = 0.025  # part of the training between two changes of w: 150 of 6000 steps
    noise_std: NonNegativeFloat = 0.1  # of the normalised image
    noise_clip: NonNegativeFloat = 0.2
    consistency_on: Literal["open", "all"] = "open"  # voxels that labels leave open, or every voxel
    squared_dice: bool = True
    dice_pooling: Literal["case", "batch"] = "batch"
    eval_model: Literal["student", "teacher"] = "teacher"


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
        return {"ema_decay": Decay(config.ema_half_life, config.ema_decay, warm_up=True)}

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
            "consistency": self.weight(progress) * self.consistency(logits, batch),
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

    def weight(self, progress: Progress) -> float:
        """w(t): the sigmoid ramp of the step, in stairs as in the official code."""
        return self.config.consistency_weight * stair_ramp(
            progress, self.config.ramp_fraction, self.config.ramp_interval
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def predictor(self) -> nn.Module:
        return Softmax(self.student if self.config.eval_model == "student" else self.teacher.network)
