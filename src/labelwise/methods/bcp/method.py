"""BCP: a box of an unlabelled scan is pasted into a labelled one, and a box of a labelled one into an unlabelled one.

Paper      Bai, Chen, Li, Shen & Wang, CVPR 2023, https://arxiv.org/abs/2305.00673
           (bidirectional copy-paste, after the stage of `bcp_pretraining`)
Spec       docs/methods/bcp.md: where paper and official code differ, and what we follow

    start from the student of the first stage; the teacher is a copy of it
    for every batch: annotated cases x_a, x_b with labels y and unlabelled cases u_a, u_b
        M = 0 in a box of 2/3 of every side at a random place, 1 outside;  one box for the whole batch
        y^ = class that teacher(u) prefers of those that the labels leave open;  largest part of each structure
        x_in  = x_a M + u_a (1 - M)             x_out = u_b M + x_b (1 - M)
        l(R, t) = CE + Dice with background of the student over the region R, by the size of R
        minimise  1/2 (l(M, y_a) + alpha l(1 - M, y^_a))  +  1/2 (alpha l(M, y^_b) + l(1 - M, y_b))
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from labelwise.components.batches import mix, select_rows
from labelwise.components.teachers import Decay, EmaTeacher
from labelwise.losses.partial import complete
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.methods.bcp.largest import LabelsOnHost
from labelwise.methods.bcp.pretraining import (
    BcpConfig,
    BcpPretraining,
    Rows,
    outside_of_box,
    pasted_supervision,
    region_loss,
)
from labelwise.types import IGNORE, Batch, Progress


class Bcp(Method):
    card = Card(
        title="BCP",
        paper="https://arxiv.org/abs/2305.00673",
        idea="Boxes of labelled and of pseudo-labelled scans are pasted into each other, both ways.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = BcpConfig
    presets: ClassVar[Presets] = BcpPretraining.presets
    follows = BcpPretraining

    def __init__(self, nets: NetFactory, config: BcpConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()
        self.teacher = EmaTeacher(
            self.student, self.decays(config)["ema_decay"], statistics=config.teacher_bn
        )

    @classmethod
    def decays(cls, config: BcpConfig) -> dict[str, Decay]:
        return {"ema_decay": config.decay(warm_up=False)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        anchors, guests = pair_up(batch.annotated_rows, batch.unlabelled_rows)
        if not guests:  # everything is annotated: a step of the first stage
            loss = pasted_supervision(self.student, batch, self.config)
            return {"supervised": loss, "pseudo": loss * 0}
        inward = (len(anchors) + 1) // 2  # pairs whose anchor is outside the box; the others go the other way
        keep = outside_of_box(batch.images.shape[2:], self.config.box_ratio, batch.images.device)
        of_anchor = torch.stack([keep] * inward + [~keep] * (len(anchors) - inward))
        guesses = self.guess(batch, guests, inward)
        on_host = LabelsOnHost(guesses) if self.config.largest_component else None
        mixed = mix(select_rows(batch.images, anchors), select_rows(batch.images, guests), of_anchor)
        logits = in_parts(self.student, mixed, len(mixed) if self.config.joint_forward else inward)
        truth = select_rows(batch.labels, anchors).where(of_anchor, IGNORE)
        known = select_rows(batch.annotated, anchors)
        if known.ndim > 2:  # the regions of an anchor say nothing of its guest
            known = known & of_anchor.unsqueeze(1)
        if on_host is not None:  # not earlier: the host works while the device computes the student's logits
            guesses = on_host.largest_parts(self.structures_in_one_part(batch.annotated_rows, guests))
        guessed = guesses.masked_fill(of_anchor | ~select_rows(batch.inside, guests), IGNORE)
        everything = batch.annotated.new_ones(len(guests), batch.annotated.shape[1])
        return {
            "supervised": region_loss(logits, truth, known, self.config),
            "pseudo": self.config.pseudo_weight * region_loss(logits, guessed, everything, self.config),
        }

    def guess(self, batch: Batch, guests: list[int], inward: int) -> Tensor:
        """The teacher's classes (N, *S) int64 for the guests as they are, unmixed; their own labels go first."""
        logits = in_parts(self.teacher, select_rows(batch.images, guests), inward)
        labels, annotated = select_rows(batch.labels, guests), select_rows(batch.annotated, guests)
        return complete(logits.softmax(dim=1), labels, annotated).argmax(dim=1)

    def structures_in_one_part(self, rows: Rows, guests: Sequence[int]) -> list[list[int]]:
        """The structures of each guest of which the largest part is kept: never one that is annotated there."""
        chosen = self.config.component_classes or range(1, len(rows[0]))
        return [[structure for structure in chosen if not rows[guest][structure]] for guest in guests]

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def start_from(self, previous: Method) -> tuple[str, ...]:
        """Take over the student of the first stage; the teacher begins as a copy of it."""
        missing = super().start_from(previous)
        self.teacher.network.load_state_dict(self.student.state_dict())
        return missing

    def predictor(self) -> nn.Module:
        return Softmax(self.config.predicting(self.student, self.teacher))


def pair_up(rows: Rows, guests: Sequence[int]) -> tuple[list[int], list[int]]:
    """Anchors, in which something is annotated, and the guest of each out of `guests`, in which something is not.

    All take part, the fewer of them several times, and there are at least two pairs: one for each direction. A case is
    its own guest only if there is no other one. No guests: nothing is left open. Without any annotated case unlabelled
    ones are the anchors, too: their part of the image then teaches nothing.

    Example
        >>> labelled, unlabelled = (False, True), (False, False)
        >>> pair_up([labelled, labelled, unlabelled, unlabelled], [2, 3]), pair_up([unlabelled, labelled], [0])
        (([0, 1], [2, 3]), ([1, 1], [0, 0]))
    """
    if not guests:
        return [], []
    anchors = [number for number, row in enumerate(rows) if any(row[1:])] or list(guests)
    count = max(2, len(anchors), len(guests))
    hosts = [anchors[place % len(anchors)] for place in range(count)]
    turned = ([guests[(place + turn) % len(guests)] for turn in range(len(guests))] for place in range(count))
    return hosts, [
        next((guest for guest in order if guest != host), host)
        for host, order in zip(hosts, turned, strict=True)
    ]


def in_parts(network: nn.Module, images: Tensor, size: int) -> Tensor:
    """The logits of so many cases at a time: the statistics of batch norm stay apart, as in the official code."""
    return torch.cat([network(images[first : first + size]) for first in range(0, len(images), size)])
