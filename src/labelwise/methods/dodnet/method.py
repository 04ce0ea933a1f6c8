"""DoDNet: one trunk for all structures, and a tiny head whose weights a controller writes for the wanted one.

Paper      Zhang et al., CVPR 2021, https://arxiv.org/abs/2011.10217
Spec       docs/methods/dodnet.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        f, F = coarsest features of the encoder, 8 maps behind the decoder          one pass of the trunk
        for every pair of a case and a structure c in A:                               in parallel
            w   = controller(mean over voxels of relu(norm(f)), one-hot of c)       153 numbers
            z_c = three 1x1 convolutions with the weights w, on F                   logit of structure c
        minimise  mean over the pairs of Dice(sigmoid(z_c), y = c)
                + mean over the pairs of cross-entropy(sigmoid(z_c), y = c)
                + mean over as many pairs with c not in A of cross-entropy(sigmoid(z_c), no), where y is a structure
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import ConfigDict, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.binary import binary_cross_entropy
from labelwise.losses.partial import Absent, AbsentDice, dice_loss, full_precision, masked_mean, overlap_sums
from labelwise.methods.base import Card, Method, NetFactory, Sigmoid
from labelwise.methods.dodnet.dynamic_head import Controller, dynamic_head, head_parameters
from labelwise.types import IGNORE, Batch, Progress

Reduction = Literal["pairs", "class_mean"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DodnetConfig(AbsentDice):
    head_width: PositiveInt = 8  # maps behind the decoder, and hidden maps of the head
    head_layers: PositiveInt = 3
    structures_per_case: NonNegativeInt = (
        0  # annotated structures drawn for each case and step; 0: all of them
    )
    reduction: Reduction = "pairs"  # class_mean: over the cases of each structure first
    known_negatives: bool = True  # structures that are not annotated are denied where another one is labelled
    structure_chunk: PositiveInt = 4  # heads that are computed at once in prediction; bounds the memory


class DynamicNetwork(nn.Module):
    """Trunk, controller and dynamic head; one pass of the trunk serves any number of structures."""

    def __init__(self, nets: NetFactory, config: DodnetConfig):
        super().__init__()
        self.layers = config.head_layers
        self.structure_chunk = config.structure_chunk
        self.encoder = nets.encoder()
        self.decoder = nets.decoder()
        self.last = nets.head(self.decoder.channels[-1], config.head_width)
        self.controller = Controller(
            nets.dims,
            self.encoder.channels[-1],
            nets.num_classes - 1,
            head_parameters(config.head_width, config.head_layers),
        )

    def forward(self, images: Tensor, structures: Tensor | None = None) -> Tensor:
        """The logits of the structures that are asked for, or of all of them.

        Shapes
            images      (B, M, *S)
            structures      (B, K) int64 classes from 1; 0 asks for nothing in particular. None: 1 to C - 1 for every
                        case, `structure_chunk` at a time
            returns     (B, K, *S) float32
        """
        scales = self.encoder(images)
        features = self.last(self.decoder(scales)[-1])
        if structures is not None:
            return self._heads(features, self.controller(scales[-1], structures))
        every = torch.arange(1, self.controller.structures + 1, device=images.device).unsqueeze(0)
        chunks = self.controller(scales[-1], every).split(self.structure_chunk, dim=1)
        return torch.cat([self._heads(features, chunk) for chunk in chunks], dim=1)

    def _heads(self, features: Tensor, parameters: Tensor) -> Tensor:
        return dynamic_head(features, parameters, layers=self.layers).squeeze(2)


class Dodnet(Method):
    card = Card(
        title="DoDNet",
        paper="https://arxiv.org/abs/2011.10217",
        idea="A controller writes the weights of a tiny head for the structure asked for; only annotated ones train.",
        learns_from=frozenset({"full", "partial"}),
        independent_maps=True,
    )
    Config = DodnetConfig

    def __init__(self, nets: NetFactory, config: DodnetConfig):
        super().__init__()
        self.config = config
        self.network = DynamicNetwork(nets, config)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        asked = drawn_structures(batch, self.config.structures_per_case)
        structures = as_table(asked, batch.images.device)
        others = as_table(drawn_others(batch, asked), batch.images.device)
        if not self.config.known_negatives:
            others = others[:, :0]
        both = self.network(batch.images, torch.cat([structures, others], dim=1))
        logits, denied = both.split([structures.shape[1], others.shape[1]], dim=1)
        truth, known = answers(batch.labels, structures, batch.annotated)
        loss = pair_loss(
            logits,
            truth,
            known,
            structures,
            reduction=self.config.reduction,
            absent_dice=self.config.absent_dice,
        )
        return {"supervised": loss + denial(denied, batch.labels, others)}

    def predictor(self) -> nn.Module:
        return Sigmoid(self.network)


def denial(logits: Tensor, labels: Tensor, structures: Tensor) -> Tensor:
    """Cross-entropy of structures that are not annotated where another one is labelled: there they are not.

    Shapes
        logits      (B, K, *S)  float, before the sigmoid
        labels      (B, *S)     int64 in [0, C) or IGNORE
        structures      (B, K)      int64, which structure a pair asks for; 0 is no question
        returns     ()          mean over the pairs of which anything is known; 0 with a zero gradient if there are none
    """
    asked = (structures > 0).view(*structures.shape, *(1 for _ in labels.shape[1:]))
    absent = ((labels > 0) & (labels != IGNORE)).unsqueeze(1) & asked
    return masked_mean(*binary_cross_entropy(logits, torch.zeros_like(absent), absent))


def drawn_others(batch: Batch, asked: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each case as many structures that it does not annotate, at random, as it is asked about."""
    drawn = []
    for row, structures in zip(batch.annotated_rows, asked, strict=True):
        others = [structure for structure, known in enumerate(row) if not known and structure > 0]
        chosen = torch.randperm(len(others))[: len(structures)].tolist()
        drawn.append([others[place] for place in chosen])
    return drawn


