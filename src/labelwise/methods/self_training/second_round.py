"""Noisy student: a second round of self-training, in which a fresh student learns from the finished teacher.

Source     Xie, Luong, Hovy & Le, CVPR 2020 (noisy student), https://arxiv.org/abs/1911.04252
           after the round of `self_training`
Spec       docs/methods/noisy_student.md

    labeller = teacher of the finished `self_training`; student: random weights
    for every batch as in `self_training`, but the labels are completed by the labeller
        minimise  supervised(student(x_s), y, A) + w * 1/2 (CE + Dice)(student(x_s), t)      from the first step on
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student            it predicts
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelwise.components.teachers import Decay, EmaTeacher
from labelwise.methods.base import Card, CheckpointError, Method, NetFactory, Softmax
from labelwise.methods.self_training.method import (
    SelfTraining,
    SelfTrainingConfig,
    complete_labels,
    splice,
    spliced_loss,
)
from labelwise.methods.self_training.reliability import Reliability
from labelwise.types import Batch, Progress


class NoisyStudent(Method):
    card = Card(
        title="Noisy student",
        paper="https://arxiv.org/abs/1911.04252",
        idea="After self-training a fresh student learns from labels that the finished teacher completes.",
        learns_from=frozenset({"full", "partial", "none"}),
        deep_supervision=True,
    )
    Config = SelfTrainingConfig
    follows = SelfTraining
    needs_weak_view = True

    def __init__(self, nets: NetFactory, config: SelfTrainingConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()
        self.labeller = nets.network().requires_grad_(False)
        self.teacher = EmaTeacher(self.student, self.decays(config)["teacher_half_life"])
        self.reliability = Reliability(nets.num_classes, believed=True)  # of the labeller

    @classmethod
    def decays(cls, config: SelfTrainingConfig) -> dict[str, Decay]:
        return {"teacher_half_life": Decay(config.teacher_half_life, warm_up=True)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        self.labeller.eval()  # the loop turns everything to training mode again, before each part of the training
        with torch.no_grad():
            targets = complete_labels(self.labeller, batch, self.config, self.reliability)
        spliced = splice(batch, targets, self.config)
        scales = self.student.at_all_scales(spliced.images)
        at_once = progress._replace(step=progress.total)  # the labeller is right from the first step on
        return spliced_loss(scales, spliced, self.config, at_once)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def start_from(self, previous: Method) -> tuple[str, ...]:
        """Take over the teacher of the first round as the labeller; student and teacher begin anew.

        Errors
            CheckpointError     its network has other weights
        """
        if not isinstance(previous, SelfTraining):
            raise CheckpointError(f"{type(previous).__name__} is no first round of {type(self).__name__}")
        finished, own = previous.teacher.network.state_dict(), self.labeller.state_dict()
        if any(finished[name].shape != own[name].shape for name in own):
            raise CheckpointError(
                f"{type(previous).__name__} does not fit into {type(self).__name__}",
                do="train both stages with the same network, image channels and classes",
            )
        self.labeller.load_state_dict(finished)
        self.reliability.load_state_dict(previous.reliability.state_dict())
        return tuple(name for name in self.state_dict() if not name.startswith(("labeller.", "reliability.")))

    def predictor(self) -> nn.Module:
        return Softmax(self.teacher.network)
