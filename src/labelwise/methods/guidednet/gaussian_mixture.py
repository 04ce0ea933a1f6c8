"""One Gaussian for each class among the features of labelled voxels, and what it says about every voxel.

K classes, background included; F features; N voxels of a case, in any order; G groups of cases that share their
Gaussians: one group of the whole batch, or each case for itself. All sums are taken in float32.

The distance between a voxel and a class is a single number, the mean absolute difference of their features, so a
Gaussian has a mean of F numbers and one standard deviation.

Source
    Zhao et al., ACM Multimedia 2024 (GuidedNet, 3D-CGMM), https://arxiv.org/abs/2408.04914.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from labelwise.components.batches import select_rows
from labelwise.losses.partial import full_precision, masked_mean, over_space
from labelwise.types import IGNORE

Scope = Literal["batch", "image"]
Place = tuple[EllipsisType | slice, ...]  # of the spatial axes, after an ellipsis

EPSILON = 1e-6  # inside logarithms
SMALLEST_DEVIATION = 1e-3  # of a class, in units of the features


class Knowledge(NamedTuple):
    """What labels say about classes: (B, N, K) bool each."""

    own: Tensor  # the voxel is labelled with the class
    known: Tensor  # it is known whether the voxel has the class


class Means(NamedTuple):
    """Mean feature of each class."""

    values: Tensor  # (G, K, F) float32, 0 where the class is absent
    present: Tensor  # (G, K) bool: whether the class has a labelled voxel
    counts: Tensor  # (G, K) float32, labelled voxels


def as_voxels(maps: Tensor) -> Tensor:
    """(B, F, *S) -> (B, N, F) with N = prod(S); no copy if the channels lie last in memory."""
    return maps.movedim(1, -1).flatten(1, -2)


def voxels_at(maps: Tensor, place: Place) -> Tensor:
    """(B, F, *S) -> (B, N, F), the voxels of a grid: ``maps[place]`` without the gradient's change of memory layout."""
    return cast(Tensor, _VoxelsAt.apply(maps, place))  # type: ignore[no-untyped-call]


class _VoxelsAt(torch.autograd.Function):
    """The gradient of a slice comes in the default layout, which costs a convolution with channels last dearly."""

    @staticmethod
    def forward(context: Any, maps: Tensor, place: Place) -> Tensor:
        context.place, context.layout = place, torch.empty_like(maps, device="meta")  # no memory
        return as_voxels(maps[place]).contiguous()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = torch.zeros_like(context.layout, device=gradients[0].device)
        voxels = gradient[context.place].movedim(1, -1)
        voxels.copy_(gradients[0].view(voxels.shape))
        return gradient, None


