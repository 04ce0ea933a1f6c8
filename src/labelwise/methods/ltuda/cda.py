"""LTUDA, first stage: scans of different label sets are spliced, and a teacher fills in what is not annotated.

Paper      Jiang, Zhang, Li, Liu, Cheng & Yang, Medical Image Analysis 2025, https://arxiv.org/abs/2409.03228
           (cross-set data augmentation, CDA)
Spec       docs/methods/ltuda_cda.md: where paper and official code differ, and what we follow

    for every batch (x, y, A), turned, scaled and cropped by the loader (the weak view):
        g = strongest structure of sigmoid(teacher(x)) if it reaches tau, else background            no gradient
        u = background where g is in A, else g;     y~ = y where y is a structure, else u
        s_v = x with a box of the next case of the batch, v = 1, 2;  y_v, A_v and y~_v are mixed alike
        z, z_1, z_2 = student(x, s_1, s_2)                                       one map for each structure
        BCE(z; y on A) asks the maps of A; and all others for their absence where y is a structure
        minimise  BCE(z; y on A) + sum over v of  BCE(z_v; y_v on A_v) + w(t) BCE(z_v; y~_v on all structures)
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import Pairing, cut_boxes, mix, partners, select_rows
from labelwise.components.teachers import Decay, EmaTeacher, Part, StudentAndTeacher
from labelwise.losses.partial import (
    dice_loss,
    full_precision,
    members,
    over_space,
    overlap_sums,
    per_voxel,
    structure_answers,
)
from labelwise.methods.base import Card, ConfigError, Method, NetFactory, Presets, Sigmoid
from labelwise.methods.ltuda.prototypes import Assign
from labelwise.types import IGNORE, Batch, Progress

Reduction = Literal["sum", "mean"]
Threshold = Annotated[float, Field(gt=0, lt=1)]

STRONG_VIEWS = 2


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LtudaConfig(StudentAndTeacher):
    """Settings of both stages, which share one table; the first stage does not read those below the line."""

    ema_half_life: Part = 0.0074  # a = 0.999 in 93600 steps
    eval_model: Literal["student", "teacher"] = "teacher"
    teacher_bn: Literal["batch", "eval"] = "batch"  # statistics of its own batch, or running ones of its own
    threshold: Threshold = 0.5  # tau of the pseudo-labels
    restrict_to_unknown: bool = False  # the teacher chooses among the structures that are not annotated only
    cut_mix: bool = True  # false: the strong views are the weak one
    pair: Pairing = "next"  # different_set: prefer a partner in which other structures are annotated
    batch_reduction: Reduction = "sum"  # of BCE over the cases; sum as in the official code
    known_negatives: bool = (
        True  # where a structure is labelled, the maps of others learn that they are absent
    )
    dice_weight: NonNegativeFloat = (
        0.0  # of the Dice of annotated structures in the weak view; none as published
    )
    structure_prior: Threshold = 0.5  # what every map says of every voxel at the start; 0.5 as published
    pseudo_weight: NonNegativeFloat = 1.0
    pseudo_ramp: Part = 0.0  # part of the first stage over which that weight rises; for short trainings
    prediction_thresholds: tuple[
        Threshold, ...
    ] = ()  # per structure, for the linear classifier; none: chosen at the end
    # ---- second stage only
    classifier: Literal["linear", "labelled_prototype", "unlabelled_prototype"] = "unlabelled_prototype"
    prototypes_per_class: PositiveInt = 5  # M
    prototype_half_life: Part = 0.0037  # of the banks, as a part of the stage: 0.999 in 93600 steps
    prototype_momentum: Part | None = None  # the same at every length of training; published: 0.999
    labelled_weight: NonNegativeFloat = 1.0  # of the loss of the labelled bank
    unlabelled_weight: NonNegativeFloat = 1.0  # of the loss of the unlabelled bank
    contrast_weight: NonNegativeFloat = 0.01
    distance_weight: NonNegativeFloat = 0.001
    assign: Assign = "argmax"  # gumbel_prob: a random prototype, as in the official code
    max_pixels: PositiveInt | None = None  # pixels of each strong view that the prototypes see


class Targets(NamedTuple):
    """What a view shall become; mixed with a box like its images."""

    truth: Tensor  # (B, C - 1, *S) bool: where each structure is annotated
    known: Tensor  # (B, C - 1, *S) bool: where that is known
    completed: (
        Tensor  # (B, *S) int64 in [0, C), IGNORE where an annotated case leaves a voxel out, and in padding
    )
    guessed: Tensor  # (B, *S) int64 in [0, C): the teacher's structures that are not annotated


class View(NamedTuple):
    images: Tensor  # (B, M, *S)
    targets: Targets


class LtudaCda(Method):
    card = Card(
        title="LTUDA, first stage (CDA)",
        paper="https://arxiv.org/abs/2409.03228",
        idea="Scans with different annotated structures are cut into each other, and a teacher labels the others.",
        learns_from=frozenset({"full", "partial", "none"}),
        independent_maps=True,
    )
    Config = LtudaConfig
    presets: ClassVar[Presets] = {
        "union": {"ema_half_life": 0.00155, "prototype_half_life": 0.00077}
    }  # 447900 steps

    def __init__(self, nets: NetFactory, config: LtudaConfig):
        super().__init__()
        self.config = config
        self.thresholds = prediction_thresholds(config, nets.num_classes - 1)
        self.student = nets.network(nets.num_classes - 1, prior=config.structure_prior)
        self.teacher = EmaTeacher(
            self.student, self.decays(config)["ema_decay"], statistics=config.teacher_bn
        )

    @classmethod
    def decays(cls, config: LtudaConfig) -> dict[str, Decay]:
        return {"ema_decay": config.decay(warm_up=True)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        weak, *strong = views(batch, self.teacher, self.config)
        images = torch.cat([weak.images, *(view.images for view in strong)])
        weak_logits, *strong_logits = self.student(images).chunk(1 + STRONG_VIEWS)
        supervised = weak_loss(weak_logits, weak.targets, self.config)
        pseudo = torch.zeros_like(supervised)
        for logits, view in zip(strong_logits, strong, strict=True):
            supervised = supervised + annotated_loss(logits, view.targets, self.config)
            pseudo = pseudo + pseudo_loss(logits, view.targets, self.config.batch_reduction)
        return {"supervised": supervised, "pseudo": self.pseudo_weight(progress) * pseudo}

    def pseudo_weight(self, progress: Progress) -> float:
        """Constant as published, or rising: an untrained teacher says background, and its pupils would believe it."""
        return self.config.pseudo_weight * progress.ramp(self.config.pseudo_ramp)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def predictor(self) -> nn.Module:
        network = self.config.predicting(self.student, self.teacher)
        return Sigmoid(network, self.thresholds, fixed=bool(self.config.prediction_thresholds))


def prediction_thresholds(config: LtudaConfig, structures: int) -> tuple[float, ...]:
    """One threshold for each structure.

    Errors
        ConfigError     `prediction_thresholds` has another length
    """
    given = config.prediction_thresholds or (config.threshold,) * structures
    if len(given) != structures:
        raise ConfigError(
            "method.settings.prediction_thresholds has the wrong length",
            found=f"{len(given)} numbers",
            expected=f"{structures}, one for each structure in the order of the classes, or none",
        )
    return given


def views(batch: Batch, teacher: EmaTeacher, config: LtudaConfig) -> list[View]:
    """The weak view, which is the batch as it came, and the strong views, each with boxes of its own."""
    guesses = teacher_labels(
        teacher(batch.images), batch.annotated, config.threshold, restrict=config.restrict_to_unknown
    )
    targets = complete_targets(batch.labels, batch.annotated, guesses, batch.valid)
    weak = View(batch.images, targets)
    if not config.cut_mix:
        return [weak] * (1 + STRONG_VIEWS)
    rows = partners(batch.annotated_rows, config.pair)
    theirs = View(select_rows(weak.images, rows), Targets(*(select_rows(target, rows) for target in targets)))
    boxes = [
        cut_boxes(len(batch.images), batch.images.shape[2:], device=batch.images.device)
        for _ in range(STRONG_VIEWS)
    ]
    return [weak, *(_mixed(weak, theirs, keep) for keep in boxes)]


def _mixed(mine: View, theirs: View, keep: Tensor) -> View:
    targets = (mix(own, other, keep) for own, other in zip(mine.targets, theirs.targets, strict=True))
    return View(mix(mine.images, theirs.images, keep), Targets(*targets))


def teacher_labels(logits: Tensor, annotated: Tensor, threshold: float, *, restrict: bool = False) -> Tensor:
    """The structure that a teacher sees at each voxel, and background where none reaches the threshold.

    Shapes
        logits      (B, C - 1, *S), before the sigmoid
        annotated   (B, C) bool
        restrict    choose among the structures that are not annotated only
        returns     (B, *S) int64 in [0, C)
    """
    probabilities = logits.float().sigmoid()
    if restrict:
        probabilities = probabilities.masked_fill(over_space(annotated, logits.ndim - 2)[:, 1:], -1)
    strongest, structure = probabilities.max(dim=1)
    return torch.where(strongest >= threshold, structure + 1, 0)


def complete_targets(
    labels: Tensor, annotated: Tensor, guesses: Tensor, inside: Tensor | None = None
) -> Targets:
    """Labels completed by a teacher's guesses about the structures that are not annotated.

    Where the teacher sees an annotated structure that the label denies, the voxel becomes background.

    Shapes
        labels      (B, *S) int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool
        guesses     (B, *S) int64 in [0, C)
        inside      (B, *S) bool, `Batch.inside`; None: everywhere
    """
    structures = per_voxel(annotated, labels).clone()
    structures[:, 0] = False
    denied = structures.gather(1, guesses.unsqueeze(1)).squeeze(1)
    guessed = guesses.masked_fill(denied, 0)
    left_out = (labels == IGNORE) | ~structures.any(dim=1)
    # Everything is left out in an unlabelled case; there the teacher alone speaks.
    says_so = left_out & over_space(structures.flatten(1).any(dim=1, keepdim=True), labels.ndim - 1)[:, 0]
    if inside is not None:
        says_so = says_so | ~inside
    is_structure = (labels > 0) & ~left_out
    completed = torch.where(is_structure, labels, guessed).masked_fill(says_so, IGNORE)
    return Targets(*structure_answers(labels, annotated), completed, guessed)


def weak_loss(logits: Tensor, targets: Targets, config: LtudaConfig) -> Tensor:
    """BCE on the structures that are annotated, and their Dice if it is asked for.

    Only the weak view shows structures as a whole: the Dice of the pieces that boxes cut out would say little.
    """
    loss = annotated_loss(logits, targets, config)
    if config.dice_weight:
        dice = partial_dice(logits, targets.truth, targets.known, config.batch_reduction)
        loss = loss + config.dice_weight * dice
    return loss


def annotated_loss(logits: Tensor, targets: Targets, config: LtudaConfig) -> Tensor:
    """BCE on the structures that are annotated, and of all others where one of those is labelled."""
    counted, reduction = targets.completed != IGNORE, config.batch_reduction
    loss = partial_bce(logits, targets.truth, targets.known, counted, reduction)
    if config.known_negatives:
        absent = targets.truth.any(dim=1, keepdim=True) & ~targets.known
        loss = loss + partial_bce(logits, torch.zeros_like(absent), absent, counted, reduction)
    return loss


def pseudo_loss(logits: Tensor, targets: Targets, reduction: Reduction) -> Tensor:
    """BCE on all structures, against the completed labels."""
    counted = targets.completed != IGNORE
    truth = members(targets.completed, logits.shape[1] + 1)[:, 1:]
    return partial_bce(logits, truth, counted.unsqueeze(1).expand_as(truth), counted, reduction)


def partial_bce(
    logits: Tensor, truth: Tensor, known: Tensor, counted: Tensor, reduction: Reduction = "sum"
) -> Tensor:
    """Binary cross-entropy where an answer is known, divided by the number of voxels that count.

    The sum over the cases of a batch, or the mean over those in which something is known about the structure; then the
    mean over the structures of which anything is known in the batch.

    Shapes
        logits          (B, C - 1, *S)  float, before the sigmoid
        truth, known    (B, C - 1, *S)  bool
        counted         (B, *S)         bool: all voxels but those that the labels leave out
        returns         ()              float32; 0 with a zero gradient if nothing is known
    """
    logits = full_precision(logits)
    per_voxel = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    per_case = (per_voxel * known).flatten(2).sum(dim=2) / counted.flatten(1).sum(1, True).clamp_min(1)
    return _over_cases_and_structures(per_case, known.flatten(2).any(dim=2), reduction)


def partial_dice(logits: Tensor, truth: Tensor, known: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Dice loss of the structures that have a voxel where they are annotated; shapes and means as in `partial_bce`."""
    sums = overlap_sums(full_precision(logits).sigmoid(), truth, known)
    return _over_cases_and_structures(dice_loss(sums), sums.true > 0, reduction)


def _over_cases_and_structures(values: Tensor, asked: Tensor, reduction: Reduction) -> Tensor:
    """(B, C - 1) -> (): sum or mean over the cases that are asked, then the mean over the structures asked anywhere."""
    per_structure = torch.where(asked, values, 0).sum(dim=0)
    if reduction == "mean":
        per_structure = per_structure / asked.sum(dim=0).clamp_min(1)
    return per_structure.sum() / asked.any(dim=0).sum().clamp_min(1)
