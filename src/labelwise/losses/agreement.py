"""Losses between predictions: entropy, distances, pseudo-labels, and outputs that follow each other.

No function here detaches a target that is a prediction: give one that came without a gradient, or `target.detach()`.
Pseudo-labels are one class for every voxel, read as complete labels over all classes, background included;
`hard_labels` makes them, so that they never contradict what is annotated.

Source
    Outputs that share one supervision, and each follows what the others say more sharply: Wu et al., MICCAI 2021
    (MC-Net), https://arxiv.org/abs/2103.02911, and Medical Image Analysis 2022 (MC-Net+),
    https://arxiv.org/abs/2109.09960.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from labelwise.losses.partial import (
    Absent,
    OverlapSums,
    Pooling,
    annotated_dice,
    dice_loss,
    full_precision,
    marginal_cross_entropy,
    mean_over_cases,
    members,
    open_voxels,
    over_space,
    overlap_sums,
    possible_classes,
    squared_difference,
)
from labelwise.types import IGNORE

# Below exp(-100) a probability adds nothing in float32; the bound keeps 0 * inf out.
SMALLEST_LOG = -100.0


def voxel_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy over the classes: 0 where one class is certain, ln C where all are equal.

    Shapes
        log_probabilities   (B, C, *S)  float, as from log_softmax; -inf is allowed
        returns             (B, *S)     in nats
    """
    log_probabilities = full_precision(log_probabilities)
    return -(log_probabilities.exp() * log_probabilities.clamp_min(SMALLEST_LOG)).sum(dim=1)


def mean_log_probability(passes: Iterable[Tensor]) -> Tensor:
    """Log of the mean probability over several predictions, of which only a running sum is kept.

    Shapes
        passes      at least one (B, C, *S) float, as from log_softmax
        returns     (B, C, *S)
    """
    count = 0
    total: Tensor | None = None
    for log_probabilities in passes:
        log_probabilities = full_precision(log_probabilities)
        total = log_probabilities if total is None else torch.logaddexp(total, log_probabilities)
        count += 1
    assert total is not None, "a mean needs at least one pass"
    return total - math.log(count)


def pseudo_dice(
    logits: Tensor,
    target: Tensor,
    where: Tensor | None = None,
    *,
    voxel_weights: Tensor | None = None,
    background: bool = True,
    squared: bool = False,
    pooling: Pooling = "case",
    absent: Absent = "include",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice loss of all classes against complete labels.

    Shapes
        logits      (B, C, *S)  float, before softmax
        target      (B, *S)     int64 in [0, C) or IGNORE; IGNORE counts as outside `where`
        where       (B, *S)     bool; None means everywhere
        voxel_weights   (B, *S) float, at least 0: each voxel counts so often in every sum; None: once
        background  whether class 0 counts as a class
        squared     sum p squared instead of sum p in the denominator
        pooling     "case": mean over the classes of each case, then over the cases; "batch": sums over all cases
        absent      "skip" leaves out classes that the target does not hold; "include" keeps them: their loss is
                    near 1 unless p vanishes everywhere, which pushes p to 0
        returns     ()          0 with a zero gradient if no voxel takes part
    """
    inside = target != IGNORE
    inside = inside if where is None else inside & where
    probabilities = full_precision(logits).softmax(dim=1)
    truth = members(target, logits.shape[1]) & inside.unsqueeze(1)
    counted = inside.unsqueeze(1)
    if voxel_weights is not None:
        counted = counted * voxel_weights.detach().unsqueeze(1)
        truth = truth * counted
    sums = overlap_sums(probabilities, truth, counted, squared=squared)
    valid = inside.flatten(1).any(dim=1, keepdim=True).expand_as(sums.true)
    if not background:
        sums, valid = OverlapSums(*(part[:, 1:] for part in sums)), valid[:, 1:]
    if pooling == "batch":
        sums = OverlapSums(*(part.sum(dim=0, keepdim=True) for part in sums))
        valid = valid.any(dim=0, keepdim=True)
    if absent == "skip":
        valid = valid & (sums.true > 0)
    return mean_over_cases(dice_loss(sums, smooth), valid)


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


def mutual_region(
    labels: Tensor, annotated: Tensor, region: Region, inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Where outputs should agree, and on which classes.

    "open": where the labels leave several classes possible, on one of these. "all": in addition everywhere in complete
    cases, on any class, as in the published codes.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        inside      (B, *S)     bool, `Batch.inside`; None: everywhere
        returns     (B, *S) bool and (B, C, *S) bool
    """
    where, possible = open_voxels(labels, annotated, inside), possible_classes(labels, annotated)
    if region == "open":
        return where, possible
    complete = over_space(annotated, labels.ndim - 1)[:, 1:].all(dim=1)
    everywhere = complete if inside is None else complete & inside
    return where | everywhere, possible | complete.unsqueeze(1)


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
