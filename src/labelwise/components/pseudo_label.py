"""A teacher's opinion, conditioned on what the labels already say."""

from __future__ import annotations

from torch import Tensor

from labelwise.losses.partial import possible_classes


def complete(
    probabilities: Tensor, labels: Tensor, annotated: Tensor, *, smallest_mass: float = 1e-3
) -> Tensor:
    """Teacher probabilities restricted to the classes that a voxel can still have, and renormalised.

    A fully annotated voxel becomes its one-hot label; a voxel of a partly labelled case with label 0 keeps
    background and the un-annotated organs; an unlabelled voxel is unchanged. Where the teacher gives less than
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
