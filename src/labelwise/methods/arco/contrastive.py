"""Losses that compare embeddings with each other: towards a class, towards neighbours, in relation to a memory.

What comes from a teacher or from a memory is read without a gradient. All is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.partial import full_precision, masked_mean

EPSILON = 1e-8  # smallest length of a vector


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the last axis, of length one and in float32; a vector of zeros stays one."""
    return F.normalize(full_precision(vectors), dim=-1, eps=EPSILON)


def class_contrast(
    queries: Tensor, positives: Tensor, negatives: Tensor, valid: Tensor, *, temperature: float = 0.5
) -> Tensor:
    """-log of the share of the own class: each query shall be closer to its class than to its negatives.

    ``-log (exp(cos(q, p) / T) / (exp(cos(q, p) / T) + sum over n of exp(cos(q, n) / T)))``, mean over the queries of a
    class, then over the valid classes.

    Shapes
        queries     (C, Q, D)       of any length; the gradient flows here only
        positives   (C, D)          of any length: one for each class
        negatives   (C, Q, N, D)    of length one
        valid       (C,)            bool: classes that have queries, a positive and negatives
        returns     ()              0 with a zero gradient if no class is valid

    Source
        Oord et al., 2018 (InfoNCE), in the form of Liu et al., ICLR 2022 (ReCo), https://arxiv.org/abs/2104.04465
    """
    with torch.autocast(queries.device.type, enabled=False):
        directions = unit(queries)
        near = torch.einsum("cqd,cd->cq", directions, unit(positives.detach()))
        far = torch.einsum("cqd,cqnd->cqn", directions, full_precision(negatives.detach()))
        logits = torch.cat([near.unsqueeze(2), far], dim=2) / temperature
        per_class = (logits.logsumexp(dim=2) - logits[..., 0]).mean(dim=1)
    return masked_mean(per_class, valid)


def neighbour_distance(
    student: Tensor, teacher: Tensor, memory: Tensor, filled: Tensor, *, neighbours: int = 5
) -> Tensor:
    """Mean distance ``2 - 2 cos`` of each student embedding to the nearest rows of a memory, seen from its teacher.

    Shapes
        student, teacher    (B, D)  of any length, of the same images
        memory              (R, D)  of length one
        filled              (R,)    bool: rows that hold something; fewer than `neighbours` of them are all neighbours
        returns             ()      0 with a zero gradient if the memory is empty

    Source
        Koohpayegani et al., ICCV 2021 (mean shift), https://arxiv.org/abs/2105.07269
    """
    with torch.autocast(student.device.type, enabled=False):
        known = full_precision(memory.detach())
        seen = (unit(teacher.detach()) @ known.T).masked_fill(~filled, -torch.inf)
        nearest = seen.topk(min(neighbours, len(memory)), dim=1).indices
        distances = 2 - 2 * (unit(student) @ known.T).gather(1, nearest)
    return masked_mean(distances, filled[nearest])


def relation_divergence(
    student: Tensor,
    teacher: Tensor,
    memory: Tensor,
    filled: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.01,
) -> Tensor:
    """KL(teacher || student) of the softmax of their similarities to the rows of a memory, mean over the embeddings.

    Shapes
        student, teacher    (B, P, D)   of any length: P embeddings of each image
        memory              (R, P, D)   of length one: each embedding is compared with those of the same number
        filled              (R,)        bool: rows that hold something
        returns             ()          0 with a zero gradient if the memory is empty

    Source
        Tejankar et al., ICCV 2021 (ISD), https://arxiv.org/abs/2012.09259
    """
    with torch.autocast(student.device.type, enabled=False):
        known = full_precision(memory.detach())
        some = filled | ~filled.any()  # of an empty memory every row counts, and all are zero

        def log_shares(vectors: Tensor, temperature: float) -> Tensor:
            cosines = torch.einsum("bpd,rpd->bpr", unit(vectors), known) / temperature
            return cosines.masked_fill(~some, -torch.inf).log_softmax(dim=2)

        told = log_shares(teacher.detach(), teacher_temperature)
        said = log_shares(student, student_temperature)
        divergence = torch.where(some, told.exp() * (told - said), 0).sum(dim=2)
    return divergence.mean() * filled.any()
