"""ARCO: voxels drawn from every part of the image are pulled to their class and pushed away from all others.

Paper      You et al., NeurIPS 2023, https://arxiv.org/abs/2302.01735
           (anatomical contrastive fine-tuning with stratified group sampling, after the stage of `arco_pretraining`)
Spec       docs/methods/arco.md: where paper and official code differ, and what we follow

    start from the student of the first stage; the teacher is a copy of it
    for every batch (x, y, A):
        y^, c = class and confidence of teacher(x), restricted to what y and A leave open       unlabelled cases
        x', y', y^', c' = unlabelled cases with a box of another one of the same A; complete cases unchanged
        z, r = student(x');   p^t, r^t = teacher(x')                             representations r of every voxel
        t = label where it is known, else y^';     certain: known, or entropy of z among the lowest alpha percent
        unsupervised = mean over open voxels of omega * CE(z, y^'),       omega = share of voxels with c' >= 0.97
        for each class k:
            queries   = n voxels, stratified, of those with t = k, p^t_k > 0.3, certain: predictor(r)
            positive  = mean r^t over the voxels with t = k, certain
            negatives = m for each query, stratified, of the remembered r^t of voxels that are surely not k
            L_k = mean over queries of -log share of the positive                             cosines / temperature
        near = mean distance of predictor(r) to the 5 remembered images that are nearest to r^t  (unlabelled cases)
        minimise  CE(z, y, A) + Dice(z, y, A) + unsupervised + 0.01 * mean over k of L_k + near
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student;   memories take in r^t
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import cut_boxes, mix, select_rows
from labelwise.components.teachers import Decay, EmaTeacher
from labelwise.losses.agreement import voxel_entropy
from labelwise.losses.partial import (
    complete,
    dice_with_background,
    full_precision,
    label_log_probability,
    marginal_cross_entropy,
    masked_mean,
    members,
    open_voxels,
    possible_classes,
)
from labelwise.methods.arco.contrastive import class_contrast, neighbour_distance, unit
from labelwise.methods.arco.pretraining import ArcoConfig, ArcoPretraining, perturbed
from labelwise.methods.arco.representation import RepresentationHead, by_class, class_means, pooled, rows_at
from labelwise.methods.arco.ring_memory import RingMemory
from labelwise.methods.arco.stratified import Raster, Space, draw, voxel_of
from labelwise.methods.base import Card, Method, NetFactory, Presets, Softmax
from labelwise.types import IGNORE, Batch, Progress

HIGH_RANK = 3  # a class among so many likeliest ones is easily confused with the label

PERCENTILE_SAMPLE = 1_000_000  # values that are sorted


class View(NamedTuple):
    """Cases with what is known or guessed of each voxel; mixed with a box like their images."""

    images: Tensor  # (B, M, *S)
    labels: Tensor  # (B, *S)
    target: Tensor  # (B, *S) int64: label where it is known, else pseudo-label; IGNORE takes part in nothing
    open: Tensor  # (B, *S) bool: the target is a pseudo-label
    confidence: Tensor  # (B, *S) of the target; 1 where it is known
    inside: Tensor  # (B, *S) bool: no padding


class Selection(NamedTuple):
    """Voxels that take part in the contrast of each class: (B, C, *S) bool each."""

    queries: Tensor
    positives: Tensor
    negatives: Tensor


class Entries(NamedTuple):
    """What the memories take in after a step."""

    keys: Tensor  # (C, n, D)
    keys_wanted: Tensor  # (C, n) bool
    maps: Tensor  # (1, B, F)
    maps_wanted: Tensor  # (1, B) bool


class Arco(Method):
    card = Card(
        title="ARCO",
        paper="https://arxiv.org/abs/2302.01735",
        idea="Voxels from all parts of the image are contrasted with voxels of other classes in a memory.",
        learns_from=frozenset({"full", "partial", "none"}),
        accumulates=False,
    )
    Config = ArcoConfig
    presets: ClassVar[Presets] = ArcoPretraining.presets
    follows = ArcoPretraining

    def __init__(self, nets: NetFactory, config: ArcoConfig):
        super().__init__()
        self.config = config
        width = config.representation
        self.student = RepresentationNet(nets, width)
        self.teacher = EmaTeacher(self.student, self.decays(config)["ema_decay"])
        self.student_predictor = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        )
        sizes = (config.background_key_memory, *[config.key_memory] * (nets.num_classes - 1))
        self.keys = RingMemory(sizes, width, dtype=torch.float16)
        self.maps = RingMemory((config.memory_size,), width * config.neighbour_bins**nets.dims)
        self.entries: Entries | None = None

    @classmethod
    def decays(cls, config: ArcoConfig) -> dict[str, Decay]:
        return {"ema_decay": config.decay(warm_up=False)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        config, rows = self.config, batch.unlabelled_rows
        others = [row for row in range(len(batch.images)) if row not in rows]
        annotated = select_rows(batch.annotated, [*others, *rows])
        view = self.view(batch, others, rows)
        logits, representation = self.student(view.images)
        taught_logits, taught = self.teach(view.images)
        selection = self.selection(view, annotated, logits, taught_logits, progress)
        inside = view.inside.unsqueeze(1)
        maps = pooled(representation * inside, len(rows), config.neighbour_bins)
        taught_maps = pooled(taught * inside, len(rows), config.neighbour_bins)
        self.entries = self.remembered(taught, selection.negatives, taught_maps, batch)
        on = float(progress.step >= config.warm_up * progress.total)
        return {
            "supervised": self.supervised(logits, view.labels, annotated),
            "unsupervised": on * config.unsupervised_weight * self.unsupervised(logits, view),
            "contrast": on * config.contrast_weight * self.contrast(representation, taught, selection),
            "neighbours": on * config.neighbour_weight * self.nearness(maps, taught_maps),
        }

    def teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and representations of the teacher."""
        return cast(tuple[Tensor, Tensor], self.teacher(images))

    def view(self, batch: Batch, complete_rows: list[int], rows: list[int]) -> View:
        """The complete cases as they came, then the unlabelled ones, each with a box of another one."""
        images, labels = select_rows(batch.images, complete_rows), select_rows(batch.labels, complete_rows)
        certain = torch.ones(labels.shape, device=labels.device)
        nothing = torch.zeros_like(labels, dtype=torch.bool)
        known = View(images, labels, labels, nothing, certain, select_rows(batch.inside, complete_rows))
        if not rows:
            return known
        mine = self.guessed(
            *(select_rows(part, rows) for part in (batch.images, batch.labels, batch.annotated, batch.inside))
        )
        other = equal_partners([batch.annotated_rows[row] for row in rows])
        shape, device = batch.images.shape[2:], batch.images.device
        keep = slab_boxes(len(rows), shape, self.config.mix_area, self.config.mix_depth, device)
        mixed = View(*(mix(part, select_rows(part, other), keep) for part in mine))
        if self.config.perturb_mixed:
            mixed = mixed._replace(images=perturbed(mixed.images, self.config.jitter))
        return View(*(torch.cat(parts) for parts in zip(known, mixed, strict=True)))

    def guessed(self, images: Tensor, labels: Tensor, annotated: Tensor, inside: Tensor) -> View:
        """Incomplete cases as the teacher sees them."""
        probabilities = self.teach(images)[0].softmax(dim=1)
        confidence, target = complete(probabilities, labels, annotated).max(dim=1)
        target = target.where(inside, IGNORE)
        return View(images, labels, target, open_voxels(labels, annotated, inside), confidence, inside)

    def supervised(self, logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
        """Cross-entropy plus Dice, the background included."""
        dice = dice_with_background(
            logits,
            labels,
            annotated,
            squared=self.config.squared_dice,
            pooling=self.config.dice_pooling,
            absent=self.config.absent_dice,
        )
        return marginal_cross_entropy(logits, labels, annotated) + dice

    def unsupervised(self, logits: Tensor, view: View) -> Tensor:
        """Cross-entropy against the pseudo-labels; each case counts as much as its teacher is certain of it."""
        return confident_cross_entropy(
            logits, view.target, view.open, view.confidence, self.config.confidence_threshold
        )

    def selection(
        self, view: View, annotated: Tensor, logits: Tensor, taught_logits: Tensor, progress: Progress
    ) -> Selection:
        """Which voxels are queries, positives and negatives of each class."""
        config = self.config
        return select(
            taught_logits.softmax(dim=1),
            view.target,
            possible_classes(view.labels, annotated),
            view.open,
            voxel_entropy(full_precision(logits.detach()).log_softmax(dim=1)),
            percent=config.entropy_percent * (1 - progress.fraction),
            query_threshold=config.query_threshold,
            key_threshold=config.key_threshold,
        )

    def contrast(self, representation: Tensor, taught: Tensor, selection: Selection) -> Tensor:
        """Mean over the classes of L_k; 0 with fewer than two classes in the batch, or an empty memory."""
        config = self.config
        grid = 1 if config.sampler == "uniform" else config.grid
        antithetic = config.sampler == "antithetic"
        masks = by_class(selection.queries)
        found = masks.cumsum(dim=1, dtype=torch.int32)
        if config.strata == "space":
            space = Space(masks, representation.shape[2:], grid)
            voxels = draw(space, config.queries, antithetic=antithetic, remainder=config.remainder)
        else:
            order = Raster(found[:, -1:].long(), grid)
            ranks = draw(order, config.queries, antithetic=antithetic, remainder=config.remainder)
            voxels = voxel_of(found, ranks)
        queries = self.student_predictor(rows_at(representation, voxels))
        filled = self.keys.filled
        rows = draw(
            Raster(filled.unsqueeze(1), grid),
            config.queries * config.negatives,
            antithetic=antithetic,
            remainder=config.remainder,
        )
        # The draws come cell by cell: every query takes each so-many-th one, and so some of all cells.
        rows = rows.view(-1, config.negatives, config.queries).transpose(1, 2)
        negatives = self.keys.read(rows).float()
        positives, present = class_means(taught, selection.positives)
        valid = present & (found[:, -1] > 0) & (filled > 0) & (present.sum() > 1)
        return class_contrast(queries, positives, negatives, valid, temperature=config.temperature)

    def nearness(self, maps: Tensor, taught_maps: Tensor) -> Tensor:
        """Mean distance of the unlabelled cases to the remembered ones that are like what the teacher sees."""
        if not len(maps):
            return maps.sum()
        student = self.student_predictor(maps).flatten(1)
        memory, filled = self.maps.rows[0], self.maps.is_filled[0]
        return neighbour_distance(
            student, taught_maps.flatten(1), memory, filled, neighbours=self.config.neighbours
        )

    @torch.no_grad()
    def remembered(self, taught: Tensor, negatives: Tensor, maps: Tensor, batch: Batch) -> Entries:
        """Random negatives of each class and all maps, of length one; nothing of a batch without labels."""
        labelled = any(any(row[1:]) for row in batch.annotated_rows)
        found = by_class(negatives).cumsum(dim=1, dtype=torch.int32)
        count = found[:, -1:].long()
        voxels = voxel_of(found, draw(Raster(count, 1), self.config.keys_per_step))
        number = torch.arange(self.config.keys_per_step, device=count.device)
        rows = unit(maps.flatten(1)).unsqueeze(0)
        spare = (0, 0, 0, len(batch.images) - len(maps))  # as many rows on every rank
        wanted = torch.full(rows.shape[:2], labelled, device=rows.device)
        return Entries(
            unit(rows_at(taught, voxels)),
            (number < count) & labelled,
            F.pad(rows, spare),
            F.pad(wanted, spare[2:]),
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)
        if self.entries is not None:
            self.keys.put(self.entries.keys, self.entries.keys_wanted)
            self.maps.put(self.entries.maps, self.entries.maps_wanted)
            self.entries = None

    def start_from(self, previous: Method) -> tuple[str, ...]:
        """Take over the student of the first stage; the teacher begins anew, as a copy of it."""
        missing = super().start_from(previous)
        self.teacher.network.load_state_dict(self.student.state_dict())
        return missing

    def predictor(self) -> nn.Module:
        network = self.config.predicting(self.student, self.teacher)
        return Softmax(cast(RepresentationNet, network).network)


class RepresentationNet(nn.Module):
    """A network with a representation of every voxel, made of all scales of its decoder."""

    def __init__(self, nets: NetFactory, width: int):
        super().__init__()
        self.network = nets.network()
        self.representation_head = RepresentationHead(self.network.decoder.channels, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, M, *S) -> logits (B, C, *S), representations (B, width, *S) in float32."""
        scales = self.network.decoder(self.network.encoder(images))
        return self.network.head(scales[-1]), self.representation_head(scales)


def select(
    probabilities: Tensor,
    target: Tensor,
    possible: Tensor,
    is_open: Tensor,
    uncertainty: Tensor,
    *,
    percent: float,
    query_threshold: float = 0.3,
    key_threshold: float = 0.97,
) -> Selection:
    """Voxels of each class that are queries or positives, and voxels that are surely not of it.

    Shapes
        probabilities   (B, C, *S)  of the teacher
        target          (B, *S)     int64 in [0, C), or IGNORE: takes part in nothing
        possible        (B, C, *S)  bool: what the labels leave possible
        is_open         (B, *S)     bool: the target is a pseudo-label
        uncertainty     (B, *S)     of the student; open voxels are certain or uncertain by its percentiles among them
    """
    low, high = percentiles(uncertainty, is_open, (percent, 100 - percent))
    certain = (~is_open | (uncertainty <= low)).unsqueeze(1)
    uncertain = (is_open & (uncertainty >= high)).unsqueeze(1)
    classes = probabilities.shape[1]
    own = members(target, classes)
    largest = probabilities.topk(min(HIGH_RANK, classes), dim=1).values
    among_first = probabilities >= largest[:, -1:]  # fewer than three classes are likelier
    behind = probabilities < largest[:, min(HIGH_RANK, classes - 1) - 1].unsqueeze(1)
    guessed_other = possible & ~own & uncertain & behind
    negatives = (~possible & among_first) | guessed_other
    taking_part = (target != IGNORE).unsqueeze(1)
    return Selection(
        queries=own & (probabilities > query_threshold) & certain,
        positives=own & certain,
        negatives=negatives & taking_part & (probabilities < key_threshold),
    )


def confident_cross_entropy(
    logits: Tensor, target: Tensor, where: Tensor, confidence: Tensor, threshold: float
) -> Tensor:
    """Cross-entropy times the share of certain voxels of its case, mean over the voxels where it is not 0.

    Shapes
        logits              (B, C, *S)
        target              (B, *S)     int64 in [0, C) or IGNORE
        where, confidence   (B, *S)     bool; float, of the target
    """
    counted = target != IGNORE
    certain = (counted & (confidence >= threshold)).flatten(1).sum(dim=1)
    share = certain / counted.flatten(1).sum(dim=1).clamp_min(1)
    per_voxel = -label_log_probability(full_precision(logits).log_softmax(dim=1), target)
    weighted = per_voxel * share.view(-1, *[1] * (per_voxel.ndim - 1))
    return masked_mean(weighted, where & counted & (per_voxel > 0))


def equal_partners(annotated: Sequence[Sequence[bool]]) -> list[int]:
    """For each case the next one in which the same structures are annotated; itself if there is none."""
    count = len(annotated)
    following = ([(row + distance) % count for distance in range(1, count + 1)] for row in range(count))
    return [
        next(other for other in others if tuple(annotated[other][1:]) == tuple(annotated[row][1:]))
        for row, others in enumerate(following)
    ]


def slab_boxes(count: int, shape: Sequence[int], area: float, depth: float, device: torch.device) -> Tensor:
    """Where each case keeps its own voxels: (count, *shape) bool, false in a box of that area and depth along z."""
    keep = cut_boxes(count, shape[:2], area=(area, area), device=device)
    if len(shape) == 2:
        return keep
    length = max(round(depth * shape[2]), 1)
    low = (torch.rand(count, 1, device=device) * (shape[2] - length + 1)).long()
    slice_number = torch.arange(shape[2], device=device)
    inside = (slice_number >= low) & (slice_number < low + length)
    return keep.unsqueeze(3) | ~inside.view(count, 1, 1, -1)


def percentiles(values: Tensor, where: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Percentiles of the values inside `where`, interpolated, of a random million if there are more; inf if none."""
    values, where = values.flatten(), where.flatten()
    if len(values) > PERCENTILE_SAMPLE:
        drawn = torch.randint(len(values), (PERCENTILE_SAMPLE,), device=values.device)
        values, where = values[drawn], where[drawn]
    ordered = values.masked_fill(~where, torch.inf).sort().values
    last = (where.sum() - 1).clamp_min(0)

    def at(percent: float) -> Tensor:
        place = last * (percent / 100)
        below, above = ordered[torch.stack([place.floor(), place.ceil()]).long()].unbind()
        return torch.where(below < above, below + (above - below) * place.frac(), below)

    return [at(percent) for percent in percents]
