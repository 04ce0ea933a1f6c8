"""SS-Net: answers that hold under the worst small change of the image, and classes that stay close to themselves.

Paper      Wu, Wu, Wu, Ge & Cai, MICCAI 2022, https://arxiv.org/abs/2203.01324
           (smoothness: virtual adversarial training, Miyato et al., IEEE TPAMI 2019)
Spec       docs/methods/ss_net.md: where paper and official code differ, and what we follow

    disagree(q, p) = 1 - mean over voxels of <q, p>
    for every batch (x, y, A):
        p = softmax(network(x))                                                        no gradient
        r = unit(gradient of disagree(softmax(network(x + xi d)), p) by d),   d = unit(uniform noise)
        S = disagree(softmax(network(x + eps r)), p)
        z, f = logits and features of network(x);   y^ = argmax of z over the classes that y and A leave open
        memory of structure c <- projections of the 32 best of its annotated voxels that are classified rightly
        h = prediction(projection(f))                   for the voxels that y settles, and for the others
        C = mean over c, and the voxels i with y^ = c, of a_i (1 - mean over the memory m of c of cos(h_i, m))
        minimise  Dice(z, y, A)  +  w(t) (S + v (C of the settled voxels + C of the others))

    a_i is what a selector of the class says of h_i, with mean 1 over the class.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import DrawnVoxels, as_pixels, draw_from_groups, select_rows
from labelwise.components.masked_norm import MaskedBatchNorm
from labelwise.components.teachers import Consistency, Part
from labelwise.losses.partial import (
    AbsentDice,
    annotated_dice,
    complete,
    full_precision,
    marginal_cross_entropy,
    masked_mean,
    open_voxels,
    possible_classes,
)
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.methods.ss_net.memory_bank import Bank, MemoryBank
from labelwise.methods.ss_net.virtual_adversary import adversarial_direction, unchanged_statistics
from labelwise.types import Batch, Progress

REFERENCE_VALUES = (
    112 * 112 * 80
)  # in the published patch, for which the lengths of the perturbation are meant


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SsNetConfig(Consistency, AbsentDice):
    consistency_weight: NonNegativeFloat = 1.0
    ramp_fraction: NonNegativeFloat = 0.4
    ramp_interval: Part = 0.01  # 150 of 15000 steps
    counts_from_one: ClassVar[bool] = True
    cross_entropy_weight: NonNegativeFloat = 0.0  # beside the Dice
    # ---- smoothness
    magnitude: PositiveFloat = 10.0  # eps: length of the perturbation, for a patch of 112 x 112 x 80
    probe_magnitude: PositiveFloat = 10.0  # xi: length of the change by which it is found
    magnitude_mode: Literal["rms", "l2"] = "rms"  # l2: the same length for patches of any size
    power_iterations: PositiveInt = 1
    smooth_on: Literal["open", "all"] = "all"  # voxels that labels leave open, or every voxel
    # ---- separation of the classes
    separation_weight: NonNegativeFloat = 0.1  # v
    separation_divisor: Literal["present", "classes"] = "present"  # classes: their number with background
    memory_size: PositiveInt = 32  # vectors of each structure
    memory_order: Literal["highest", "lowest", "random"] = (
        "highest"  # which of the selector's scores are kept
    )
    embedding: PositiveInt = 32  # features of projection and prediction
    max_voxels: PositiveInt = 20_000  # of each class, for the settled voxels and for the others
    pseudo_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0  # smallest probability of a pseudo-label


class SsNet(Method):
    card = Card(
        title="SS-Net",
        paper="https://arxiv.org/abs/2203.01324",
        idea="Answers hold under the worst small change of the image, and voxels of a class resemble its best ones.",
        learns_from=frozenset({"full", "partial", "none"}),
        accumulates=False,
    )
    Config = SsNetConfig
    presets: ClassVar[Presets] = {
        "acdc": {
            "consistency_weight": 0.1,
            "ramp_fraction": 1.0,
            "ramp_interval": 0.005,
            "magnitude": 6.0,
            "magnitude_mode": "l2",
        }
    }

    def __init__(self, nets: NetFactory, config: SsNetConfig):
        super().__init__()
        self.config = config
        self.num_classes = nets.num_classes
        self.network = nets.network()
        width, size = self.network.decoder.channels[-1], config.embedding
        self.projection = Perceptron(width, size)
        self.prediction = Perceptron(size, size)
        self.selectors = Selectors(nets.num_classes - 1, size)
        self.memory = MemoryBank(nets.num_classes - 1, config.memory_size, size)
        self.learnt: Bank | None = None  # the memory after this step

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        smoothness = self.smoothness(
            batch
        )  # first: the graph of its search is gone before the next one grows
        features = self.network.decoder(self.network.encoder(batch.images))[-1]
        logits = self.network.head(features)
        weight = self.config.weight(progress)
        return {
            "supervised": self.supervised(logits, batch),
            "smoothness": weight * (logits.sum() * 0 if smoothness is None else smoothness),
            "separation": weight * self.config.separation_weight * self.separation(features, logits, batch),
        }

    def supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        """Dice of the annotated structures, over the batch; and cross-entropy if it has a weight."""
        loss = annotated_dice(
            logits,
            batch.labels,
            batch.annotated,
            pooling="batch",
            absent=self.config.absent_dice,
            smooth=1e-8,
        )
        if not self.config.cross_entropy_weight:
            return loss
        cross_entropy = marginal_cross_entropy(logits, batch.labels, batch.annotated)
        return loss + self.config.cross_entropy_weight * cross_entropy

    def smoothness(self, batch: Batch) -> Tensor | None:
        """S: how much the worst small change of the images changes the answer; None where nothing is open.

        All passes have dropout masks of their own and leave the running statistics alone.
        """
        images, labels, annotated, where = batch.images, batch.labels, batch.annotated, batch.inside
        if self.config.smooth_on == "open":
            rows = batch.unlabelled_rows
            if not rows:
                return None
            images, labels, annotated, where = (
                select_rows(part, rows) for part in (images, labels, annotated, where)
            )
        with unchanged_statistics(self.network):
            with torch.no_grad():
                target = self.network(images).softmax(dim=1)
            if self.config.smooth_on == "open":
                target = complete(target, labels, annotated)
                where = open_voxels(labels, annotated, where)

            def distance(change: Tensor) -> Tensor:
                return disagreement(self.network(images + change), target, where)

            direction = adversarial_direction(
                lambda change: distance(change) * where.numel(),
                torch.rand_like(images) - 0.5,
                probe_length=self.length(self.config.probe_magnitude, images),
                rounds=self.config.power_iterations,
            )
            return distance(self.length(self.config.magnitude, images) * direction)

    def length(self, magnitude: float, images: Tensor) -> float:
        """The Euclidean length of a perturbation that means the same for each value of a patch of any size."""
        if self.config.magnitude_mode == "l2":
            return magnitude
        return magnitude * math.sqrt(images[0].numel() / REFERENCE_VALUES)

    def separation(self, features: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """C of the voxels that the labels settle plus C of the others; works out what the memory becomes."""
        drawn = self.draw(logits.detach(), batch)
        rows = as_pixels(features)[drawn.voxels].float()  # (2 * classes, n, features)
        with torch.autocast(features.device.type, enabled=False):
            self.learnt = self.learn(rows, drawn, logits)
            halves = zip(rows.chunk(2), drawn.filled.chunk(2), strict=True)
            losses = [self.separation_of(vectors, filled, self.learnt) for vectors, filled in halves]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def draw(self, logits: Tensor, batch: Batch) -> DrawnVoxels:
        """Voxels of each class: first those that the labels settle, then those of each pseudo-label.

        Shapes
            logits      (B, C, *S)
            returns     voxels, filled (2 * C, n)
        """
        possible = possible_classes(batch.labels, batch.annotated)
        scores = logits.masked_fill(~possible, -torch.inf)
        is_open = open_voxels(batch.labels, batch.annotated)
        groups = (scores.argmax(dim=1) + self.num_classes * is_open).short()  # short numbers are sorted fast
        groups = groups.masked_fill(~batch.inside, 2 * self.num_classes)
        if self.config.pseudo_threshold:
            unsure = is_open & (scores.softmax(dim=1).amax(dim=1) < self.config.pseudo_threshold)
            groups = groups.masked_fill(unsure, 2 * self.num_classes)
        count = min(self.config.max_voxels, groups.numel())
        return draw_from_groups(groups.flatten(), 2 * self.num_classes, count)

    @torch.no_grad()
    def learn(self, rows: Tensor, drawn: DrawnVoxels, logits: Tensor) -> Bank:
        """The memory with the best of the annotated voxels that are classified rightly."""
        structures = slice(1, self.num_classes)
        predicted = logits.argmax(dim=1).flatten()[drawn.voxels[structures]]
        numbers = torch.arange(1, self.num_classes, device=predicted.device).unsqueeze(1)
        vectors = self.projection(rows[structures])
        scores = self.selectors(vectors, drawn.filled[structures])
        if self.config.memory_order == "random":
            scores = torch.rand_like(scores)
        keys = -scores if self.config.memory_order == "lowest" else scores
        return self.memory.updated(vectors, keys, drawn.filled[structures] & (predicted == numbers))

    def separation_of(self, rows: Tensor, filled: Tensor, bank: Bank) -> Tensor:
        """C of one kind of voxels.

        Shapes
            rows        (C, n, features of the network) float32
            filled      (C, n) bool
        """
        vectors = self.prediction(self.projection(rows, filled), filled)[1:]
        filled = filled[1:]
        weights = self.selectors(vectors.detach(), filled).sigmoid() * filled
        distances = weighted_distance(vectors, weights, bank.centres)
        valid = (bank.counts > 1) & (filled.sum(dim=1) > 1)
        if self.config.separation_divisor == "present":
            return masked_mean(distances, valid)
        return (distances * valid).sum() / self.num_classes

    def after_step(self, progress: Progress) -> None:
        if self.learnt is not None:
            self.memory.remember(self.learnt)
            self.learnt = None

    def predictor(self) -> nn.Module:
        return Softmax(self.network)


def disagreement(logits: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """1 - <softmax(logits), target>, the chance that draws from both differ: mean over the voxels of `where`.

    Shapes
        logits, target  (B, C, *S)  target: probabilities
        where           (B, *S)     bool
        returns         ()          0 if `where` is empty
    """
    probabilities = full_precision(logits).softmax(dim=1)
    return masked_mean(1 - (probabilities * full_precision(target)).sum(dim=1), where)


def weighted_distance(vectors: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    """Mean over the voxels of each class of 1 - <vector / its length, centre>, weighted.

    Shapes
        vectors     (K, n, F)   float32
        weights     (K, n)      not negative; 0 leaves a voxel out
        centres     (K, F)
        returns     (K,)
    """
    cosines = torch.einsum("knf,kf->kn", F.normalize(vectors, dim=2), centres)
    return (weights * (1 - cosines)).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-6)


class Perceptron(nn.Module):
    """Two linear layers with batch norm and ReLU between them, of single voxels.

    Shapes
        forward     (..., before) float32 -> (..., size); `filled` (...) says which rows count in the batch norm,
                    None takes its running statistics
    """

    def __init__(self, before: int, size: int):
        super().__init__()
        self.first = nn.Linear(before, size)
        self.norm = MaskedBatchNorm(size)
        self.second = nn.Linear(size, size)

    def forward(self, rows: Tensor, filled: Tensor | None = None) -> Tensor:
        hidden = self.first(rows).flatten(0, -2)
        hidden = self.norm(hidden, None if filled is None else filled.flatten())
        return cast(Tensor, self.second(F.relu(hidden))).view(*rows.shape[:-1], -1)


class Selectors(nn.Module):
    """One small network for each class that says how much a vector of that class counts; all in one product.

    Linear, batch norm over the vectors of the class, leaky ReLU, linear to one number.

    Shapes
        forward     vectors (K, n, F) float32, filled (K, n) bool -> scores (K, n), before a sigmoid
    """

    def __init__(self, num_classes: int, features: int):
        super().__init__()
        bound = 1 / math.sqrt(features)  # as torch starts a linear layer

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_classes, *shape).uniform_(-bound, bound))

        self.first, self.first_bias = uniform(features, features), uniform(1, features)
        self.scale = nn.Parameter(torch.ones(num_classes, 1, features))
        self.shift = nn.Parameter(torch.zeros(num_classes, 1, features))
        self.second, self.second_bias = uniform(features, 1), uniform(1, 1)

    def forward(self, vectors: Tensor, filled: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.first_bias, vectors, self.first)
        share = (filled / filled.sum(dim=1, keepdim=True).clamp_min(1)).unsqueeze(2)
        centred = hidden - (hidden * share).sum(dim=1, keepdim=True)
        variance = (centred.square() * share).sum(dim=1, keepdim=True)
        hidden = centred * (variance + 1e-5).rsqrt() * self.scale + self.shift
        return torch.baddbmm(self.second_bias, F.leaky_relu(hidden, 0.2), self.second).squeeze(2)
