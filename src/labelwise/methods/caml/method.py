"""CAML: a network and an auxiliary one, which looks across the batch, compare voxels with the same memory.

Paper      Gao, Zhang, Ma, Li & Zhang, MICCAI 2023, https://arxiv.org/abs/2307.06312
Spec       docs/methods/caml.md: where paper and official code differ, and what we follow

    V: a network with transposed convolutions.   A: another one with linear interpolation, whose features at an eighth
    of the size attend to each other, within each sample and across the samples of the batch (training only)
    for every batch (x, y, A):
        z^V, f^V = V(x);   z^A, f^A = A(x)                                       logits and last features
        M <- for each labelled case: mean of proj_V(f^V) and proj_A(f^A) where both networks are right
        columns = 256 vectors of M for each class
        rows = open voxels where V and A agree; of each class the most certain ones of V
        R^V = softmax(pred_V(proj_V(f^V)) columns^T / T) at these rows;   R^A alike
        minimise  1/2 sum of supervised(V), supervised(A)
                  + w(t)   sum of mean (p^V - sharpened p^A)^2 and mean (p^A - sharpened p^V)^2
                  + w_o(t) mean over rows of - sum of R^A ln (R^V + 1e-8)
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import as_pixels
from labelwise.components.masked_norm import MaskedBatchNorm
from labelwise.components.teachers import Consistency, Part
from labelwise.losses.agreement import mutual_consistency, mutual_region, summed_supervision
from labelwise.losses.partial import AbsentDice, anywhere, complete, members, open_voxels
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.methods.caml.attention import CrossSampleAttention, Followed
from labelwise.methods.caml.case_memory import CaseMemory, Entries, case_numbers
from labelwise.methods.caml.correlation import correlation_loss, log_profile
from labelwise.nets.parts import SegmentationNet, Upsampling
from labelwise.types import IGNORE, Batch, Progress

ATTENTION_LEVEL = 3  # counted from 0, fine to coarse: an eighth of the size


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CAMLConfig(Consistency, AbsentDice):
    consistency_weight: NonNegativeFloat = 1.0
    ramp_fraction: NonNegativeFloat = 0.4
    ramp_interval: Part = 0.01  # 150 of 15000 steps
    counts_from_one: ClassVar[bool] = True
    supervised_weight: NonNegativeFloat = 0.5
    correlation_weight: NonNegativeFloat = 0.05  # w_o at the end of the ramp
    temperature: PositiveFloat = 0.1  # of the sharpened probabilities
    correlation_temperature: PositiveFloat = 0.1  # T
    use_ce: bool | None = None  # cross-entropy beside the Dice; None: with more than one structure
    consistency_on: Literal["all", "open"] = "all"  # complete cases too, or only what labels leave open
    channel_reduction: Literal["half_sum", "mean"] = "half_sum"  # equal for two classes
    detach_targets: bool = False  # no gradient through the sharpened probabilities
    detach_correlation_target: bool = False  # no gradient through R^A
    correlation_floor: NonNegativeFloat = 1e-8  # under the logarithm; 0: none
    rows_per_class: PositiveInt = 12800  # voxels of each class that are compared
    max_rows: PositiveInt = 25600  # voxels of all classes together: bounds the table of similarities
    heads_on: Literal["selected", "all"] = (
        "selected"  # batch norm of the heads over the rows, or all that agree
    )
    embedding: PositiveInt = 32  # features of a remembered vector
    memory_cases: PositiveInt = 16  # labelled cases that the memory holds
    memory_per_case: PositiveInt = 4096  # vectors of each of them and of each class
    memory_columns: PositiveInt = 256  # vectors of each class that voxels are compared with
    memory_min: PositiveInt = 32  # a class with fewer vectors is left out; published: 256
    attention_heads: PositiveInt = 4
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    attention_positions: PositiveInt = 8192  # more positions are cut into slabs


class Rows(NamedTuple):
    """Voxels of a batch: of each class the same number, class after class."""

    voxel: Tensor  # (n,) int64, of the B * V voxels
    valid: Tensor  # (n,) bool
    agree: Tensor  # (B * V,) bool: where the rows were chosen


class Head(nn.Module):
    """Two linear layers with batch norm and ReLU between them: (N, D) -> (N, E) in float32."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.first = nn.Linear(before, after)
        self.norm = MaskedBatchNorm(after)
        self.second = nn.Linear(after, after)

    def forward(self, rows: Tensor, where: Tensor | None = None) -> Tensor:
        """`where` (N,) says which rows make the statistics of the batch norm; None: it uses its running ones."""
        with torch.autocast(rows.device.type, enabled=False):
            return cast(Tensor, self.second(F.relu(self.norm(self.first(rows.float()), where))))


