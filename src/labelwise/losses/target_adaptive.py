"""Target adaptive loss: the cross-entropy adapts to the organs that the case at hand names."""

from __future__ import annotations

from torch import Tensor

from labelwise.losses.partial import annotated_dice, marginal_cross_entropy


def target_adaptive_loss(
    logits: Tensor, labels: Tensor, annotated: Tensor, *, dice_weight: float = 0.0
) -> Tensor:
    """Marginal cross-entropy, plus `dice_weight` times the Dice of the annotated organs.

    Shapes
        logits      (B, C, *S)  float, before softmax
        labels      (B, *S)     int64 in [0, C) or IGNORE; 0 = background or an un-annotated organ
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        returns     ()          float32; 0 with a zero gradient if nothing is annotated

    Source
        Fang & Yan, IEEE TMI 39(11), 2020, https://arxiv.org/abs/2001.00208 (without Dice).
    """
    loss = marginal_cross_entropy(logits, labels, annotated)
    if dice_weight:
        loss = loss + dice_weight * annotated_dice(logits, labels, annotated)
    return loss
