"""BCP, first stage: annotated scans are pasted into each other, and nothing else is learnt from.

Paper      Bai, Chen, Li, Shen & Wang, CVPR 2023, https://arxiv.org/abs/2305.00673 (bidirectional copy-paste)
Spec       docs/methods/bcp_pretraining.md: where paper and official code differ, and what we follow

    for every batch, annotated cases (x, y, A) only, the first half a, the second half b:
        M = 0 in a box of 2/3 of every side at a random place, 1 outside;  one box for the whole batch
        x = x_a M + x_b (1 - M);    y, A are mixed alike, voxel by voxel
        minimise  1/2 (CE(student(x); y on A) + Dice, background included)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import mix, select_rows
from labelwise.components.teachers import Part, StudentAndTeacher
from labelwise.losses.partial import (
    AbsentDice,
    annotated_dice,
    dice_with_background,
    marginal_cross_entropy,
    per_voxel,
)
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.types import Batch, Progress

Rows = Sequence[Sequence[bool]]  # `Batch.annotated_rows`


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BcpConfig(StudentAndTeacher, AbsentDice):
    """Settings of both stages, which share one table; the first stage does not read those below the line."""

    ema_half_life: Part = 0.0046  # a = 0.99 in 15000 steps
    box_ratio: Annotated[float, Field(gt=0, lt=1)] = 2 / 3  # beta: side of the box, as a part of the patch
    include_background: bool = True  # the Dice counts the background as a class
    constant_rate: bool = True  # the first stage ignores train.schedule, as published
    # ---- second stage only
    pseudo_weight: NonNegativeFloat = 0.5  # alpha
    teacher_bn: Literal["batch", "eval"] = "batch"  # statistics of its own batch, or running ones of its own
    largest_component: bool = True  # pseudo-labels keep the largest part of each structure only
    component_classes: tuple[PositiveInt, ...] = ()  # structures for which that holds; none named: every one
    joint_forward: bool = False  # both directions in one pass; the statistics of batch norm are then shared


class BcpPretraining(Method):
    card = Card(
        title="BCP, first stage (pre-training)",
        paper="https://arxiv.org/abs/2305.00673",
        idea="A large box of one annotated scan is pasted into another one.",
        learns_from=frozenset({"full", "partial"}),
    )
    Config = BcpConfig
    presets: ClassVar[Presets] = {"acdc": {"ema_half_life": 0.0023}}  # 30000 steps

    def __init__(self, nets: NetFactory, config: BcpConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        return {"supervised": pasted_supervision(self.student, batch, self.config)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.config.constant_rate:
            groups = [{**group, "schedule": {"name": "constant"}} for group in groups]
        return groups

    def predictor(self) -> nn.Module:
        return Softmax(self.student)


def pasted_supervision(network: nn.Module, batch: Batch, config: BcpConfig) -> Tensor:
    """The loss of the first stage; 0 with a zero gradient if no case of the batch is annotated."""
    outer, inner = halves(batch.annotated_rows)
    keep = outside_of_box(batch.images.shape[2:], config.box_ratio, batch.images.device)
    keep = keep.expand(len(outer), *keep.shape)

    def pasted(values: Tensor) -> Tensor:
        return mix(select_rows(values, outer), select_rows(values, inner), keep)

    annotated = pasted(per_voxel(batch.annotated, batch.labels))
    return region_loss(network(pasted(batch.images)), pasted(batch.labels), annotated, config) / 2


def region_loss(logits: Tensor, labels: Tensor, annotated: Tensor, config: BcpConfig) -> Tensor:
    """Cross-entropy plus Dice over the labelled voxels: a region of an image is what is not IGNORE outside of it.

    Both are divided by the size of that region, for each case.

    Shapes
        logits      (B, C, *S)
        labels      (B, *S)  int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        returns     ()       0 with a zero gradient if nothing is labelled
    """
    dice = dice_with_background if config.include_background else annotated_dice
    cross_entropy = marginal_cross_entropy(logits, labels, annotated)
    return cross_entropy + dice(logits, labels, annotated, absent=config.absent_dice)


def outside_of_box(shape: Sequence[int], ratio: float, device: torch.device) -> Tensor:
    """M: true but in a box whose sides are `ratio` times those of the image, rounded down; (*shape) bool.

    The corner is uniform in [0, side of the image - side of the box), the upper end excluded as published.
    """
    keep = torch.ones(*shape, dtype=torch.bool, device=device)
    box = []
    for length, place in zip(shape, torch.rand(len(shape)).tolist(), strict=True):
        side = int(ratio * length)
        low = int(place * (length - side))
        box.append(slice(low, low + side))
    keep[tuple(box)] = False
    return keep


def halves(rows: Rows) -> tuple[list[int], list[int]]:
    """Which annotated case gets the box of which other one: the second half goes into the first.

    An odd one out is pasted with the first case, a single one with itself, which changes nothing. Without any
    annotated case all others stand in, so that there are logits to be silent about.

    Example
        >>> halves([(False, True)] * 4), halves([(False, True)] * 3)
        (([0, 1], [2, 3]), ([0, 1], [2, 0]))
    """
    chosen = [number for number, row in enumerate(rows) if any(row[1:])] or list(range(len(rows)))
    half = (len(chosen) + 1) // 2
    return chosen[:half], [chosen[(place + half) % len(chosen)] for place in range(half)]