class Embedding(nn.Module):
    """Last features of a network -> vectors that are remembered, and from these the ones that are compared."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.projection = Head(features, size)
        self.prediction = Head(size, size)

    def forward(self, rows: Tensor, where: Tensor) -> Tensor:
        """(N, D), (N,) bool -> (N, E)."""
        return cast(Tensor, self.prediction(self.projection(rows, where), where))


class CAML(Method):
    card = Card(
        title="CAML",
        paper="https://arxiv.org/abs/2307.06312",
        idea="Two networks, one attending across the batch, agree on classes and on similarities to labelled voxels.",
        learns_from=frozenset({"full", "partial", "none"}),
        idle_weights=True,
    )
    Config = CAMLConfig
    # CAML was not published on ACDC: the weights of MC-Net there, and the correlation as before a twentieth of w.
    presets: ClassVar[Presets] = {
        "acdc": {
            "consistency_weight": 0.1,
            "correlation_weight": 0.005,
            "ramp_fraction": 1.0,
            "ramp_interval": 0.005,
            "channel_reduction": "mean",
            "use_ce": False,
        }
    }

    def __init__(self, nets: NetFactory, config: CAMLConfig):
        super().__init__()
        self.config = config
        self.use_ce = nets.num_classes > 2 if config.use_ce is None else config.use_ce
        self.network = build(nets, "transposed")
        self.auxiliary = build(nets, "trilinear")
        encoder = self.auxiliary.encoder
        level = min(ATTENTION_LEVEL, len(encoder.stages) - 1)
        attention = CrossSampleAttention(
            encoder.channels[level],
            heads=config.attention_heads,
            dropout=config.attention_dropout,
            positions=config.attention_positions,
        )
        encoder.stages[level] = Followed(encoder.stages[level], attention)
        self.embeddings = nn.ModuleList(
            Embedding(network.decoder.channels[-1], config.embedding)
            for network in (self.network, self.auxiliary)
        )
        self.memory = CaseMemory(
            config.memory_cases, nets.num_classes, config.memory_per_case, config.embedding
        )

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        outputs, features = zip(
            *(logits_and_features(network, batch.images) for network in (self.network, self.auxiliary)),
            strict=True,
        )
        config, ramp = self.config, self.config.ramp(progress)
        supervised = summed_supervision(
            outputs, batch.labels, batch.annotated, use_ce=self.use_ce, absent=config.absent_dice
        )
        return {
            "supervised": config.supervised_weight * supervised,
            "consistency": config.consistency_weight * ramp * self.consistency(outputs, batch),
            "correlation": config.correlation_weight * ramp * self.correlation(outputs, features, batch),
        }

    def consistency(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Squared distance of each network's probabilities to the sharpened ones of the other."""
        if self.config.consistency_on == "open" and not batch.unlabelled_rows:
            return silent(outputs)
        where, possible = mutual_region(
            batch.labels, batch.annotated, self.config.consistency_on, batch.valid
        )
        return mutual_consistency(
            outputs,
            where,
            possible,
            temperature=self.config.temperature,
            detach_targets=self.config.detach_targets,
            channel_reduction=self.config.channel_reduction,
        )

    def correlation(self, outputs: tuple[Tensor, ...], features: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Cross-entropy between the two networks' similarities of voxels to the memory."""
        self.remember(outputs, features, batch)
        if not batch.unlabelled_rows:
            return silent(features)
        columns = self.memory.draw(self.config.memory_columns, self.config.memory_min)
        rows = self.choose_rows(outputs, batch)
        profile, target = (
            log_profile(
                self.embed(embedding, maps, rows), *columns, temperature=self.config.correlation_temperature
            )
            for embedding, maps in zip(self.embeddings, features, strict=True)
        )
        return correlation_loss(
            profile,
            target,
            rows.valid & columns.filled.any(),
            floor=self.config.correlation_floor,
            detach_target=self.config.detach_correlation_target,
        )

    def embed(self, embedding: nn.Module, features: Tensor, rows: Rows) -> Tensor:
        """(B, D, *S) -> (n, E): what is compared, at the rows."""
        if self.config.heads_on == "all":
            return cast(Tensor, embedding(as_pixels(features), rows.agree)).index_select(0, rows.voxel)
        maps = features.flatten(2)
        case = torch.div(rows.voxel, maps.shape[2], rounding_mode="floor")
        return cast(Tensor, embedding(maps[case, :, rows.voxel % maps.shape[2]], rows.valid))

    @torch.no_grad()
    def choose_rows(self, outputs: tuple[Tensor, ...], batch: Batch) -> Rows:
        """Open voxels of unlabelled cases where both networks agree, given what the labels exclude."""
        first, second = (complete(logits.softmax(dim=1), batch.labels, batch.annotated) for logits in outputs)
        certainty, classes = first.max(dim=1)
        unlabelled = batch.unlabelled.view(-1, *(1 for _ in batch.labels.shape[1:]))
        agree = (
            open_voxels(batch.labels, batch.annotated, batch.valid)
            & unlabelled
            & (classes == second.argmax(dim=1))
        )
        each = min(self.config.rows_per_class, max(self.config.max_rows // first.shape[1], 1))
        index, valid = most_certain(
            certainty.flatten(), classes.flatten(), agree.flatten(), first.shape[1], each
        )
        return Rows(index.flatten(), valid.flatten(), agree.flatten())

    @torch.no_grad()
    def remember(self, outputs: tuple[Tensor, ...], features: tuple[Tensor, ...], batch: Batch) -> None:
        """Write what both networks get right in the labelled cases: up to R random voxels of each case and class."""
        first, second = (logits.argmax(dim=1) for logits in outputs)
        complete_case = batch.complete.view(-1, *(1 for _ in batch.labels.shape[1:]))
        sure = (batch.labels != IGNORE) & ((batch.labels > 0) | complete_case)
        right = sure & (first == batch.labels) & (second == batch.labels)
        offered = (members(batch.labels, outputs[0].shape[1]) & right.unsqueeze(1)).flatten(2)
        room = self.config.memory_per_case
        # One random number for each voxel orders all classes: they share no voxel.
        order = offered * (1 + torch.rand(len(offered), 1, offered.shape[2], device=offered.device))
        index = order.topk(min(room, offered.shape[2]), dim=2).indices
        projected = [
            cast(Embedding, embedding).projection(voxels_of(maps, index))
            for embedding, maps in zip(self.embeddings, features, strict=True)
        ]
        vectors = torch.stack(projected).mean(dim=0).view(*index.shape, -1)
        self.memory.write(
            Entries(
                cases=case_numbers(batch.case_ids or [str(row) for row in range(len(index))], vectors.device),
                vectors=F.pad(vectors, (0, 0, 0, room - index.shape[2])),
                counts=offered.sum(dim=2),
                valid=anywhere(batch.annotated)[:, 1:].any(dim=1),
            )
        )

    def predictor(self) -> nn.Module:
        return Softmax(self.network)


def build(nets: NetFactory, upsampling: Upsampling) -> SegmentationNet:
    """A network whose decoder enlarges in the given way."""
    decoder = nets.decoder(upsampling)
    return SegmentationNet(nets.encoder(), decoder, nets.head(decoder.channels[-1], nets.num_classes))


def logits_and_features(network: SegmentationNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M, *S) -> logits (B, C, *S) and the last features (B, D, *S) of the decoder, after its dropout."""
    features = network.decoder(network.encoder(images))[-1]
    return network.head(features), features


def silent(values: tuple[Tensor, ...]) -> Tensor:
    """0, with a zero gradient."""
    return torch.stack([value.float().sum() for value in values]).sum() * 0


def voxels_of(features: Tensor, index: Tensor) -> Tensor:
    """Features (B, D, *S) at the voxels (B, C, R) of each case -> (B * C * R, D)."""
    chosen = index.flatten(1).unsqueeze(1).expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, chosen).transpose(1, 2).flatten(0, 1)


def most_certain(
    certainty: Tensor, classes: Tensor, where: Tensor, num_classes: int, count: int
) -> tuple[Tensor, Tensor]:
    """Of each class the `count` voxels that are most certain, the best first; a single voxel does not count.

    Shapes
        certainty   (N,) in [0, 1]
        classes     (N,) int64 in [0, C)
        where       (N,) bool: voxels that can be chosen
        returns     index (C, k) int64, valid (C, k) bool; k = min(count, N)
    """
    belongs = members(classes.unsqueeze(0), num_classes).squeeze(0) & where
    best = torch.where(belongs, certainty, -1).topk(min(count, len(certainty)), dim=1)
    valid = best.values >= 0
    return best.indices, valid & (valid.sum(dim=1, keepdim=True) > 1)
