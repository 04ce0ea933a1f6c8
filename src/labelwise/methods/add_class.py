"""Add a class: a trained model learns new classes from cases that annotate only these, and keeps those that it knows.

Source     Cermelli et al., CVPR 2020 (MiB, modelling the background), https://arxiv.org/abs/2002.00718
Spec       docs/methods/add_class.md

    old = the trained model (train --from), fixed;  student: begins with its weights, the rows of new classes at random
    for every batch (x, y, A):
        x_w: moved only (weak view);  x_s: intensities changed as well (strong view)
        q = softmax(old(x_w)) over the classes that old knows and that y and A leave open                  no gradient
        p = softmax(student(x_s)) over all classes that y and A leave open
        p~_0 = p_0 + sum of p_c over the new classes c: they were background to old;   p~_c = p_c for its structures
        minimise  supervised(student(x_s), y, A) + w * mean over open voxels of KL(q || p~)
"""

from __future__ import annotations

import torch
from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import select_rows
from labelwise.losses.deep import at_all_scales
from labelwise.losses.partial import (
    DiceForm,
    full_precision,
    in_regions,
    mean_over_cases,
    open_voxels,
    possible_classes,
    supervised,
)
from labelwise.methods.base import Card, CheckpointError, Method, NetFactory, Softmax
from labelwise.nets.transfer import Transfer
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AddClassConfig(DiceForm):
    # w; 0: nothing holds the old classes, which are then forgotten
    distillation_weight: NonNegativeFloat = 1.0


class AddClass(Method):
    card = Card(
        title="Add a class",
        paper="https://arxiv.org/abs/2002.00718",
        idea="A trained model learns new classes where they are annotated, and repeats itself where nothing is.",
        learns_from=frozenset({"full", "partial", "none"}),
        deep_supervision=True,
    )
    Config = AddClassConfig
    needs_weak_view = True
    keeps_classes = True

    known: Tensor  # (C,) bool: the classes of the old model, background included

    def __init__(self, nets: NetFactory, config: AddClassConfig):
        super().__init__()
        self.config = config
        self.student = nets.network()
        self.old = nets.network().requires_grad_(False)
        self.register_buffer("known", torch.ones(nets.num_classes, dtype=torch.bool))

    def begin_with(self, transfer: Transfer, known: Tensor) -> None:
        """Take the trained model for the old one, if all of it was taken over.

        Errors
            CheckpointError     some of its tensors do not fit: it would not say what it said before
        """
        if left := [name for name in transfer.left if name.startswith("old.")]:
            raise CheckpointError(
                "a model that is to keep its classes must be taken over as a whole",
                found=f"{left[0]}: {transfer.left[left[0]]}",
                expected="one network with a softmax over all classes, such as that of supervised or self_training",
                do="leave [net] out, so that it is that of the model; or start from a model of another method",
            )
        self.known.copy_(known)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        config = self.config

        def loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
            return supervised(
                logits, labels, annotated, squared=config.squared_dice, pooling=config.dice_pooling
            )

        scales = self.student.at_all_scales(batch.images)
        return {
            "supervised": at_all_scales(scales, (batch.labels, batch.annotated), loss),
            "distillation": config.distillation_weight * self._distillation(scales[0], batch),
        }

    def _distillation(self, logits: Tensor, batch: Batch) -> Tensor:
        """How far the student is from the old model where the labels leave several classes open."""
        rows = batch.unlabelled_rows
        if not rows:
            return 0 * logits.sum()
        images, labels, annotated, inside = (
            select_rows(values, rows)
            for values in (
                batch.images if batch.weak_images is None else batch.weak_images,
                batch.labels,
                batch.annotated,
                batch.inside,
            )
        )
        self.old.eval()  # the loop turns everything to training mode again, before each part of the training
        with torch.no_grad():
            old = self.old(images)
        # Where the background is possible: the new classes hide in that of the old model.
        where = open_voxels(labels, annotated, inside) & ~in_regions(labels, annotated)
        possible = possible_classes(labels, annotated) | ~where.unsqueeze(1)
        return mean_over_cases(divergence(old, select_rows(logits, rows), possible, self.known), where)

    def predictor(self) -> nn.Module:
        return Softmax(self.student)


def divergence(old: Tensor, new: Tensor, possible: Tensor, known: Tensor) -> Tensor:
    """KL(q || p~): q of the old model, p~ of the new one with its new classes counted as background.

    Shapes
        old, new    (B, C, *S)  logits; those of `old` for classes that it does not know are not read
        possible    (B, C, *S)  bool: where the background is among them
        known       (C,)        bool, the background among them
        returns     (B, *S)     in nats

    Example
        >>> old, new = torch.zeros(1, 3, 1), torch.tensor([[[1.0], [3.0], [2.0]]]).log()
        >>> known, everything = torch.tensor([True, True, False]), torch.ones(1, 3, 1, dtype=torch.bool)
        >>> divergence(old, new, everything, known).abs().round(decimals=4)   # q = (1/2, 1/2), p~ = (1/6 + 2/6, 3/6)
        tensor([[0.]])
    """
    known = known.view(-1, *(1 for _ in old.shape[2:]))
    asked = possible & known
    q = full_precision(old).masked_fill(~asked, -torch.inf).softmax(dim=1)
    log_p = full_precision(new).masked_fill(~possible, -torch.inf).log_softmax(dim=1)
    structures = known.clone()
    structures[0] = False
    background = log_p.masked_fill(structures, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([background, log_p[:, 1:]], dim=1).masked_fill(~asked, 0)
    terms: Tensor = torch.special.xlogy(q, q) - q * log_p
    return terms.sum(dim=1)