def drawn_structures(batch: Batch, per_case: int) -> list[list[int]]:
    """The structures that each case is asked about: its annotated ones, or `per_case` of them at random.

    What is annotated decides, not what the patch shows: a patch without the structure teaches where it is not.
    """
    annotated = [
        [structure for structure, known in enumerate(row) if known and structure > 0]
        for row in batch.annotated_rows
    ]
    if per_case == 0:
        return annotated
    return [
        structures
        if len(structures) <= per_case
        else [structures[i] for i in torch.randperm(len(structures))[:per_case].tolist()]
        for structures in annotated
    ]


def as_table(structures: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(B, K) int64 with K of the longest row, at least 1; 0 fills the shorter rows.

    Comes from pinned memory to a GPU: the host does not wait for the copy.
    """
    length = max(1, *(len(row) for row in structures))
    table = torch.tensor(
        [[*row, *[0] * (length - len(row))] for row in structures], pin_memory=device.type == "cuda"
    )
    return table.to(device, non_blocking=True)


def answers(labels: Tensor, structures: Tensor, annotated: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where each structure is that was asked for, and where that is known.

    Shapes
        labels      (B, *S)     int64 in [0, C) or IGNORE
        structures      (B, K)      int64, annotated in their case; 0 is no question
        annotated   (B, C, *S)  bool: where each structure is; (B, C) or None: all over the labelled part of the case
        returns     truth (B, K, *S) bool, known (B, K, *S) bool; truth is false outside known
    """
    asked = structures.reshape(*structures.shape, *(1 for _ in labels.shape[1:]))
    known = (labels != IGNORE).unsqueeze(1) & (asked > 0)
    if annotated is not None and annotated.ndim > 2:
        known = known & annotated.gather(1, asked.expand(-1, -1, *labels.shape[1:]))
    return (labels.unsqueeze(1) == asked) & known, known


def pair_loss(
    logits: Tensor,
    truth: Tensor,
    known: Tensor,
    structures: Tensor,
    *,
    reduction: Reduction,
    absent_dice: Absent,
) -> Tensor:
    """Dice and cross-entropy of every pair of case and structure, averaged over the pairs of which anything is known.

    Dice of a pair: ``1 - 2 sum s y / (sum s + sum y + 1)``; cross-entropy of a pair: mean over its known voxels.

    Shapes
        logits          (B, K, *S)  float, before the sigmoid
        truth, known    (B, K, *S)  bool; truth is false outside known
        structures          (B, K)      int64, which structure a pair asks for
        returns         ()          0 with a zero gradient if nothing is known
    """
    logits = full_precision(logits)
    entropy, valid = binary_cross_entropy(logits, truth, known)
    sums = overlap_sums(logits.sigmoid(), truth, known)
    dice = dice_loss(sums, 1.0, numerator=0.0)
    present = valid & (sums.true > 0) if absent_dice == "skip" else valid
    return mean_over_pairs(dice, present, structures, reduction) + mean_over_pairs(
        entropy, valid, structures, reduction
    )


def mean_over_pairs(values: Tensor, valid: Tensor, structures: Tensor, reduction: Reduction) -> Tensor:
    """Mean over the valid pairs; with `class_mean` over the valid cases of each structure, then over the structures.

    Shapes
        values, valid, structures   (B, K) float, bool, int64
        returns                 ()
    """
    weights = valid.to(values.dtype).flatten()
    if reduction == "class_mean":
        same_structure = structures.flatten().unsqueeze(1) == structures.flatten()
        weights = weights / (same_structure * weights).sum(dim=1).clamp_min(1)
    return (values.flatten() * weights).sum() / weights.sum().clamp_min(1)
