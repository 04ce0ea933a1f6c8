"""Organs do not overlap: where a label says that an organ cannot be, the network must not see it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from labelwise.losses.overlap import dice_loss, overlap_sums
from labelwise.losses.partial import possible_classes
from labelwise.losses.reduction import full_precision, masked_mean
from labelwise.types import IGNORE

Channels = Literal["all_fg", "unannotated"]
Kind = Literal["dice", "cross_entropy"]


def exclusion_loss(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    *,
    kind: Kind = "dice",
    channels: Channels = "all_fg",
    smooth: float = 1e-5,
) -> Tensor:
    """Overlap of each organ's probability with the region E where the labels exclude that organ.

    An organ that is not annotated is excluded where another one is labelled; an annotated organ everywhere but
    in its own label.

        dice            mean over organs of  (2 sum p E + smooth) / (sum p + sum E + smooth), the Dice to be lowered
        cross_entropy   mean over organs and labelled voxels of  E ln(1 + p)

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        channels    "all_fg": all organs of a partly annotated case; "unannotated": those that are not annotated
        returns     ()          mean over the organs, then over the cases with an annotated organ, where complete
                                cases count as 0, and so does an organ that is excluded nowhere; 0 with a zero
                                gradient if there is no partly annotated case

    Source
        Shi et al., Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868 (exclusion loss).

    Example
        >>> logits = torch.zeros(1, 3, 2)  # p = 1/3 for each class
        >>> liver_only = torch.tensor([[False, True, False]])
        >>> labels = torch.tensor([[0, 1]])  # the spleen cannot be in the second voxel: 2 (1/3) / (2/3 + 1)
        >>> exclusion_loss(logits, labels, liver_only, channels="unannotated")
        tensor(0.4000)
    """
    probabilities = full_precision(logits).softmax(dim=1)[:, 1:]
    organs = annotated[:, 1:]
    organs = organs.reshape(*organs.shape, *(1 for _ in range(labels.ndim + 1 - organs.ndim)))
    labelled = labels != IGNORE
    asked = labelled.unsqueeze(1) if channels == "all_fg" else labelled.unsqueeze(1) & ~organs
    excluded = ~possible_classes(labels, annotated)[:, 1:] & asked

    per_organ = _overlap(probabilities, excluded, asked, kind, smooth)
    counted = asked.flatten(2).any(dim=2).expand_as(per_organ)
    per_case = (per_organ * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    supervised = (labelled & organs.any(dim=1)).flatten(1).any(dim=1)
    incomplete = (labelled & ~organs.all(dim=1)).flatten(1).any(dim=1)
    return masked_mean(torch.where(incomplete, per_case, 0), supervised)


def _overlap(probabilities: Tensor, excluded: Tensor, asked: Tensor, kind: Kind, smooth: float) -> Tensor:
    """(B, K): what each organ costs; 0 where it is excluded nowhere."""
    if kind == "cross_entropy":
        count = asked.flatten(2).sum(dim=2).clamp_min(1)
        return (probabilities.log1p() * excluded).flatten(2).sum(dim=2) / count
    sums = overlap_sums(probabilities, excluded, asked)
    # Without this, smooth / (sum p + smooth) would be lowered by *raising* p.
    return torch.where(sums.true > 0, 1 - dice_loss(sums, smooth), 0)
