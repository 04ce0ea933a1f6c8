"""Cross-entropy against labels that are complete, for example against pseudo-labels."""

from __future__ import annotations

from torch import Tensor

from labelwise.losses.reduction import full_precision, mean_over_cases
from labelwise.types import IGNORE


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
