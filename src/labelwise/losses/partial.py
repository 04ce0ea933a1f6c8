"""Supervision by labels that name only some of the structures.

What a voxel's label leaves possible is a set of classes: {c} for a structure c > 0, {background and all structures
that nobody annotated} for 0, all classes for IGNORE. Everything here follows from that set.

`annotated` is (B, C), one row per case; or (B, C, *S), one row per voxel, where voxels of several cases were
mixed into one image, or classes are known in a part of the scan only. Its column 0 says no more than the others but for
one thing: an IGNORE voxel where the background is annotated, and not every structure, is one of those that are not. So
speak regions that are annotated as one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from labelwise.types import IGNORE

Pooling = Literal["case", "batch"]
Absent = Literal["skip", "include"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DiceForm:
    """Settings of a method that lets its Dice be chosen."""

    squared_dice: bool = True  # squared probabilities in the denominator
    dice_pooling: Pooling = "batch"  # sums over the batch, or over each case


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AbsentDice:
    """Setting of a method whose paper counts the Dice of structures that are annotated and not there."""

    absent_dice: Absent = "skip"  # Dice of annotated structures without a voxel: left out, or not


SMALLEST_WEIGHT = 1e-8  # a sum of weights below this counts as nothing

# Means over what is valid: always a number, always part of the graph, exactly 0 if nothing is valid.


def full_precision(values: Tensor) -> Tensor:
    """`values` in float32 if they came in half precision, else as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` over all entries where the mask `where` of the same shape is true; else 0.

    Shapes
        values, where   any, equal; float and bool
        returns         ()
    """
    return torch.where(where, values, 0).sum() / where.sum().clamp_min(1)


def mean_over_cases(values: Tensor, where: Tensor) -> Tensor:
    """Mean within each case first, then over the cases in which anything is valid; else 0.

    Shapes
        values, where   (B, ...), equal; float and bool
        returns         ()
    """
    counts = where.flatten(1).sum(dim=1)
    sums = torch.where(where, values, 0).flatten(1).sum(dim=1)
    return masked_mean(sums / counts.clamp_min(1), counts > 0)


def squared_difference(p: Tensor, q: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean squared difference over classes and over the voxels of `where` of the whole batch.

    ``sum over where of (p - q)^2 / (C * number of voxels in where)``; exactly 0 if `where` is empty.

    Shapes
        p, q        (B, C, *S)  float, usually probabilities
        where       (B, *S)     bool; None means everywhere
        returns     ()

    Source
        Yu et al., MICCAI 2019 (UA-MT), official code: the sum is divided by C, unlike in the paper's formula.
    """
    per_voxel = (full_precision(p) - full_precision(q)).square().sum(dim=1)
    mean = per_voxel.mean() if where is None else masked_mean(per_voxel, where)
    return mean / p.shape[1]


# Soft Dice in three steps, so that others can recombine them: members, sums over voxels, loss per class.


class OverlapSums(NamedTuple):
    """Sums over the voxels of each case: (B, C) each."""

    common: Tensor  # of p y
    predicted: Tensor  # of p, or of p squared
    true: Tensor  # of y


def members(labels: Tensor, num_classes: int) -> Tensor:
    """Which class each voxel is labelled with; IGNORE is none.

    Shapes
        labels      (B, *S)     int64
        returns     (B, C, *S)  bool
    """
    classes = torch.arange(num_classes, device=labels.device).view(-1, *(1 for _ in labels.shape[1:]))
    return labels.unsqueeze(1) == classes


def overlap_sums(
    probabilities: Tensor, truth: Tensor, where: Tensor, *, squared: bool = False
) -> OverlapSums:
    """The sums that Dice is made of, over the voxels of `where`.

    Shapes
        probabilities   (B, C, *S)  float
        truth           (B, C, *S)  bool; false outside `where`
        where           (B, C, *S) or (B, 1, *S) bool
    """
    axes = tuple(range(2, probabilities.ndim))
    sizes = probabilities.square() if squared else probabilities
    # The masks multiply as booleans: that is what autograd keeps of them, a quarter of a float mask.
    return OverlapSums(
        common=(probabilities * truth).sum(axes),
        predicted=(sizes * where).sum(axes),
        true=truth.sum(axes, dtype=probabilities.dtype),
    )


def dice_loss(sums: OverlapSums, smooth: float = 1e-5, *, numerator: float | None = None) -> Tensor:
    """1 - Dice for each entry of the sums: 0 for perfect overlap, 1 for none.

    `smooth` is added below the line, and above it too unless `numerator` says what is added there.
    """
    above = smooth if numerator is None else numerator
    return 1 - (2 * sums.common + above) / (sums.predicted + sums.true + smooth)


# Labels that are complete, for example pseudo-labels.


def label_log_probability(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each voxel's label; at IGNORE that of the background, which nobody may read.

    Shapes
        log_probabilities   (B, C, *S) float
        labels              (B, *S)    int64 in [0, C) or IGNORE
        returns             (B, *S)
    """
    index = labels.masked_fill(labels == IGNORE, 0)
    return log_probabilities.gather(1, index.unsqueeze(1)).squeeze(1)


def cross_entropy(logits: Tensor, labels: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the voxels that are labelled, and inside `where` if that is given.

    The mean is taken within each case first, then over the cases with such a voxel; 0 if there is none.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        where       (B, *S)     bool
        returns     ()
    """
    labelled = labels != IGNORE
    if where is not None:
        labelled = labelled & where
    log_probabilities = full_precision(logits).log_softmax(dim=1)
    return mean_over_cases(-label_log_probability(log_probabilities, labels), labelled)


def pseudo_cross_entropy(
    logits: Tensor,
    target: Tensor,
    where: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
    voxel_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy as a weighted mean over the voxels of the whole batch: ``sum of w nll / sum of w``.

    Shapes
        logits          (B, C, *S)  float, before softmax
        target          (B, *S)     int64 in [0, C) or IGNORE; IGNORE counts as outside `where`
        where           (B, *S)     bool; None means everywhere
        class_weights   (C,)        float, at least 0; a voxel takes that of its target
        voxel_weights   (B, *S)     float, at least 0, such as a confidence
        returns         ()          0 with a zero gradient if there is no weight

    Source
        Chen et al., CVPR 2021 (CPS), https://arxiv.org/abs/2106.01226, eq. 2
    """
    inside = target != IGNORE
    weights = (inside if where is None else inside & where).float()
    if class_weights is not None:
        weights = weights * class_weights.detach().float()[target.masked_fill(~inside, 0)]
    if voxel_weights is not None:
        weights = weights * voxel_weights.detach().float()
    log_probabilities = full_precision(logits).log_softmax(dim=1)
    per_voxel = -label_log_probability(log_probabilities, target)
    return (weights * per_voxel).sum() / weights.sum().clamp_min(SMALLEST_WEIGHT)


# Labels that name some of the structures.


def over_space(annotated: Tensor, dims: int) -> Tensor:
    """`annotated` with an axis for each of `dims` spatial ones: (B, C, 1, ...), or (B, C, *S) as it is."""
    return annotated.view(*annotated.shape, *(1 for _ in range(dims + 2 - annotated.ndim)))


def per_voxel(annotated: Tensor, labels: Tensor) -> Tensor:
    """`annotated` at each voxel of `labels` (B, *S): (B, C, *S)."""
    return over_space(annotated, labels.ndim - 1).expand(-1, -1, *labels.shape[1:])


def anywhere(annotated: Tensor) -> Tensor:
    """(B, C): the classes that are annotated anywhere in each case."""
    return annotated if annotated.ndim == 2 else annotated.flatten(2).any(dim=2)


def possible_classes(labels: Tensor, annotated: Tensor) -> Tensor:
    """The classes that each voxel can still have, given its label and what is annotated in its case.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        returns     (B, C, *S)  bool, at least one class per voxel

    Example
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> possible_classes(torch.tensor([[0, 1, IGNORE]]), liver_only)[0].int()
        tensor([[1, 0, 1],
                [0, 1, 1],
                [1, 0, 1]], dtype=torch.int32)
    """
    given = labels.unsqueeze(1)
    possible = members(labels, annotated.shape[1])
    possible |= (given == 0) & ~_known_structures(labels, annotated)
    within = in_regions(labels, annotated)
    possible |= (given == IGNORE) & ~(within.unsqueeze(1) & over_space(annotated, labels.ndim - 1))
    return possible


def in_regions(labels: Tensor, annotated: Tensor) -> Tensor:
    """(B, *S) bool: voxels of a region that is annotated as one; their class is one that is not annotated there.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
    """
    row = over_space(annotated, labels.ndim - 1)
    return (labels == IGNORE) & row[:, 0] & ~row[:, 1:].all(dim=1)


def complete(
    probabilities: Tensor, labels: Tensor, annotated: Tensor, *, smallest_mass: float = 1e-3
) -> Tensor:
    """Teacher probabilities restricted to the classes that a voxel can still have, and renormalised.

    A fully annotated voxel becomes its one-hot label; a voxel of a partly labelled case with label 0 keeps
    background and the un-annotated structures; an unlabelled voxel is unchanged. Where the teacher gives less than
    `smallest_mass` to all possible classes together its opinion there is noise, so they share evenly instead.

    Shapes
        probabilities   (B, C, *S)  after softmax
        labels          (B, *S)     int64 in [0, C) or IGNORE
        annotated       (B, C) or (B, C, *S) bool
        returns         (B, C, *S)  sums to one over C, detached

    Source
        docs/explanation/partial-labels.md, rule R2.
    """
    possible = possible_classes(labels, annotated)
    restricted = probabilities.detach() * possible
    mass = restricted.sum(dim=1, keepdim=True)
    even = possible / possible.sum(dim=1, keepdim=True)
    return (restricted / mass.clamp_min(smallest_mass)).where(mass >= smallest_mass, even)


def hard_labels(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """The likeliest class of each voxel among those that its label leaves possible.

    A voxel with a known class gets that class; a voxel of a partly labelled case with label 0 the likeliest of
    background and the un-annotated structures; a voxel of an unlabelled case the plain argmax.

    Shapes
        logits      (B, C, *S)  float, or probabilities
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        returns     (B, *S)     int64 in [0, C), never IGNORE

    Example
        >>> logits = torch.tensor([[[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]])
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> hard_labels(logits, torch.tensor([[0, IGNORE]]), liver_only)  # no liver where the label says so
        tensor([[2, 1]])
    """
    return logits.detach().masked_fill(~possible_classes(labels, annotated), -torch.inf).max(dim=1).indices


def structure_answers(labels: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Where each structure is, and where that is known: everywhere in the labelled part of a case that annotates it.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        returns     truth (B, K, *S) bool, known (B, K, *S) bool; truth is false outside known
    """
    structures = over_space(annotated, labels.ndim - 1)[:, 1:]
    known = structures & (labels != IGNORE).unsqueeze(1)
    return members(labels, annotated.shape[1])[:, 1:] & known, known


def open_voxels(labels: Tensor, annotated: Tensor, inside: Tensor | None = None) -> Tensor:
    """Where the labels leave more than one class possible: consistency terms act there.

    Shapes
        labels      (B, *S)  int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        inside      (B, *S)  bool, `Batch.inside`: padding is not open, it is nothing; None: there is none
        returns     (B, *S)  bool
    """
    unlabelled = ~_known_structures(labels, annotated)[:, 1:].all(dim=1)
    is_open = (labels == IGNORE) | ((labels == 0) & unlabelled)
    return is_open if inside is None else is_open & inside


def marginal_cross_entropy(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """Cross-entropy that lets every un-annotated structure hide in the background.

    A voxel gives ``-log p(y)`` if its label y is a structure, ``-log (p(background) + sum of p(c) over the
    structures c that are not annotated)`` if its label is 0, and ``-log sum of p(c) over its classes`` within a region
    that is annotated as one. With everything annotated this is the ordinary cross-entropy.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE; 0 = background or an un-annotated structure
        annotated   (B, C) or (B, C, *S) bool
        returns     ()           mean over the labelled voxels of each case, then over the cases that have any
                                 and at least one annotated structure; 0 with a zero gradient if there are none

    Source
        Shi et al., Medical Image Analysis 2021, eq. 3 (marginal loss), as sums of probabilities.

    Example
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> marginal_cross_entropy(logits, torch.tensor([[0, 1]]), liver_only)  # (-ln 2/3 - ln 1/3) / 2
        tensor(0.7520)
    """
    logits = full_precision(logits)
    return _cross_entropy(logits, logits.log_softmax(dim=1), labels, annotated)


def annotated_dice(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    squared: bool = False,
    pooling: Pooling = "case",
    absent: Absent = "skip",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice loss of the structures that are annotated; the background takes no part.

    ``1 - (2 sum p y + smooth) / (sum p + sum y + smooth)`` for every structure, over the labelled voxels.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        squared     sum p squared instead of sum p in the denominator
        pooling     "case": a loss per case and structure; mean over the structures, then over the cases.
                    "batch": sums over all cases in which the structure is annotated; mean over the structures
        absent      "skip" leaves out structures without a voxel in the case (in the batch), whose loss is near 1
                    with a vanishing gradient; "include" keeps them
        returns     ()           0 with a zero gradient if no structure is left

    Source
        Milletari et al., 3DV 2016, https://arxiv.org/abs/1606.04797 (squared form).
    """
    probabilities = full_precision(logits).softmax(dim=1)
    return _dice(
        probabilities, labels, annotated, squared=squared, pooling=pooling, absent=absent, smooth=smooth
    )


def supervised(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    squared: bool = False,
    pooling: Pooling = "case",
    absent: Absent = "skip",
    smooth: float = 1e-5,
) -> Tensor:
    """Half the sum of `marginal_cross_entropy` and `annotated_dice`: the package's supervised loss.

    The arguments are theirs; the softmax is computed once for both.
    """
    logits = full_precision(logits)
    log_probabilities = logits.log_softmax(dim=1)
    cross_entropy = _cross_entropy(logits, log_probabilities, labels, annotated)
    dice = _dice(
        log_probabilities.exp(),
        labels,
        annotated,
        squared=squared,
        pooling=pooling,
        absent=absent,
        smooth=smooth,
    )
    return (cross_entropy + dice) / 2


def _cross_entropy(logits: Tensor, log_probabilities: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    structures = _known_structures(labels, annotated)
    # p(background given what is possible): log p(possible) = log p(background) - log of it. Two fused
    # log-softmaxes are as stable as a log-sum-exp over the possible classes, and take half its time.
    possible = torch.zeros_like(structures, dtype=logits.dtype).masked_fill(structures, -torch.inf)
    share = (logits + possible).log_softmax(dim=1)[:, 0]
    log_likelihood = label_log_probability(log_probabilities, labels) - torch.where(labels == 0, share, 0)
    told = (labels != IGNORE) & structures.any(dim=1)
    if annotated.ndim > 2:  # only single voxels lie in regions
        within = in_regions(labels, annotated)
        beyond = within.unsqueeze(1) & annotated
        of_region = log_probabilities.masked_fill(beyond, -torch.inf).logsumexp(dim=1)
        log_likelihood, told = torch.where(within, of_region, log_likelihood), told | within
    return mean_over_cases(-log_likelihood, told)


def _dice(
    probabilities: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    squared: bool,
    pooling: Pooling,
    absent: Absent,
    smooth: float,
) -> Tensor:
    known = (labels != IGNORE).unsqueeze(1)
    if annotated.ndim > 2:
        known = known & annotated
    sums = overlap_sums(probabilities, members(labels, probabilities.shape[1]), known, squared=squared)
    valid = known.flatten(2).any(dim=2) & _known_structures(labels, annotated).flatten(2).any(dim=2)
    return pooled_dice(sums, valid, pooling=pooling, absent=absent, smooth=smooth)


def pooled_dice(
    sums: OverlapSums, valid: Tensor, *, pooling: Pooling, absent: Absent, smooth: float
) -> Tensor:
    """The mean Dice loss of the valid pairs of a case and a class, as `annotated_dice` pools them.

    Shapes
        sums        (B, C) each
        valid       (B, C) bool: pairs of which something is known
        returns     ()      0 with a zero gradient if no pair is left
    """
    if pooling == "batch":
        sums = OverlapSums(*((part * valid).sum(dim=0, keepdim=True) for part in sums))
        valid = valid.any(dim=0, keepdim=True)
    if absent == "skip":
        valid = valid & (sums.true > 0)
    return mean_over_cases(dice_loss(sums, smooth), valid)


def _known_structures(labels: Tensor, annotated: Tensor) -> Tensor:
    """`annotated` without the background, with as many axes as (B, C, *S)."""
    structures = annotated.clone()
    structures[:, 0] = False
    return over_space(structures, labels.ndim - 1)


# Dice in which the background is a class beside the structures, and the target adaptive loss.


def dice_with_background(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    squared: bool = False,
    pooling: Pooling = "case",
    absent: Absent = "skip",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice loss of the annotated structures and of everything else together.

    Where everything is annotated, everything else is the background. Where a structure is not, nobody knows where the
    background ends: its probability is added to the background's, and label 0 stands for both.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        squared     sum p squared instead of sum p in the denominator
        pooling     "case": mean over the classes of each case, then over the cases; "batch": sums over all cases in
                    which the class is known, then the mean over the classes
        absent      "skip" leaves out classes without a voxel in the case (in the batch); "include" keeps them
        returns     ()          0 with a zero gradient if no case has a labelled voxel and an annotated structure

    Source
        The linear form by case is that of the BCP code, Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673; the
        squared form by batch that of the SSL4MIS codes.

    Example
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class, 2/3 for "no liver"
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> dice_with_background(logits, torch.tensor([[0, 1]]), liver_only, smooth=0.0)  # (3/7 + 3/5) / 2
        tensor(0.5143)
    """
    probabilities = full_precision(logits).softmax(dim=1)
    structures = over_space(annotated, labels.ndim - 1).clone()
    structures[:, 0] = False
    elsewhere = (probabilities * ~structures).sum(dim=1, keepdim=True)
    merged = torch.cat([elsewhere, (probabilities * structures)[:, 1:]], dim=1)
    labelled = (labels != IGNORE).unsqueeze(1)
    known = labelled & structures
    known[:, :1] = labelled & structures.any(dim=1, keepdim=True)
    truth = members(labels, logits.shape[1]) & known
    sums = overlap_sums(merged, truth, known, squared=squared)
    asked = known.flatten(2).any(dim=2)
    return pooled_dice(sums, asked, pooling=pooling, absent=absent, smooth=smooth)


def target_adaptive_loss(
    logits: Tensor, labels: Tensor, annotated: Tensor, *, dice_weight: float = 0.0
) -> Tensor:
    """Marginal cross-entropy, plus `dice_weight` times the Dice of the annotated structures.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE; 0 = background or an un-annotated structure
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        returns     ()          float32; 0 with a zero gradient if nothing is annotated

    Source
        Fang & Yan, IEEE TMI 39(11), 2020, https://arxiv.org/abs/2001.00208 (without Dice).
    """
    loss = marginal_cross_entropy(logits, labels, annotated)
    if dice_weight:
        loss = loss + dice_weight * annotated_dice(logits, labels, annotated)
    return loss