def knowledge(labels: Tensor, annotated: Tensor) -> Knowledge:
    """Which class each voxel is labelled with, and for which classes that is known.

    A structure's voxel is none of the others. Elsewhere the annotated structures are known to be absent, and the
    background is known where all structures are annotated.

    Shapes
        labels      (B, N) int64 in [0, K) or IGNORE
        annotated   (B, K) or (B, K, N) bool; column 0 is not read
        returns     (B, N, K) each

    Example
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> knowledge(torch.tensor([[0, 1, IGNORE]]), liver_only).known[0].int()
        tensor([[0, 1, 0],
                [1, 1, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    structures = over_space(annotated, 1)[:, 1:]
    told = torch.cat([structures.all(dim=1, keepdim=True), structures], dim=1).transpose(1, 2)
    given = labels.unsqueeze(2)
    known = (told | (given > 0)) & (given != IGNORE)
    classes = torch.arange(annotated.shape[1], device=labels.device)
    return Knowledge((given == classes) & known, known)


def class_means(features: Tensor, own: Tensor, scope: Scope = "batch") -> Means:
    """The mean feature of the labelled voxels of each class; differentiable.

    Shapes
        features    (B, N, F)  float
        own         (B, N, K)  bool
        returns     G = 1 for the whole batch, or B for each image
    """
    counts = own.sum(dim=1).float()
    with torch.autocast(features.device.type, enabled=False):
        sums = own.float().transpose(1, 2) @ full_precision(features)
    if scope == "batch":
        sums, counts = sums.sum(dim=0, keepdim=True), counts.sum(dim=0, keepdim=True)
    return Means(sums / counts.clamp_min(1).unsqueeze(2), counts > 0, counts)


def mean_absolute_distance(features: Tensor, means: Tensor) -> Tensor:
    """Mean over the features of |feature - mean|, in float32, without a (B, N, K, F) tensor in the forward pass.

    Shapes
        features    (B, N, F)
        means       (B, K, F)
        returns     (B, N, K)
    """
    with torch.autocast(features.device.type, enabled=False):
        return torch.cdist(full_precision(features), means, p=1.0) / features.shape[2]


def kernel_responses(distances: Tensor, present: Tensor) -> Tensor:
    """exp(-distance^2): the score of a Gaussian of variance one half, in [0, 1]; 0 for a class that is absent.

    Shapes
        distances   (B, N, K)
        present     (B, K) bool
        returns     (B, N, K); does not sum to one over the classes
    """
    return (-distances.square()).exp() * present.unsqueeze(1)


def deviations(distances: Tensor, probabilities: Tensor, own: Tensor, scope: Scope = "batch") -> Tensor:
    """Standard deviation of each class: distances of its labelled voxels, weighted by the network's probability.

    Shapes
        distances       (B, N, K)
        probabilities   (B, N, K)
        own             (B, N, K) bool
        returns         (G, K) float32, at least `SMALLEST_DEVIATION`
    """
    weights = probabilities * own
    squares, total = (weights * distances.square()).sum(dim=1), weights.sum(dim=1)
    if scope == "batch":
        squares, total = squares.sum(dim=0, keepdim=True), total.sum(dim=0, keepdim=True)
    return (squares / total.clamp_min(EPSILON)).clamp_min(SMALLEST_DEVIATION**2).sqrt()


def posteriors(distances: Tensor, deviation: Tensor, counts: Tensor) -> Tensor:
    """Probability of each class by Bayes' rule; the prior is the share of the class among the labelled voxels.

    Shapes
        distances   (B, N, K)
        deviation   (B, K)
        counts      (B, K)  labelled voxels, 0 where the class is absent
        returns     (B, N, K); sums to one over the classes that are present, 0 everywhere if none is
    """
    present = (counts > 0).unsqueeze(1)
    log_prior = counts.clamp_min(1).log() - deviation.log()  # what all classes share cancels
    log_likelihood = -0.5 * (distances / deviation.unsqueeze(1)).square()
    scores = (log_prior.unsqueeze(1) + log_likelihood).masked_fill(~present, torch.finfo(distances.dtype).min)
    return scores.softmax(dim=2) * present


def shared_overlap(means: Means) -> Tensor:
    """How close the classes' means are: exp(-distance^2), averaged over the pairs of classes that are present.

    Shapes
        returns     (), 0 with a zero gradient if fewer than two classes are present
    """
    groups = means.present.sum(dim=0)
    centres = (means.values * means.present.unsqueeze(2)).sum(dim=0) / groups.clamp_min(1).unsqueeze(1)
    distances = mean_absolute_distance(centres.unsqueeze(0), centres.unsqueeze(0)).squeeze(0)
    pairs = ((groups > 0) & (groups > 0).unsqueeze(1)).triu(diagonal=1)
    return masked_mean((-distances.square()).exp(), pairs)


def half_binary_cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Half the cross-entropy of yes-or-no answers with soft targets; gradients reach both.

    Shapes
        probabilities, targets, returns     any, equal; float in [0, 1]
    """
    no = (1 - probabilities + EPSILON).log()
    return -0.5 * (no + targets * ((probabilities + EPSILON).log() - no))


def half_label_cross_entropy(responses: Tensor, own: Tensor) -> Tensor:
    """The same with responses as answers and labels as targets, for one logarithm instead of two.

    Shapes
        responses   (B, N, K)  float in [0, 1]
        own         (B, N, K)  bool
        returns     (B, N, K)
    """
    return -0.5 * (torch.where(own, responses, 1 - responses) + EPSILON).log()


def mean_over_known(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the classes of each voxel where the mask is true, then over the voxels with any such class.

    Shapes
        values      (B, N, K) float, finite
        where       (B, N, K) or (B, 1, K) bool
        returns     (), 0 with a zero gradient if the mask is nowhere true
    """
    count = where.sum(dim=2)
    per_voxel = (values * where).sum(dim=2) / count.clamp_min(1)
    return masked_mean(per_voxel, (count > 0).expand_as(per_voxel))


def rows_of_means(scope: Scope, has_labels: Sequence[bool]) -> list[int]:
    """The group of `Means` that each case is compared with; known on the host.

    For images by themselves: a case with labels has its own, and the j-th case without has those of the j-th with.

    Example
        >>> rows_of_means("image", [True, False, True, False, False])
        [0, 0, 2, 2, 0]
    """
    labelled = [row for row, has in enumerate(has_labels) if has]
    if scope == "batch" or not labelled:
        return [0] * len(has_labels)
    order = iter(range(len(has_labels)))
    return [row if has else labelled[next(order) % len(labelled)] for row, has in enumerate(has_labels)]


def means_of_cases(means: Means, rows: Sequence[int]) -> Means:
    """The group of each case: (G, ...) -> (B, ...)."""
    return Means(*cast(tuple[Tensor, Tensor, Tensor], tuple(select_rows(part, rows) for part in means)))
