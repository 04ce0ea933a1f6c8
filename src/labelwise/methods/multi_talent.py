"""MultiTalent: a yes-or-no map for every structure, and each case answers only for the structures that it annotates.

Paper      Ulrich et al., MICCAI 2023, https://arxiv.org/abs/2303.14444
Spec       docs/methods/multi_talent.md: where paper and official code differ, and what we follow

    a region r is a set of classes, by default one structure; it is valid in a case that annotates all of them
    for every batch (x, y, A), at every scale i of the decoder but the coarsest, finest first:
        s_r = sigmoid(head_i(scale i of network(x)))_r
        y_r = whether the label belongs to r                              labels by nearest neighbours
        CE_i   = sum over the valid pairs of a case and r of the mean over voxels of BCE(s_r, y_r)
        Dice_i = sum over r with a voxel of 1 - 2 TP / (2 TP + FP + FN)   summed over all cases where r is valid
        No_i   = sum over the other pairs of the mean of BCE(s_r, 0) over the voxels whose label excludes r
    minimise  sum_i w_i (CE_i + Dice_i + No_i),   w_i in proportion to 2^-i, their sum 1
    predict: the strongest structure above its threshold; regions of several classes are painted in their order
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import as_if_one_batch, labels_at, select_rows
from labelwise.losses.binary import (
    binary_cross_entropy,
    excluding_classes,
    known_negatives,
    present_dice,
    region_answers,
)
from labelwise.losses.partial import OverlapSums, over_space, overlap_sums
from labelwise.methods.base import Card, ConfigError, Method, NetFactory, Sigmoid
from labelwise.types import Batch, Progress

Region = Annotated[tuple[int, ...], Field(min_length=1)]  # class indices


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MultiTalentConfig:
    # class indices of each region in the order of painting, the class that it paints first; none: one per structure
    regions: tuple[Region, ...] = ()
    deep_supervision: bool = True  # a head and a loss at every scale of the decoder but the coarsest
    structure_prior: Annotated[float, Field(gt=0, lt=1)] = (
        0.01  # what every map says of every voxel at the start
    )
    known_negatives: bool = (
        True  # where a structure is labelled, the maps of others learn that they are absent
    )


class MultiTalent(Method):
    card = Card(
        title="MultiTalent",
        paper="https://arxiv.org/abs/2303.14444",
        idea="One independent map per structure, trained only on the cases that annotate it; structures may overlap.",
        learns_from=frozenset({"full", "partial"}),
        independent_maps=True,
    )
    Config = MultiTalentConfig

    # (K, C) which classes each of the K = C - 1 regions consists of
    members: Tensor
    # (K, C) which classes exclude each region
    excludes: Tensor

    def __init__(self, nets: NetFactory, config: MultiTalentConfig):
        super().__init__()
        self.config = config
        self.regions = config.regions or tuple((structure,) for structure in range(1, nets.num_classes))
        self.register_buffer("members", _members(self.regions, nets.num_classes), persistent=False)
        self.register_buffer("excludes", excluding_classes(self.members), persistent=False)
        self.network = nets.network(len(self.regions), prior=config.structure_prior)
        coarser = self.network.decoder.channels[-2:0:-1] if config.deep_supervision else ()
        self.coarser_heads = nn.ModuleList(
            nets.head(channels, len(self.regions), prior=config.structure_prior) for channels in coarser
        )

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        pairs = self.valid_pairs(batch)
        scales = [self.answer(logits, batch, pairs) for logits in self.logits(batch.images)]
        # The sums of all scales in one, so that ranks meet only once in a step.
        sums = as_if_one_batch(torch.stack([overlap for _, overlap in scales]))
        dice = present_dice(OverlapSums(*sums.unbind(dim=1))).sum(dim=1)
        costs = [cross_entropy + dice[i] for i, (cross_entropy, _) in enumerate(scales)]
        weighted = [weight * cost for weight, cost in zip(scale_weights(len(costs)), costs, strict=True)]
        return {"supervised": torch.stack(weighted).sum()}

    def logits(self, images: Tensor) -> list[Tensor]:
        """(B, K, *S / 2**i) of every head, fine to coarse."""
        embeddings = self.network.decoder(self.network.encoder(images))[::-1]
        heads = (self.network.head, *self.coarser_heads)
        return [head(embedding) for head, embedding in zip(heads, embeddings, strict=False)]

    def valid_pairs(self, batch: Batch) -> Tensor:
        """(N,) pairs of a case and a region that is valid in it, as case * K + region."""
        valid = [
            all(row[structure] for structure in region)
            for row in batch.annotated_rows
            for region in self.regions
        ]
        every = torch.arange(len(valid), device=batch.labels.device)
        return select_rows(every, [pair for pair, is_valid in enumerate(valid) if is_valid])

    def answer(self, logits: Tensor, batch: Batch, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Of one scale: the sum of the cross-entropies, and (3, K) what batch Dice is made of.

        Both are computed for the valid pairs only, so memory grows with their number.
        """
        labels = labels_at(batch.labels, logits.shape[2:])
        annotated = batch.annotated
        if annotated.ndim > 2:
            annotated = labels_at(annotated, logits.shape[2:])
        truth, known = region_answers(labels, annotated, self.members)
        asked, truth, known = (
            maps.flatten(0, 1).index_select(0, pairs).unsqueeze(1) for maps in (logits, truth, known)
        )
        cross_entropy, _ = binary_cross_entropy(asked, truth, known)
        total = cross_entropy.sum()
        if self.config.known_negatives:
            total = total + self.denial(logits, labels, annotated)
        overlap = torch.cat(overlap_sums(asked.sigmoid(), truth, known), dim=1)
        of_pairs = overlap.new_zeros(len(logits) * logits.shape[1], 3).index_copy(0, pairs, overlap)
        return total, of_pairs.view(len(logits), -1, 3).sum(dim=0).T

    def denial(self, logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
        """The sum of the cross-entropies of the pairs that are not valid, where another structure is labelled."""
        asked_already = torch.einsum("kc,bc...->bk...", self.members.float(), (~annotated).float()) == 0
        absent = known_negatives(labels, annotated, self.excludes)
        absent = absent & ~over_space(asked_already, labels.ndim - 1)
        cross_entropy, _ = binary_cross_entropy(logits, torch.zeros_like(absent), absent)
        return cross_entropy.sum()

    def predictor(self) -> nn.Module:
        return Painted(self.network, self.regions) if self.config.regions else Sigmoid(self.network)


def scale_weights(count: int) -> list[float]:
    """In proportion to 1, 1/2, 1/4, ..., fine to coarse; their sum is 1.

    Example
        >>> [round(weight, 4) for weight in scale_weights(3)]
        [0.5714, 0.2857, 0.1429]
    """
    weights = [2.0**-level for level in range(count)]
    return [weight / sum(weights) for weight in weights]


class Painted(nn.Module):
    """Scores of a network with one map per region, such that the argmax is the painting.

    A region above one half paints its first class, over whatever the regions before it painted. The score of that
    class is the degree of "it is in this region and in none of those that are painted later", with the minimum for
    "and": unlike the painting itself it is continuous, so scores of several windows can be averaged.
    """

    # (C - 1,) the region that paints each structure
    painter: Tensor

    def __init__(self, network: nn.Module, regions: Sequence[Region]):
        super().__init__()
        self.network = network
        first = torch.tensor([region[0] for region in regions])
        self.register_buffer("painter", first.argsort(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) in float32."""
        inside = torch.sigmoid(self.network(images).float())
        # in none of the regions from this one on
        outside = (1 - inside).flip(1).cummin(dim=1).values.flip(1)
        uncovered = torch.cat([outside[:, 1:], torch.ones_like(outside[:, :1])], dim=1)
        structures = torch.minimum(inside, uncovered).index_select(1, self.painter)
        return torch.cat([outside[:, :1], structures], dim=1)


def _members(regions: Sequence[Region], num_classes: int) -> Tensor:
    """(K, C) bool: the classes of each region. Refuses regions from which no label map can be painted."""
    if sorted(region[0] for region in regions) != list(range(1, num_classes)):
        raise ConfigError(
            "every structure must be painted by one region, the one that names it first",
            found=f"regions = {[list(region) for region in regions]}",
            expected=f"{num_classes - 1} regions that begin with the classes 1 to {num_classes - 1}, in any order",
        )
    if not all(0 < structure < num_classes for region in regions for structure in region):
        raise ConfigError(
            "a region names a class that is no structure",
            found=f"regions = {[list(region) for region in regions]}",
            expected=f"classes from 1 to {num_classes - 1}",
        )
    members = torch.zeros(len(regions), num_classes, dtype=torch.bool)
    for region, row in zip(regions, members, strict=True):
        row[list(region)] = True
    return members
