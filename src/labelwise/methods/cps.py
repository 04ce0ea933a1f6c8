"""CPS: two networks that started differently teach each other by hard pseudo-labels.

Paper      Chen, Yuan, Zeng & Wang, CVPR 2021, https://arxiv.org/abs/2106.01226
           (medical settings: the port of SSL4MIS, which medical papers mean by CPS)
Spec       docs/methods/cps.md: where paper and official code differ, and what we follow

    two networks f_1, f_2 of one kind, initialised differently
    for every batch (x, y, A):
        z_m = f_m(x)
        y_m = argmax of z_m over the classes that y and A leave possible             no gradient, no threshold
        minimise  sum over m of supervised(z_m, y, A) + w(t) * (CE(z_1, y_2) + CE(z_2, y_1))
                                                                       over voxels that are left open
        both networks: one optimiser step

    with CutMix the crossed terms see boxes of another case in each unlabelled one: x~ = mix(x, x', boxes)
        y_m = argmax of mix(z_m, z'_m, boxes);   CE(f_1(x~), y_2) + CE(f_2(x~), y_1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import mix, partners, select_rows
from labelwise.components.teachers import (
    CLASSIFIERS,
    Classifier,
    Consistency,
    Part,
    TwoNetworks,
    start_differently,
)
from labelwise.losses.partial import (
    AbsentDice,
    DiceForm,
    dice_with_background,
    hard_labels,
    marginal_cross_entropy,
    open_voxels,
    per_voxel,
    pseudo_cross_entropy,
)
from labelwise.methods.base import Card, Method, NetFactory
from labelwise.types import Batch, Progress

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CpsConfig(Consistency, DiceForm, AbsentDice):
    ramp_interval: Part = 0.005  # 150 of 30000 steps
    consistency_on: Literal["open", "all"] = "open"  # voxels that labels leave open, or every voxel
    pseudo_labels: Literal["completed", "plain"] = "completed"  # restricted by the labels, or not
    cut_mix: bool = False  # the crossed terms see spliced cases
    cut_boxes: PositiveInt = 3  # boxes per case
    cut_area: tuple[Share, Share] = (0.25, 0.5)  # part of the image under all boxes together, before overlaps
    supervised_loss: Literal["cross_entropy_and_dice", "cross_entropy"] = "cross_entropy_and_dice"
    initialisation: Literal["kaiming_xavier", "default"] = "kaiming_xavier"
    classifier: Classifier = "first"  # the network that predicts, or their mean


class Cps(Method):
    card = Card(
        title="CPS",
        paper="https://arxiv.org/abs/2106.01226",
        idea="Two differently initialised networks learn from each other's hard pseudo-labels.",
        learns_from=frozenset({"full", "partial", "none"}),
    )
    Config = CpsConfig
    classifiers = CLASSIFIERS

    def __init__(self, nets: NetFactory, config: CpsConfig):
        super().__init__()
        self.config = config
        self.first = nets.network()
        self.second = nets.network()
        if config.initialisation == "kaiming_xavier":
            start_differently(self.first, self.second)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.first(batch.images), self.second(batch.images)
        return {
            "supervised": self.supervised(logits[0], batch) + self.supervised(logits[1], batch),
            "cross_pseudo": self.config.weight(progress) * self.cross_pseudo(logits, batch),
        }

    def supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        """Half of cross-entropy and Dice, background included; or the cross-entropy alone, as in the paper."""
        cross_entropy = marginal_cross_entropy(logits, batch.labels, batch.annotated)
        if self.config.supervised_loss == "cross_entropy":
            return cross_entropy
        dice = dice_with_background(
            logits,
            batch.labels,
            batch.annotated,
            squared=self.config.squared_dice,
            pooling=self.config.dice_pooling,
            absent=self.config.absent_dice,
        )
        return (cross_entropy + dice) / 2

    def cross_pseudo(self, logits: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Each network against the other's pseudo-labels, where the labels leave something open."""
        open_only = self.config.consistency_on == "open"
        rows = batch.unlabelled_rows if open_only else list(range(len(batch.images)))
        if not rows:
            return (logits[0].sum() + logits[1].sum()) * 0
        labels, annotated = select_rows(batch.labels, rows), select_rows(batch.annotated, rows)
        first, second = (select_rows(z, rows) for z in logits)
        inside = select_rows(batch.inside, rows)
        opinions = first.detach(), second.detach()
        if self.config.cut_mix:
            splice = self.splicer(batch, rows)
            images = splice(select_rows(batch.images, rows))
            labels, annotated = splice(labels), splice(per_voxel(annotated, labels))
            inside = splice(inside)
            opinions = splice(opinions[0]), splice(opinions[1])
            first, second = self.first(images), self.second(images)
        targets = [self.targets(opinion, labels, annotated) for opinion in opinions]
        where = open_voxels(labels, annotated, inside) if open_only else inside
        return cross_teaching(first, second, targets[0], targets[1], where)

    def targets(self, opinion: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
        """The pseudo-labels (B, *S) of one network."""
        if self.config.pseudo_labels == "plain":
            return opinion.argmax(dim=1)
        return hard_labels(opinion, labels, annotated)

    def splicer(self, batch: Batch, rows: list[int]) -> Splicer:
        """One mask for all that belongs to these cases; each is mixed with the next one."""
        keep = toggled_boxes(
            len(rows),
            batch.images.shape[2:],
            boxes=self.config.cut_boxes,
            area=self.config.cut_area,
            device=batch.images.device,
        )
        return Splicer(partners([batch.annotated_rows[row] for row in rows]), keep)

    def predictor(self) -> nn.Module:
        return TwoNetworks(self.first, self.second, self.config.classifier)


class Splicer:
    """Mixes whatever belongs to a row of cases: images, labels, what is annotated, logits."""

    def __init__(self, other: list[int], keep: Tensor):
        self.other = other
        self.keep = keep

    def __call__(self, values: Tensor) -> Tensor:
        """(B, *S) or (B, K, *S), any type -> the same, each case with boxes of its partner."""
        return mix(values, select_rows(values, self.other), self.keep)


def cross_teaching(
    first: Tensor, second: Tensor, first_target: Tensor, second_target: Tensor, where: Tensor | None = None
) -> Tensor:
    """CE(first, second_target) + CE(second, first_target), each a mean over the voxels of `where`.

    Shapes
        first, second                   (B, C, *S)  float, before softmax
        first_target, second_target     (B, *S)     int64, the pseudo-labels of the two networks
        where                           (B, *S)     bool; None means everywhere
        returns                         ()          0 with a zero gradient if `where` is empty
    """
    return pseudo_cross_entropy(first, second_target, where) + pseudo_cross_entropy(
        second, first_target, where
    )


def toggled_boxes(
    count: int,
    shape: Sequence[int],
    *,
    boxes: int = 3,
    area: tuple[float, float] = (0.25, 0.5),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Where each case keeps its own voxels: where an even number of its boxes lie.

    Each box covers the part a / boxes of the image, a uniform in `area`. Its sides are a power of a / boxes each, and
    the exponents are uniform among those that sum to 1. It lies anywhere inside the image with equal chance.
    All is drawn on the host, as the loop seeds it; only the corners of the boxes go to the device.

    Shapes
        returns     (count, *shape) bool, for `components.batches.mix`

    Source
        French et al., BMVC 2020, https://arxiv.org/abs/1906.01916, as used for CutMix by Chen et al., CVPR 2021 (CPS);
        the exponents (u, 1 - u) of two sides are generalised to any number of axes.
    """
    dims = len(shape)
    part = torch.empty(count, boxes, 1).uniform_(*area) / boxes
    exponents = torch.empty(count, boxes, dims).exponential_()
    lengths = torch.tensor(shape)
    size = (part ** (exponents / exponents.sum(dim=2, keepdim=True)) * lengths).round()
    low = (torch.rand(count, boxes, dims) * (lengths - size + 1)).floor()
    corners = torch.stack([low, low + size])
    target = torch.device(device)
    if target.type == "cuda":
        corners = corners.pin_memory()
    first, end = corners.to(target, non_blocking=True)
    inside = torch.ones(count, boxes, *(1 for _ in shape), dtype=torch.bool, device=target)
    for axis, length in enumerate(shape):
        place = torch.arange(length, device=target)
        covered = (place >= first[..., axis, None]) & (place < end[..., axis, None])
        inside = inside & covered.view(
            count, boxes, *(length if other == axis else 1 for other in range(dims))
        )
    return inside.sum(dim=1) % 2 == 0
