"""A Dice that takes a set of possible classes for every voxel instead of one class.

`possible` is (B, C, *S) bool with at least one class per voxel. `losses.partial.possible_classes` makes it from
labels and the annotated organs; annotations of regions, such as "one of the two kidneys", may make it otherwise.
A voxel that can still be anything takes no part, and a case of such voxels is not counted.

How probability is spread *inside* a set does not matter: nobody knows where in the set the truth is. The
cross-entropy of this kind, -log of the sum of p over the set, is `losses.partial.marginal_cross_entropy`.

Source
    Fidon et al., MICCAI 2021, https://arxiv.org/abs/2107.03846.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from labelwise.losses.overlap import dice_loss, overlap_sums
from labelwise.losses.reduction import full_precision, mean_over_cases

Normalize = Literal["all", "present"]


def leaf_dice(
    logits: Tensor,
    possible: Tensor,
    *,
    squared: bool = True,
    normalize: Normalize = "all",
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice of all classes, background included, in which only voxels with a single possible class are positive.

    ``1 - mean over classes of 2 sum p y / (sum p^2 + sum y + smooth)`` per case, y = 1 where the class is the only
    possible one. The sums run over the voxels where it is decided whether the class is there. A class without
    a positive voxel gives the constant 1 and no gradient: that is how un-annotated organs, and a background that
    nobody knows, drop out.

    Shapes
        logits      (B, C, *S)  float, before softmax
        possible    (B, C, *S)  bool
        squared     sum p^2 instead of sum p in the denominator
        normalize   "all": mean over all C classes; "present": over those with a positive voxel in the case
        returns     ()          mean over the cases in which any class is excluded anywhere; 0 with a zero gradient
                                if there are none

    Example
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class
        >>> liver_alone = torch.tensor([[[True, False], [False, True], [True, False]]])
        >>> leaf_dice(logits, liver_alone)  # liver: 1 - 2 (1/3) / (2/9 + 1) = 5/11; the others 1
        tensor(0.8182)
    """
    probabilities = full_precision(logits).softmax(dim=1)
    truth = possible & (possible.sum(dim=1, keepdim=True) == 1)
    sums = overlap_sums(probabilities, truth, truth | ~possible, squared=squared)
    counted = _decided(possible).flatten(1).any(dim=1, keepdim=True).expand_as(sums.true)
    if normalize == "present":
        counted = counted & (sums.true > 0)
    return mean_over_cases(dice_loss(sums, smooth, numerator=0), counted)


def _decided(possible: Tensor) -> Tensor:
    """(B, *S): where any class is excluded."""
    return ~possible.all(dim=1)
