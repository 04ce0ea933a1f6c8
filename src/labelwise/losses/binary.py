"""Organs as yes-or-no questions: one independent map per organ, asked only where the answer is known.

A question is a case and an organ that is annotated in it. Organs may overlap, and nothing is said about an organ
that nobody annotated. K = C - 1 organs; map k stands for class k + 1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.overlap import members
from labelwise.losses.reduction import full_precision
from labelwise.types import IGNORE


def organ_answers(labels: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Where each organ is, and where that is known: everywhere in the labelled part of a case that annotates it.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        returns     truth (B, K, *S) bool, known (B, K, *S) bool; truth is false outside known
    """
    organs = annotated[:, 1:]
    organs = organs.reshape(*organs.shape, *(1 for _ in range(labels.ndim + 1 - organs.ndim)))
    known = organs & (labels != IGNORE).unsqueeze(1)
    return members(labels, annotated.shape[1])[:, 1:] & known, known


def binary_cross_entropy(logits: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each question, as the mean over its known voxels.

    Shapes
        logits      (B, K, *S)  float, before the sigmoid
        truth       (B, K, *S)  bool or float in [0, 1]
        known       (B, K, *S)  bool
        returns     (B, K) float32, 0 where nothing is known; (B, K) bool, whether anything is

    Source
        rule B of docs/explanation/partial-labels.md
    """
    logits = full_precision(logits)
    per_voxel = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    count = known.flatten(2).sum(dim=2)
    return (per_voxel * known).flatten(2).sum(dim=2) / count.clamp_min(1), count > 0
