"""Self-training: an averaged teacher completes the labels of every case, and the student learns from spliced scans.

Source     the parts that published leaders have in common, joined for any mix of annotated classes:
           averaged teacher: Tarvainen & Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780;
           confident labels from a weak to a strong view: Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685;
           boxes cut into other scans, labelled and not: Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673
Spec       docs/methods/self_training.md

    for every batch (x, y, A):
        x_w: moved only (weak view);  x_s: intensities changed as well (strong view)
        q~ = softmax(teacher(x_w)) restricted to the classes that y and A leave open    unlabelled cases, no gradient
        t  = argmax q~;   c = r_t * max(0, (max q~ - tau) / (1 - tau)) in voxels that the labels leave open, else 0
             r: precision of a structure, or for background the mean recall of the structures that A leaves out;
                both are those of the student on annotated voxels of the last steps
        with the chance mu, each case gets a box of another case: x_s, y, A, t and c are cut alike
        minimise  supervised(student(x_s), y, A)
                  + w(progress) * mean c over open voxels * 1/2 (CE + Dice)(student(x_s), t), voxels weighted by c
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import cut_boxes, mix, select_rows
from labelwise.components.teachers import Decay, EmaTeacher, Part
from labelwise.losses.agreement import pseudo_dice
from labelwise.losses.deep import at_all_scales
from labelwise.losses.partial import (
    DiceForm,
    complete,
    open_voxels,
    per_voxel,
    pseudo_cross_entropy,
    supervised,
)
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.methods.self_training.reliability import Reliability
from labelwise.types import Batch, Progress

Among = Literal["all", "unlabelled"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SelfTrainingConfig(DiceForm):
    # half-life of the teacher's average, as a part of the training
    teacher_half_life: Annotated[float, Field(gt=0, lt=0.1)] = 0.01
    # tau: probability from which on a class of the teacher counts, the more so the nearer to 1; from 1/2 on no class
    # changes abruptly
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.5
    # w at the end of its rise
    pseudo_weight: NonNegativeFloat = 1.0
    # part of the training over which w rises evenly from 0
    ramp: Part = 0.1
    # the teacher's classes count as far as they are found, and right, where they are annotated
    reliability: bool = True
    # mu: chance of a case to get a box of another one
    cut_mix: Part = 0.5
    # part of the image that a box covers, smallest and largest
    box_area: tuple[Part, Part] = (0.05, 0.5)
    # which cases lend boxes to which: any to any, or only the unlabelled ones among themselves
    cut_among: Among = "all"
    # Dice of the pseudo-labels beside their cross-entropy
    pseudo_dice: bool = True


class Targets(NamedTuple):
    """What a teacher says of a batch."""

    classes: Tensor  # (B, *S) int64: what it takes each voxel for
    trust: Tensor  # (B, *S) in [0, 1]: how far that counts; 0 where labels decide


class Spliced(NamedTuple):
    """A batch with boxes of other cases."""

    images: Tensor  # (B, M, *S)
    labels: Tensor  # (B, *S) int64
    annotated: Tensor  # (B, C, *S) bool: what the case of a voxel annotates
    classes: Tensor  # (B, *S) int64, and
    trust: Tensor  # (B, *S): as in Targets
    inside: Tensor  # (B, *S) bool: no padding


class SelfTraining(Method):
    card = Card(
        title="Self-training",
        paper="",
        idea="An averaged teacher completes the labels of each case; the student learns from spliced scans.",
        learns_from=frozenset({"full", "partial", "none"}),
        deep_supervision=True,
    )
    Config = SelfTrainingConfig
    needs_weak_view = True

    def __init__(self, nets: NetFactory, config: SelfTrainingConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()
        self.teacher = EmaTeacher(self.student, self.decays(config)["teacher_half_life"])
        self.reliability = Reliability(nets.num_classes)

    @classmethod
    def decays(cls, config: SelfTrainingConfig) -> dict[str, Decay]:
        return {"teacher_half_life": Decay(config.teacher_half_life, warm_up=True)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        targets = complete_labels(self.teacher, batch, self.config, self.reliability)
        spliced = splice(batch, targets, self.config)
        scales = self.student.at_all_scales(spliced.images)
        keep = self.teacher.decay.keep(progress)
        self.reliability.observe(scales[0].detach(), spliced.labels, spliced.annotated, keep)
        return spliced_loss(scales, spliced, self.config, progress)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def predictor(self) -> nn.Module:
        return Softmax(self.teacher.network)


def complete_labels(
    teacher: nn.Module, batch: Batch, config: SelfTrainingConfig, reliability: Reliability
) -> Targets:
    """What a teacher takes the open voxels of the weak view for, and how far that counts."""
    classes, trust = torch.zeros_like(batch.labels), torch.zeros_like(batch.images[:, 0])
    rows = batch.unlabelled_rows
    if not rows:
        return Targets(classes, trust)
    images = batch.images if batch.weak_images is None else batch.weak_images
    labels, annotated = select_rows(batch.labels, rows), select_rows(batch.annotated, rows)
    probabilities = complete(teacher(select_rows(images, rows)).softmax(dim=1), labels, annotated)
    certainty, best = probabilities.max(dim=1)
    tau = config.confidence
    is_open = open_voxels(labels, annotated, select_rows(batch.inside, rows))
    counts = ((certainty - tau) / (1 - tau)).clamp_min(0) * is_open
    if config.reliability:
        counts = counts * reliability.of(best, labels, annotated)
    index = _on(torch.tensor(rows), classes)
    return Targets(classes.index_copy(0, index, best), trust.index_copy(0, index, counts.to(trust.dtype)))


def splice(batch: Batch, targets: Targets, config: SelfTrainingConfig) -> Spliced:
    """The strong view and all that is known of it, with boxes of other cases."""
    rows = list(range(len(batch.images)))
    partner = partners(batch, rows, config.cut_among)
    shape = batch.images.shape[2:]
    whole = torch.rand(len(rows)) >= config.cut_mix  # drawn on the host, like the boxes
    alone = torch.tensor([one == other for one, other in zip(rows, partner, strict=True)])
    keep = cut_boxes(len(rows), shape, area=config.box_area, device=batch.images.device)
    keep = keep | _on(whole | alone, keep).view(-1, *(1 for _ in shape))
    annotated = per_voxel(batch.annotated, batch.labels)
    parts = (batch.images, batch.labels, annotated, *targets, batch.inside)
    return Spliced(*(mix(values, select_rows(values, partner), keep) for values in parts))


def spliced_loss(
    scales: Sequence[Tensor], spliced: Spliced, config: SelfTrainingConfig, progress: Progress
) -> dict[str, Tensor]:
    """The terms of the loss: against the labels, and against what the teacher takes open voxels for.

    The second one weighs as much as the teacher is trusted on average over the open voxels.
    """
    _, labels, annotated, classes, trust, inside = spliced

    def labelled_loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
        return supervised(logits, labels, annotated, squared=config.squared_dice, pooling=config.dice_pooling)

    def completed_loss(logits: Tensor, classes: Tensor, trust: Tensor) -> Tensor:
        return pseudo_loss(logits, classes, trust, config)

    weight = config.pseudo_weight * min(1.0, progress.fraction / max(config.ramp, 1e-9))
    trusted = trust.sum() / open_voxels(labels, annotated, inside).sum().clamp_min(1)
    return {
        "supervised": at_all_scales(scales, (labels, annotated), labelled_loss),
        "pseudo": weight * trusted * at_all_scales(scales, (classes, trust), completed_loss),
    }


def partners(batch: Batch, rows: list[int], among: Among) -> list[int]:
    """Which case lends its box to which; a case without a partner lends to itself, which changes nothing."""
    circle = rows if among == "all" else batch.unlabelled_rows
    (turn,) = torch.randint(1, max(len(circle), 2), (1,)).tolist()
    lent = {row: circle[(place + turn) % len(circle)] for place, row in enumerate(circle)}
    return [lent.get(row, row) for row in rows]


def pseudo_loss(logits: Tensor, target: Tensor, trust: Tensor, config: SelfTrainingConfig) -> Tensor:
    """Cross-entropy, and Dice, against what a teacher takes each voxel for."""
    loss = pseudo_cross_entropy(logits, target, voxel_weights=trust)
    if not config.pseudo_dice:
        return loss
    dice = pseudo_dice(
        logits,
        target,
        voxel_weights=trust,
        background=False,
        squared=config.squared_dice,
        pooling=config.dice_pooling,
        absent="skip",
    )
    return (loss + dice) / 2


def _on(values: Tensor, like: Tensor) -> Tensor:
    """Host values on the device of `like`, without waiting for it."""
    values = values.pin_memory() if like.is_cuda else values
    return values.to(like.device, non_blocking=True)
