"""CoNeMOS: one network with one output map, told in every layer which structure is asked for.

Paper      Billot et al., MIDL 2024, https://proceedings.mlr.press/v250/billot24a.html
Spec       docs/methods/conemos.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        draw pairs (case b, structure c) with c in A_b; rare structures more often
        h = perceptron(one-hot of c)
        z = network(x_b, h)            each layer F becomes (1 + gamma) F + beta, with gamma and beta linear in h
        minimise  mean over pairs of  Dice(sigmoid z, y_b = c) + w * cross-entropy(sigmoid z, y_b = c)
                  + w * cross-entropy(sigmoid z, no) where y_b is a structure, for a pair with c not in A_b
                  + d * ||weights that make gamma and beta||^2
        during the warm-up instead of Dice and cross-entropy: mean over voxels of (z -+ 5)^2
    prediction: every structure in turn; the strongest sigmoid above its threshold, or background
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import sum_over_ranks
from labelwise.losses.binary import binary_cross_entropy
from labelwise.losses.partial import (
    AbsentDice,
    anywhere,
    dice_loss,
    masked_mean,
    mean_over_cases,
    over_space,
    overlap_sums,
)
from labelwise.methods.base import Card, Method, NetFactory, Sigmoid
from labelwise.methods.conemos.conditioned import ConditionedNet
from labelwise.methods.conemos.network import FilmDecoder, FilmEncoder
from labelwise.types import IGNORE, Batch, Progress

WARM_UP_LOGIT = 5.0  # inside the structure, and its negative outside
# What is added to numerator and denominator of the Dice.
SMOOTH = {"squared": (1e-7, 1e-7), "linear": (0.0, 1.0)}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CoNeMOSConfig(AbsentDice):
    pairs_per_batch: PositiveInt = 4  # (case, structure) pairs in a step, or all if the batch has fewer
    class_balance: Annotated[float, Field(ge=0, le=1)] = (
        0.5  # a pair's weight: cases of its structure ** -this
    )
    dice: Literal["squared", "linear"] = "squared"  # probabilities squared in the denominator, or not
    bce_weight: NonNegativeFloat = 1.0  # w
    film_decay: NonNegativeFloat = 1e-5  # d
    warm_up_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0  # part of the training that is warm-up
    conditioned_layers: PositiveInt | None = None  # so many from the end; None: every layer
    known_negatives: bool = (
        True  # one pair more: a structure that is not annotated, denied where another one is labelled
    )
    structure_chunk: PositiveInt = 4  # structures that are predicted at once


class Pairs(NamedTuple):
    """N questions to a batch, and their answers."""

    cases: Tensor  # (N,) int64, rows of the batch
    structures: Tensor  # (N,) int64, class - 1
    truth: Tensor  # (N, 1, *S) bool: the structure
    known: Tensor  # (N, 1, *S) bool: where that is known


class CoNeMOS(Method):
    card = Card(
        title="CoNeMOS",
        paper="https://proceedings.mlr.press/v250/billot24a.html",
        idea="One network segments one structure at a time; the structure's name modulates every layer.",
        learns_from=frozenset({"full", "partial"}),
        nets=frozenset({"film_unet"}),
        independent_maps=True,
    )
    Config = CoNeMOSConfig
    annotated_cases: Tensor

    def __init__(self, nets: NetFactory, config: CoNeMOSConfig):
        super().__init__()
        self.config = config
        decoder = cast(FilmDecoder, nets.decoder())
        self.network = ConditionedNet(
            cast(FilmEncoder, nets.encoder()),
            decoder,
            nets.head(decoder.channels[-1], 1),
            nets.num_classes - 1,
            conditioned_layers=config.conditioned_layers,
            structure_chunk=config.structure_chunk,
        )
        # How many of the cases seen so far, on all ranks, annotate each structure.
        self.register_buffer("annotated_cases", torch.zeros(nets.num_classes - 1, dtype=torch.int64))

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        pairs, others = self.draw_pairs(batch), self.draw_others(batch)
        cases, structures = (
            torch.cat([pairs.cases, others.cases]),
            torch.cat([pairs.structures, others.structures]),
        )
        logits = self.network.answer(batch.images, cases, structures)
        told, denied = logits[: len(pairs.cases)], logits[len(pairs.cases) :]
        if progress.fraction < self.config.warm_up_fraction:
            supervised = regression(told, pairs) + regression(denied, others)
        else:
            supervised = self.segmentation(told, pairs) + self.denial(denied, others)
        return {
            "supervised": supervised,
            "film_decay": self.config.film_decay * self.network.film.size(),
        }

    def draw_pairs(self, batch: Batch) -> Pairs:
        """Different annotated pairs, each with the weight n ** -class_balance for a structure of n annotated cases.

        A batch without an annotated pair gives one pair of which nothing is known: its loss is 0.
        """
        annotated = anywhere(batch.annotated)[:, 1:]
        # Only the draw reads this memory, no gradient does: it may change here.
        self.annotated_cases += sum_over_ranks(annotated.sum(dim=0))
        weights = annotated * self.annotated_cases.clamp_min(1) ** -self.config.class_balance
        # The smallest of exponential times with these rates are a weighted draw without replacement.
        times = torch.empty_like(weights).exponential_() / weights
        chosen = times.flatten().topk(self.num_pairs(batch), largest=False).indices
        cases, structures = chosen // annotated.shape[1], chosen % annotated.shape[1]
        labels = batch.labels.index_select(0, cases).unsqueeze(1)
        axes = (-1, *(1 for _ in labels.shape[1:]))
        there = over_space(batch.annotated, labels.ndim - 2)[:, 1:].flatten(0, 1)
        known = (labels != IGNORE) & there.index_select(0, chosen).unsqueeze(1)
        return Pairs(cases, structures, (labels == structures.view(axes) + 1) & known, known)

    def draw_others(self, batch: Batch) -> Pairs:
        """A pair of a case and a structure that it does not annotate: known to be absent where another one is labelled.

        No pair if no case of the batch annotates some structures and others not.
        """
        annotated = anywhere(batch.annotated)[:, 1:]
        candidates = ~annotated & annotated.any(dim=1, keepdim=True)
        partial = any(any(row[1:]) and not all(row[1:]) for row in batch.annotated_rows)
        times = torch.empty_like(candidates, dtype=torch.float32).exponential_() / candidates
        wanted = int(self.config.known_negatives and partial)
        chosen = times.flatten().topk(wanted, largest=False).indices
        cases, structures = chosen // annotated.shape[1], chosen % annotated.shape[1]
        labels = batch.labels.index_select(0, cases).unsqueeze(1)
        known = (labels > 0) & (labels != IGNORE)
        return Pairs(cases, structures, torch.zeros_like(known), known)

    def num_pairs(self, batch: Batch) -> int:
        """`pairs_per_batch`, or as many as are annotated, but at least 1; known without a look at the device."""
        return max(1, min(self.config.pairs_per_batch, sum(sum(row[1:]) for row in batch.annotated_rows)))

    def segmentation(self, logits: Tensor, pairs: Pairs) -> Tensor:
        """Dice of each pair plus w times its cross-entropy, each as a mean over the pairs that have one."""
        numerator, denominator = SMOOTH[self.config.dice]
        sums = overlap_sums(logits.sigmoid(), pairs.truth, pairs.known, squared=self.config.dice == "squared")
        cross_entropy, asked = binary_cross_entropy(logits, pairs.truth, pairs.known)
        scored = asked & (sums.true > 0) if self.config.absent_dice == "skip" else asked
        dice = masked_mean(dice_loss(sums, denominator, numerator=numerator), scored)
        return dice + self.config.bce_weight * masked_mean(cross_entropy, asked)

    def denial(self, logits: Tensor, others: Pairs) -> Tensor:
        """w times the cross-entropy of structures that are known to be absent."""
        cross_entropy, asked = binary_cross_entropy(logits, others.truth, others.known)
        return self.config.bce_weight * masked_mean(cross_entropy, asked)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """FiLM's projections have their own penalty, so the optimiser's weight decay leaves them alone."""
        projections = list(self.network.film.projections.parameters())
        special = {id(parameter) for parameter in projections}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in special]
        return [{"params": others}, {"params": projections, "weight_decay": 0.0}]

    def predictor(self) -> nn.Module:
        return Sigmoid(self.network)


def regression(logits: Tensor, pairs: Pairs) -> Tensor:
    """The warm-up: squared distance of the logits from 5 inside and -5 outside, as a mean over the pairs."""
    target = WARM_UP_LOGIT * (2 * pairs.truth.float() - 1)
    return mean_over_cases((logits - target).square(), pairs.known)
