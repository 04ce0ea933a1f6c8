"""How far the networks can be believed, class by class: measured where it is annotated, used where it is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelwise.components.batches import sum_over_ranks
from labelwise.losses.partial import members, per_voxel
from labelwise.types import IGNORE


class Reliability(nn.Module):
    """Running recall and precision of every structure over the voxels that annotate it.

    A structure that is named is right as often as it is on annotated voxels (its precision). Background that is named
    where some structures are not annotated is right as far as those structures are usually found (their mean recall): a
    network that does not know the spleen yet must not teach that there is none.
    """

    found: Tensor  # (C,) voxels of each structure that were named so
    labelled: Tensor  # (C,) voxels of each structure
    named: Tensor  # (C,) voxels that were named so where the structure is annotated

    def __init__(self, num_classes: int, *, believed: bool = False):
        """`believed`: all that is named counts, until something else is known."""
        super().__init__()
        for name in ("found", "labelled", "named"):
            self.register_buffer(name, torch.full((num_classes,), float(believed)))

    @torch.no_grad()
    def observe(self, logits: Tensor, labels: Tensor, annotated: Tensor, keep: float) -> None:
        """Take in what a network said; of the sums before a part `keep` is left.

        Shapes
            logits      (B, C, *S)
            labels      (B, *S) int64 in [0, C) or IGNORE
            annotated   (B, C, *S) bool
        """
        num_classes = logits.shape[1]
        said, truth = members(logits.max(dim=1).indices, num_classes), members(labels, num_classes)
        judged = said & annotated & (labels != IGNORE).unsqueeze(1)
        axes = (0, *range(2, logits.ndim))
        sums = sum_over_ranks(
            torch.stack([part.sum(axes, dtype=torch.float32) for part in (said & truth, truth, judged)])
        )
        for memory, new in zip((self.found, self.labelled, self.named), sums, strict=True):
            memory.mul_(keep).add_(new)

    def of(self, classes: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
        """(N, *S) in [0, 1]: how far what is named at each open voxel counts.

        Shapes
            classes     (N, *S) int64: what is named
            labels      (N, *S) int64: 0 where the un-annotated structures are open, IGNORE where all are
            annotated   (N, C) or (N, C, *S) bool
        """
        known = per_voxel(annotated, labels) & (labels != IGNORE).unsqueeze(1)
        return self.factors(known).gather(1, classes.unsqueeze(1)).squeeze(1)

    def factors(self, annotated: Tensor) -> Tensor:
        """(N, C, ...) in [0, 1]: how far each named class counts where these classes are `annotated`, as large."""
        recall = self.found / self.labelled.clamp_min(1)
        precision = self.found / self.named.clamp_min(1)
        unknown = (~annotated[:, 1:]).to(recall.dtype)
        recall, precision = (
            values[1:].view(-1, *[1] * (annotated.ndim - 2)) for values in (recall, precision)
        )
        background = (unknown * recall).sum(dim=1, keepdim=True)
        background = background / unknown.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.cat([background, precision.expand_as(unknown)], dim=1)
