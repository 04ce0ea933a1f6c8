"""UCMT: two students and their teacher learn together, also from scans whose doubtful parts are covered.

Paper      Shen, Cao, Yang, Liu, Yang & Zaiane, IJCAI 2023, https://arxiv.org/abs/2301.04465
Spec       docs/methods/ucmt.md: where paper and official code differ, and what we follow

    for every batch (x, y, A), with D = Dice loss of all classes, background included:
        z_1 = student_1(blur(x));   z_2 = student_2(blur'(x));   z_t = teacher(x)          no gradient in z_t
        y_1, y_2, y_t = argmax of z_1, z_2, z_t over the classes that y and A leave possible
        L = mean over m of D(z_m, y on A)
            + w(t) * mean over m of ( D(z_m, y_other student) + D(z_m, y_t) )                unlabelled cases
        U_m = entropy of (softmax(z_m) + softmax(z_t)) / 2, averaged over the patches of a grid
        the k patches with largest U_1 <- those with smallest U_2, and the reverse            U-Mix, within each scan
        L' = the same for the students on the mixed blur(x), with y and y_t mixed alike, y_1 and y_2 predicted anew
        minimise  L + L'                                     (two_steps: L, and then L' for the students as they are)
        students: one optimiser step;   teacher <- a * teacher + (1 - a) * (0.99 student_1 + 0.01 student_2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import select_rows, sometimes_blurred, strong_view
from labelwise.components.teachers import Averaged, Consistency, Decay, EmaTeacher, Part
from labelwise.losses.agreement import pseudo_dice
from labelwise.losses.partial import Absent, AbsentDice, dice_with_background, full_precision, hard_labels
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.methods.ucmt.u_mix import certain_over_uncertain, patch_means, patch_shape, rearrange
from labelwise.types import Batch, Progress

PATCHES_PER_AXIS = {2: 16, 3: 8}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UcmtConfig(Averaged, Consistency, AbsentDice):
    ramp_fraction: NonNegativeFloat = 0.2  # 5 of 25 epochs on ISIC
    ramp_interval: Part = 0.0
    absent_dice: Absent = "include"
    consistency_on: Literal["open", "all"] = "open"  # unlabelled cases, or every case
    u_mix: bool = True  # learn from the mixed scans, too
    two_steps: bool = False  # an optimiser step for L and one for L', as published; else one for their sum
    covered_patches: PositiveInt = 2  # k, for each student
    cuts: PositiveInt | None = None  # at least so many patches along each axis; none: 16 in 2D, 8 in 3D
    view: Literal["blur", "strong", "none"] = "blur"  # what each student sees of the image
    second_share: Part = 0.01  # of the second student in what the teacher follows
    eval_model: Literal["teacher", "first", "second"] = "teacher"


class Mixed(NamedTuple):
    """What is learnt from scans whose doubtful parts are covered."""

    images: Tensor
    guess: Tensor  # (B, *S) of the teacher, for the mixed images
    batch: Batch  # with labels for the mixed images


class Losses(NamedTuple):
    """The three parts of the objective, before the weight."""

    supervised: Tensor
    cross_pseudo: Tensor
    teacher_pseudo: Tensor


class Ucmt(Method):
    card = Card(
        title="UCMT",
        paper="https://arxiv.org/abs/2301.04465",
        idea="Two students and a teacher share pseudo-labels, also where certain patches cover uncertain ones.",
        learns_from=frozenset({"full", "partial", "none"}),
        accumulates=False,
    )
    Config = UcmtConfig
    presets: ClassVar[Presets] = {  # 20000 steps of a batch, and two of the optimisers in each
        "la2018": {"ramp_fraction": 0.005, "two_steps": True, "ema_half_life": 0.00172}
    }

    def __init__(self, nets: NetFactory, config: UcmtConfig):
        super().__init__()
        self.config = config
        self.cuts = config.cuts or PATCHES_PER_AXIS[nets.dims]
        self.first = nets.network()
        self.second = nets.network()
        self.teacher = EmaTeacher(self.first, self.decays(config)["ema_decay"])
        self.steps_per_batch = optimiser_steps(config)
        self.mixed: Mixed | None = None

    @classmethod
    def decays(cls, config: UcmtConfig) -> dict[str, Decay]:
        return {"ema_decay": config.decay(warm_up=True, moves=optimiser_steps(config))}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        losses = []
        if progress.part == 0:
            views = self.view(batch.images), self.view(batch.images)
            logits = self.first(views[0]), self.second(views[1])
            opinion = self.teacher(batch.images)
            guess = hard_labels(opinion, batch.labels, batch.annotated)
            losses.append(self.objective(logits, guess, batch))
            if self.config.u_mix:
                source, patch = self.cover(logits, opinion, batch.inside)
                images, labels, guess, inside = (
                    rearrange(values, source, patch)
                    for values in (views[0], batch.labels, guess, batch.inside)
                )
                annotated = batch.annotated
                if annotated.ndim > 2:
                    annotated = rearrange(annotated, source, patch)
                covered = batch._replace(labels=labels, annotated=annotated, valid=inside)
                self.mixed = Mixed(images, guess, covered)
        if self.mixed is not None and progress.part == self.steps_per_batch - 1:
            images, guess, mixed_batch = self.mixed
            self.mixed = None
            losses.append(self.objective((self.first(images), self.second(images)), guess, mixed_batch))
        supervised, cross_pseudo, teacher_pseudo = (
            torch.stack(parts).sum() for parts in zip(*losses, strict=True)
        )
        weight = self.config.weight(progress)
        return {
            "supervised": supervised,
            "cross_pseudo": weight * cross_pseudo,
            "teacher_pseudo": weight * teacher_pseudo,
        }

    def view(self, images: Tensor) -> Tensor:
        """What one student sees; drawn anew at every call."""
        if self.config.view == "none":
            return images
        return sometimes_blurred(images) if self.config.view == "blur" else strong_view(images)

    def objective(self, logits: tuple[Tensor, Tensor], guess: Tensor, batch: Batch) -> Losses:
        """Labels, the other student's pseudo-labels, and the teacher's `guess` (B, *S) on one version of the images."""
        absent = self.config.absent_dice
        supervised = [dice_with_background(z, batch.labels, batch.annotated, absent=absent) for z in logits]
        supervised_mean = torch.stack(supervised).mean()
        all_rows = list(range(len(guess)))
        rows = all_rows if self.config.consistency_on == "all" else batch.unlabelled_rows
        if not rows:
            nothing = (logits[0].sum() + logits[1].sum()) * 0
            return Losses(supervised_mean, nothing, nothing)
        labels, annotated, guess, where = (
            select_rows(values, rows) for values in (batch.labels, batch.annotated, guess, batch.inside)
        )
        first, second = (select_rows(z, rows) for z in logits)
        targets = [hard_labels(z, labels, annotated) for z in (first, second)]
        pairs = ((first, targets[1]), (second, targets[0]), (first, guess), (second, guess))
        crossed, back, *taught = (pseudo_dice(z, y, where, absent=absent) for z, y in pairs)
        return Losses(supervised_mean, (crossed + back) / 2, (taught[0] + taught[1]) / 2)

    @torch.no_grad()
    def cover(
        self, logits: tuple[Tensor, Tensor], opinion: Tensor, inside: Tensor
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Which patch each patch is filled with, (B, L), and the sides of a patch in voxels.

        A patch that is mostly padding is neither covered nor does it cover: it counts as middling.
        """
        patch = patch_shape(opinion.shape[2:], self.cuts)
        ours = patch_means(inside.to(opinion.dtype), patch) >= 0.5
        doubts = [patch_means(uncertainty(z, opinion), patch) for z in logits]
        first, second = (doubt.where(ours, mean_of_rows(doubt, ours).unsqueeze(1)) for doubt in doubts)
        return certain_over_uncertain(first, second, self.config.covered_patches), patch

    def after_step(self, progress: Progress) -> None:
        teacher, first, second = (
            [parameter.data for parameter in network.parameters()]
            for network in (self.teacher.network, self.first, self.second)
        )
        keep = self.teacher.decay.keep(progress)
        follow_two(teacher, first, second, keep=keep, second_share=self.config.second_share)

    def predictor(self) -> nn.Module:
        networks = {"teacher": self.teacher.network, "first": self.first, "second": self.second}
        return Softmax(networks[self.config.eval_model])


def optimiser_steps(config: UcmtConfig) -> int:
    """How many each batch gets."""
    return 2 if config.two_steps and config.u_mix else 1


def mean_of_rows(values: Tensor, where: Tensor) -> Tensor:
    """(B, L), (B, L) bool -> (B,) mean of each row where the mask is true; 0 if it is nowhere."""
    return torch.where(where, values, 0).sum(dim=1) / where.sum(dim=1).clamp_min(1)


def uncertainty(student: Tensor, teacher: Tensor) -> Tensor:
    """Entropy of the mean of two predictions, in nats: logits (B, C, *S) twice -> (B, *S) float32."""
    mean = (full_precision(student).softmax(dim=1) + full_precision(teacher).softmax(dim=1)) / 2
    return -(mean * (mean + 1e-6).log()).sum(dim=1)


@torch.no_grad()
def follow_two(
    teacher: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    *,
    keep: float,
    second_share: float,
) -> None:
    """teacher <- keep * teacher + (1 - keep) * ((1 - second_share) * first + second_share * second), in place."""
    students = torch._foreach_lerp(list(first), list(second), second_share)
    torch._foreach_lerp_(list(teacher), students, 1 - keep)
