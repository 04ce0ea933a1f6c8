"""Several outputs for the same images: they share one supervision, and each follows what the others say more sharply.

Source
    Wu et al., MICCAI 2021 (MC-Net), https://arxiv.org/abs/2103.02911, and Medical Image Analysis 2022 (MC-Net+),
    https://arxiv.org/abs/2109.09960.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from labelwise.losses.consistency import squared_difference
from labelwise.losses.partial import (
    Absent,
    annotated_dice,
    marginal_cross_entropy,
    open_voxels,
    possible_classes,
)
from labelwise.losses.reduction import full_precision

ChannelReduction = Literal["half_sum", "mean"]
PairReduction = Literal["sum", "mean"]
Region = Literal["all", "open"]

SMOOTH = 1e-8  # of the Dice in the published codes


def summed_supervision(
    outputs: Sequence[Tensor], labels: Tensor, annotated: Tensor, *, use_ce: bool, absent: Absent = "skip"
) -> Tensor:
    """Linear Dice pooled over the batch, summed over the outputs; with `use_ce` the marginal cross-entropy too.

    Shapes
        outputs     each (B, C, *S) logits
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C)      bool
        returns     ()          exactly 0 with a zero gradient if nothing is labelled
    """
    losses = [
        annotated_dice(logits, labels, annotated, pooling="batch", absent=absent, smooth=SMOOTH)
        for logits in outputs
    ]
    if use_ce:
        losses += [marginal_cross_entropy(logits, labels, annotated) for logits in outputs]
    return torch.stack(losses).sum()


def sharpen(logits: Tensor, temperature: float, possible: Tensor | None = None) -> Tensor:
    """softmax(logits / temperature), among the possible classes only.

    Equals ``p_c^(1/T) / sum_j p_j^(1/T)`` of the probabilities p, without powers that underflow.

    Shapes
        logits      (B, C, *S)  float
        possible    (B, C, *S)  bool, at least one class per voxel; None: all
        returns     (B, C, *S)  sums to one over C

    Example
        >>> sharpen(torch.tensor([[0.8, 0.2]]).log(), temperature=0.5)  # 0.64 : 0.04
        tensor([[0.9412, 0.0588]])
    """
    scaled = full_precision(logits) / temperature
    if possible is not None:
        scaled = scaled.masked_fill(~possible, -torch.inf)
    return scaled.softmax(dim=1)


def mutual_region(labels: Tensor, annotated: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Where outputs should agree, and on which classes.

    "open": where the labels leave several classes possible, on one of these. "all": in addition everywhere in complete
    cases, on any class, as in the published codes.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C)      bool
        returns     (B, *S) bool and (B, C, *S) bool
    """
    where, possible = open_voxels(labels, annotated), possible_classes(labels, annotated)
    if region == "open":
        return where, possible
    complete = annotated[:, 1:].all(dim=1).view(-1, *(1 for _ in labels.shape[1:]))
    return where | complete, possible | complete.unsqueeze(1)


def mutual_consistency(
    outputs: Sequence[Tensor],
    where: Tensor | None = None,
    possible: Tensor | None = None,
    *,
    temperature: float = 0.1,
    detach_targets: bool = False,
    channel_reduction: ChannelReduction = "half_sum",
    pair_reduction: PairReduction = "sum",
) -> Tensor:
    """Squared distance of every output to the sharpened maps of every other one, mean over the voxels of `where`.

    ``sum over a != b of mean (softmax(z_a) - sharpen(z_b))^2``.

    Shapes
        outputs             each (B, C, *S) logits
        where               (B, *S)     bool; None: everywhere
        possible            (B, C, *S)  bool: what a target may say; None: everything
        detach_targets      no gradient through the sharpened maps (the published codes have one)
        channel_reduction   "mean" over the C classes, as published; "half_sum" is the same for two classes, and does
                            not shrink with more
        pair_reduction      "sum" over the ordered pairs, as published, or their mean
        returns             ()          exactly 0 with a zero gradient if `where` is empty
    """
    probabilities = [full_precision(logits).softmax(dim=1) for logits in outputs]
    targets = [sharpen(logits, temperature, possible) for logits in outputs]
    if detach_targets:
        targets = [target.detach() for target in targets]
    pairs = torch.stack(
        [
            squared_difference(probabilities[learner], targets[teacher], where)
            for learner, teacher in permutations(range(len(outputs)), 2)
        ]
    )
    total = pairs.sum() if pair_reduction == "sum" else pairs.mean()
    return total * outputs[0].shape[1] / 2 if channel_reduction == "half_sum" else total
