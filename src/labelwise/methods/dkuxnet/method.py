"""DKUXNet (dual k-means UX-Net): clusters of voxels that stand for classes must agree between two views of a scan.

Paper      Wu, Li & Zhang, ISBI 2024, https://arxiv.org/abs/2311.12364 (one page; the semi-supervised part has no code)
Spec       docs/methods/dkuxnet.md: what is published, and what is our reading of it

    for every batch (x, y, A), labelled or not:
        for the strong and the weak view of x, with the same weights:
            e5, d3, d2, d1, d0 = 3D UX-Net                                coarse to fine
            queries c: two k-means layers on each of e5, d3, d2; each layer gives masks R_l
            a = softmax over the queries of the masks R of the last queries on d0
            S = sum over queries of (class logits of a query) * a         segmentation
            Q = sum over the queries of each group of a                   distribution of the query groups
        minimise  supervised(S, y, A) + w_q * (-log Q of y's group: last masks + mean over the layers')     both views
                  + r(t) * (w_s * contrast(softmax S strong, softmax S weak) + w_d * contrast(Q strong, Q weak))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from labelwise.components.batches import draw_from_groups, select_rows, strong_view
from labelwise.losses.partial import (
    Absent,
    AbsentDice,
    anywhere,
    complete,
    dice_with_background,
    marginal_cross_entropy,
    open_voxels,
    over_space,
    squared_difference,
)
from labelwise.methods.base import Card, ConfigError, Method, NetFactory, Softmax
from labelwise.methods.dkuxnet.decoder import KMaxNorm, Update
from labelwise.methods.dkuxnet.group_likelihood import (
    group_cross_entropy,
    grouped_labels,
    known_groups,
    soft_targets,
)
from labelwise.methods.dkuxnet.network import ClusterHead, KMaxUXNet, Seen, membership
from labelwise.methods.dkuxnet.view_contrast import channel_contrast, voxel_contrast
from labelwise.types import IGNORE, Batch, Progress

CERTAIN = 0.9  # an unlabelled voxel has a pseudo-group where both views agree and are that sure
Part = Annotated[float, Field(ge=0, le=1)]

POOLED = 4  # queries are compared on maps this much smaller


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DKUXNetConfig(AbsentDice):
    queries: Annotated[int, Field(ge=2)] = 32  # cluster centres
    query_width: Annotated[int, Field(ge=16, multiple_of=16)] | None = None  # None: 16 for 3 of the network
    levels: Annotated[int, Field(ge=1, le=4)] = 3  # maps that the queries read: e5, d3, d2, d1
    layers_per_level: PositiveInt = 2
    norm: KMaxNorm = "group"  # of the query path
    update: Update = "sum"  # of the k-means step
    groups: tuple[Annotated[int, Field(ge=0)], ...] = ()  # group of each class; (): one for each class
    cluster_head: ClusterHead = "per_query"
    head: Literal["query", "cnn", "both"] = (
        "query"  # what is trained as segmentation; both: the queries decide
    )
    branches: Literal["shared", "independent"] = "shared"
    query_weight: NonNegativeFloat = 1.0  # w_q
    segmentation_consistency_weight: NonNegativeFloat = 0.1  # w_s
    query_consistency_weight: NonNegativeFloat = 0.1  # w_d
    contrast: Literal["channel", "voxel", "mse"] = "channel"
    # lower ones silence the consistency as soon as both views are sure: benchmarks/consistency_share.py
    temperature: PositiveFloat = 0.5
    negatives: Literal["all", "cross_group"] = "all"  # of contrast = "voxel"
    voxels_per_class: PositiveInt = 128  # of contrast = "voxel"
    query_space: Literal["groups", "queries"] = "groups"
    stop_gradient: Literal["none", "weak"] = "none"
    consistency_on: Literal["open", "all"] = "all"
    ramp_start: Part = 0.1  # part of the training before which r is 0
    ramp_fraction: Part = 0.4  # part of the training over which r rises
    strong_gamma: NonNegativeFloat = 0.5
    strong_contrast: NonNegativeFloat = 0.3
    strong_noise_std: NonNegativeFloat = 0.1
    absent_dice: Absent = "include"

    def __post_init__(self) -> None:
        if self.query_space == "queries" and (self.branches == "independent" or self.contrast == "voxel"):
            raise ConfigError(
                "single queries can be compared between views of one network only, and as whole maps",
                found=f"query_space = queries, branches = {self.branches}, contrast = {self.contrast}",
                expected="branches = shared and contrast = channel or mse",
                do="choose query_space = groups",
            )


class DKUXNet(Method):
    card = Card(
        title="DKUXNet",
        paper="https://arxiv.org/abs/2311.12364",
        idea="Cluster centres stand for classes, and what they gather must agree between two views of a scan.",
        learns_from=frozenset({"full", "partial", "none"}),
        dims=frozenset({3}),
        nets=frozenset({"uxnet"}),
        idle_weights=True,  # with query_weight = 0
    )
    Config = DKUXNetConfig
    group_of_class: Tensor
    class_in_group: Tensor

    def __init__(self, nets: NetFactory, config: DKUXNetConfig):
        super().__init__()
        self.config = config
        groups = _checked_groups(config, nets.num_classes)
        self.register_buffer("group_of_class", torch.tensor(groups), persistent=False)
        self.register_buffer("class_in_group", membership(groups), persistent=False)
        self.network = self._network(nets)  # of the weak view; it is kept
        self.strong_network = self._network(nets) if config.branches == "independent" else None

    def _network(self, nets: NetFactory) -> KMaxUXNet:
        return KMaxUXNet(
            nets,
            queries=self.config.queries,
            width=self.config.query_width,
            groups=len(self.class_in_group),
            levels=self.config.levels,
            layers=self.config.layers_per_level,
            norm=self.config.norm,
            update=self.config.update,
            cluster_head=self.config.cluster_head,
            head=self.config.head,
        )

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        rising = self.ramp(progress)
        weights = (
            rising * self.config.segmentation_consistency_weight,
            rising * self.config.query_consistency_weight,
        )
        if not any(weights):
            batch = _labelled_only(batch)  # the others would be seen in vain
        seen = self.look(batch)
        labels, annotated = torch.cat([batch.labels] * 2), torch.cat([batch.annotated] * 2)
        segmentation, queries = self.agreements(seen, batch, weights)
        return {
            "supervised": torch.stack(
                [self.segmentation_loss(z, labels, annotated) for z in seen.logits]
            ).sum(),
            "query": self.config.query_weight * self.query_loss(seen.groups, labels, annotated),
            "segmentation_consistency": weights[0] * segmentation,
            "query_consistency": weights[1] * queries,
        }

    def look(self, batch: Batch) -> Seen:
        """Both views of every case, the strong ones first."""
        strong = strong_view(
            batch.images,
            gamma=self.config.strong_gamma,
            contrast=self.config.strong_contrast,
            noise_std=self.config.strong_noise_std,
        )
        labelled = [any(row[1:]) for row in batch.annotated_rows]
        if self.strong_network is None:
            return self._run(self.network, torch.cat([strong, batch.images]), labelled * 2)
        return Seen.joined(
            [
                self._run(self.strong_network, strong, labelled),
                self._run(self.network, batch.images, labelled),
            ]
        )

    def _run(self, network: KMaxUXNet, images: Tensor, labelled: Sequence[bool]) -> Seen:
        """With batch norm labelled and unlabelled cases pass apart: else it tells them from each other."""
        if self.config.norm == "group" or len(set(labelled)) == 1:
            return network.look(images)
        order = sorted(range(len(labelled)), key=labelled.__getitem__)
        unlabelled = labelled.count(False)
        parts = [network.look(select_rows(images, rows)) for rows in (order[:unlabelled], order[unlabelled:])]
        back = sorted(range(len(order)), key=order.__getitem__)
        return Seen(*(tuple(select_rows(values, back) for values in field) for field in Seen.joined(parts)))

    def segmentation_loss(self, logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
        """Cross-entropy plus Dice over all classes; the mean over both views, as over cases."""
        dice = dice_with_background(logits, labels, annotated, absent=self.config.absent_dice)
        return marginal_cross_entropy(logits, labels, annotated) + dice

    def query_loss(self, groups: Sequence[Tensor], labels: Tensor, annotated: Tensor) -> Tensor:
        """-log of the query mass of the labelled group: of the last masks, plus the mean over the layers' masks."""
        if not self.config.query_weight:
            return groups[0].sum() * 0
        there, case = over_space(annotated, labels.ndim - 1), anywhere(annotated)
        # A group is known in a whole case: voxels at which less is known than elsewhere say nothing here.
        asked = there[:, 1:].any(dim=1) & (there == over_space(case, labels.ndim - 1)).all(dim=1)
        labels = torch.where(asked, grouped_labels(labels, self.group_of_class), IGNORE)
        known = known_groups(case, self.class_in_group)
        sizes = {masks.shape[2:] for masks in groups}
        targets = {size: soft_targets(labels, groups[0].shape[1], size) for size in sizes}
        last, *layers = (group_cross_entropy(masks, targets[masks.shape[2:]], known) for masks in groups)
        return last + torch.stack(layers).mean()

    def agreements(self, seen: Seen, batch: Batch, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """How far the two views differ, in the classes and in the query groups; 0 where the weight is."""
        nothing = seen.logits[0].sum() * 0
        if not any(weights):
            return nothing, nothing
        where = batch.valid
        if self.config.consistency_on == "open":
            where = open_voxels(batch.labels, batch.annotated, where)
        strong, weak = seen.logits[0].softmax(dim=1).chunk(2)
        sample = None
        if self.config.contrast == "voxel":
            sample = self.sample_voxels(strong, weak, batch, where)
        segmentation = self.agreement(strong, weak, where, sample) if weights[0] else nothing
        if not weights[1]:
            return segmentation, nothing
        queries = seen.groups[0]
        if self.config.query_space == "queries":
            queries = avg_pool3d(seen.assignment[0], POOLED)
            if where is not None:
                where = avg_pool3d(where.unsqueeze(1).float(), POOLED).squeeze(1) >= 0.5
        strong, weak = queries.chunk(2)
        return segmentation, self.agreement(strong, weak, where, sample)

    def agreement(self, strong: Tensor, weak: Tensor, where: Tensor | None, sample: Sample | None) -> Tensor:
        """How far two views (B, K, *S) of the same probabilities differ: `contrast`."""
        if self.config.stop_gradient == "weak":
            weak = weak.detach()
        if self.config.contrast == "mse":
            return squared_difference(strong, weak, where)
        if sample is None:
            return channel_contrast(strong, weak, where, temperature=self.config.temperature)
        return voxel_contrast(
            sample.rows(strong),
            sample.rows(weak),
            self.group_of_class[sample.classes],
            sample.where,
            temperature=self.config.temperature,
            same_group_repels=self.config.negatives == "all",
        )

    def sample_voxels(self, strong: Tensor, weak: Tensor, batch: Batch, where: Tensor | None) -> Sample:
        """At most `voxels_per_class` voxels of each case and class, drawn at random.

        The class is that of the label, or the more probable of those that the label leaves open; to push only voxels
        of other groups it must be certain.
        """
        mean = (strong + weak).detach() / 2
        classes = complete(mean, batch.labels, batch.annotated).argmax(dim=1)
        valid = batch.inside if where is None else where
        if self.config.negatives == "cross_group":
            certain = (strong.argmax(dim=1) == weak.argmax(dim=1)) & (mean.amax(dim=1) > CERTAIN)
            valid = valid & (certain | ~open_voxels(batch.labels, batch.annotated))
        cases, num_classes = mean.shape[:2]
        case = torch.arange(cases, device=mean.device).view(-1, *(1 for _ in classes.shape[1:]))
        pairs = torch.where(valid, case * num_classes + classes, -1).flatten()
        drawn = draw_from_groups(pairs, cases * num_classes, self.config.voxels_per_class)
        pair = torch.arange(cases * num_classes, device=mean.device).unsqueeze(1).expand_as(drawn.voxels)
        return Sample(drawn.voxels.flatten(), pair.flatten() % num_classes, drawn.filled.flatten())

    def ramp(self, progress: Progress) -> float:
        """r(t): 0 before `ramp_start`, then the sigmoid ramp."""
        return progress.ramp(self.config.ramp_fraction, after=self.config.ramp_start)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Norms, biases, the scales of the blocks and the queries do not decay."""
        named = [(name, weight) for name, weight in self.named_parameters() if weight.requires_grad]
        free = [weight for name, weight in named if weight.ndim < 2 or name.endswith("centres")]
        chosen = {id(weight) for weight in free}
        decaying = [weight for _, weight in named if id(weight) not in chosen]
        return [{"params": decaying}, {"params": free, "weight_decay": 0.0}]

    def predictor(self) -> nn.Module:
        return Softmax(self.network)


class Sample(NamedTuple):
    """R voxels of a batch that were drawn."""

    voxels: Tensor  # (R,) int64: number of the voxel among those of all cases
    classes: Tensor  # (R,) int64
    where: Tensor  # (R,) bool: drawn, and not filled up

    def rows(self, probabilities: Tensor) -> Tensor:
        """(B, K, *S) -> (R, K)."""
        return probabilities.movedim(1, -1).flatten(0, -2).index_select(0, self.voxels)


def _checked_groups(config: DKUXNetConfig, num_classes: int) -> tuple[int, ...]:
    groups = config.groups or tuple(range(num_classes))
    if len(groups) != num_classes or groups[0] != 0 or 0 in groups[1:] or len(set(groups)) != max(groups) + 1:
        raise ConfigError(
            "the groups do not fit the classes",
            found=f"groups = {list(groups)} for {num_classes} classes",
            expected="a group for each class: 0 for the background only, then 1, 2, ... without a gap",
        )
    if config.queries < 2 * max(groups):
        raise ConfigError(
            "there are fewer queries than groups to share half of them",
            found=f"queries = {config.queries} for {max(groups)} groups besides the background",
            expected=f"at least {2 * max(groups)}",
            do="raise method.settings.queries, or merge classes by method.settings.groups",
        )
    return groups


def _labelled_only(batch: Batch) -> Batch:
    """The cases in which something is annotated; all of them if there is none."""
    rows = [number for number, row in enumerate(batch.annotated_rows) if any(row[1:])]
    if not rows or len(rows) == len(batch.labels):
        return batch
    images, labels, annotated = (
        select_rows(part, rows) for part in (batch.images, batch.labels, batch.annotated)
    )
    on_host = tuple(tuple(batch.annotated_rows[row]) for row in rows)
    sparse = tuple(batch.sparse[row] for row in rows) if batch.sparse else ()
    return Batch(images, labels, annotated, annotated_on_host=on_host, sparse=sparse)
