"""LTUDA: prototypes of annotated and of pseudo-labelled voxels classify side by side, and so become alike.

Paper      Jiang, Zhang, Li, Liu, Cheng & Yang, Medical Image Analysis 2025, https://arxiv.org/abs/2409.03228
           (prototype-based distribution alignment, PDA, after the stage of `ltuda_cda`)
Spec       docs/methods/ltuda.md: where paper and official code differ, and what we follow

    start from the student of the first stage; the teacher is a copy of it
    for every batch: views x, s_1, s_2 with completed labels y~_v and guessed structures u_v, as in the first stage
        z = linear head of the student;     c = unit embedding of each pixel of s_v
        owners of the labelled bank:    y where y is a structure, background where y = u = 0, else nobody
        owners of the unlabelled bank:  nobody where y is a structure, else u
        for v = 1, 2 and both banks P:
            S = c P^T;   o = LayerNorm over classes of the largest S of each class
            T = the prototype that takes the pixel when its class is shared out evenly
            L_v,P = CE(o, y~_v) + 0.01 * mean(-log softmax(S)_T) + 0.001 * mean(1 - S_T)^2
            P_T <- 0.999 P_T + 0.001 * direction of its rightly classified pixels
        minimise  BCE(z; y on A) + sum over v of  BCE(z_v; y~_v) + L_v,labelled + L_v,unlabelled
        student: one optimiser step;   teacher, banks included <- a * teacher + (1 - a) * student
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from labelwise.components.batches import as_pixels
from labelwise.components.teachers import Decay, EmaTeacher
from labelwise.methods.base import Card, IndependentMaps, Method, NetFactory, Presets, threshold_scores
from labelwise.methods.ltuda.cda import (
    STRONG_VIEWS,
    LtudaCda,
    LtudaConfig,
    Targets,
    prediction_thresholds,
    pseudo_loss,
    views,
    weak_loss,
)
from labelwise.methods.ltuda.prototypes import Prototypes
from labelwise.types import IGNORE, Batch, Progress

BANKS = ("labelled_prototype", "unlabelled_prototype")


class Ltuda(Method):
    card = Card(
        title="LTUDA",
        paper="https://arxiv.org/abs/2409.03228",
        idea="Classifiers made of labelled and of pseudo-labelled prototypes must agree on spliced scans.",
        learns_from=frozenset({"full", "partial", "none"}),
        accumulates=False,
        independent_maps=True,
    )
    Config = LtudaConfig
    presets: ClassVar[Presets] = LtudaCda.presets
    follows = LtudaCda
    classifiers = ("linear", *BANKS)

    def __init__(self, nets: NetFactory, config: LtudaConfig):
        super().__init__()
        self.config = config
        self.thresholds = prediction_thresholds(config, nets.num_classes - 1)
        self.student = PrototypeNet(nets, config)
        decays = self.decays(config)
        self.teacher = EmaTeacher(
            self.student,
            decays["ema_decay"],
            statistics=config.teacher_bn,
            averaged_buffers=["banks"],
        )
        self.momentum = decays["prototype_momentum"]
        self.moved: Tensor | None = None  # the banks after this step

    @classmethod
    def decays(cls, config: LtudaConfig) -> dict[str, Decay]:
        return {
            "ema_decay": config.decay(warm_up=False),
            "prototype_momentum": Decay(
                config.prototype_half_life, config.prototype_momentum, moves=STRONG_VIEWS
            ),
        }

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        weak, *strong = views(batch, self.teacher, self.config)
        features = self.student.features(torch.cat([weak.images, *(view.images for view in strong)]))
        weak_features, *strong_features = features.chunk(1 + STRONG_VIEWS)
        supervised = weak_loss(self.student.head(weak_features), weak.targets, self.config)
        pseudo, prototypes = torch.zeros_like(supervised), supervised.new_zeros(len(BANKS))
        banks = self.student.prototypes.banks.clone()
        for part, view in zip(strong_features, strong, strict=True):
            logits = self.student.head(part)
            pseudo = pseudo + pseudo_loss(logits, view.targets, self.config.batch_reduction)
            losses, banks = self.prototype_losses(part, view.targets, banks, self.momentum.keep(progress))
            prototypes = prototypes + losses
        self.moved = banks
        return {
            "supervised": supervised,
            "pseudo": self.config.pseudo_weight * pseudo,
            "labelled_prototype": self.config.labelled_weight * prototypes[0],
            "unlabelled_prototype": self.config.unlabelled_weight * prototypes[1],
        }

    def prototype_losses(
        self, features: Tensor, targets: Targets, banks: Tensor, momentum: float
    ) -> tuple[Tensor, Tensor]:
        """The loss of each bank (2,) on one strong view, and what the banks become by it.

        Shapes
            features    (B, D, *S)
            banks       (2, K * M, D)
        """
        config, prototypes = self.config, self.student.prototypes
        pixels, labels, owners = as_pixels(features), targets.completed.flatten(), bank_owners(targets)
        if config.max_pixels is not None and config.max_pixels < len(pixels):
            chosen = torch.randint(len(pixels), (config.max_pixels,), device=pixels.device)
            pixels, labels, owners = (part.index_select(0, chosen) for part in (pixels, labels, owners))
        losses, banks = prototypes.learn(
            prototypes.embed(pixels), banks, labels, owners, momentum, config.assign
        )
        weighted = config.contrast_weight * losses.contrast + config.distance_weight * losses.distance
        return losses.cross_entropy + weighted, banks

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        if self.moved is not None:
            self.student.prototypes.remember(self.moved)
            self.moved = None
        self.teacher.follow(self.student, progress)
        average = cast(PrototypeNet, self.teacher.network).prototypes
        average.remember(average.banks)  # an average of unit vectors is shorter than one

    def start_from(self, previous: Method) -> tuple[str, ...]:
        """Take over the student of the first stage; the teacher begins anew, as a copy of it."""
        missing = super().start_from(previous)
        self.teacher.network.load_state_dict(self.student.state_dict())
        return missing

    def predictor(self) -> nn.Module:
        network = self.config.predicting(self.student, self.teacher)
        fixed = self.config.classifier != "linear" or bool(self.config.prediction_thresholds)
        return Classifier(cast(PrototypeNet, network), self.config.classifier, self.thresholds, fixed=fixed)


class PrototypeNet(nn.Module):
    """The network of the first stage, with an embedding of pixels and two banks of prototypes at its last scale."""

    def __init__(self, nets: NetFactory, config: LtudaConfig):
        super().__init__()
        self.encoder = nets.encoder()
        self.decoder = nets.decoder()
        width = self.decoder.channels[-1]
        self.head = nets.head(width, nets.num_classes - 1, prior=config.structure_prior)
        self.prototypes = Prototypes(
            width, nets.num_classes, banks=len(BANKS), per_class=config.prototypes_per_class
        )

    def features(self, images: Tensor) -> Tensor:
        """Images (B, M, *S) -> features (B, D, *S)."""
        return cast(Tensor, self.decoder(self.encoder(images))[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, M, *S) -> logits (B, C - 1, *S) of the linear head."""
        return cast(Tensor, self.head(self.features(images)))

    def everywhere(self, images: Tensor) -> None:
        """Send images (B, M, *S) through the parts of all three classifiers."""
        self.prototypes.embed(as_pixels(self.features(images)))


class Classifier(IndependentMaps):
    """Scores of one of the three classifiers; holds the weights of all. Only the linear one has thresholds."""

    def __init__(self, network: PrototypeNet, classifier: str, thresholds: tuple[float, ...], *, fixed: bool):
        super().__init__(thresholds, fixed=fixed)
        self.network = network
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) in float32."""
        features = self.network.features(images)
        if self.classifier == "linear":
            return threshold_scores(self.network.head(features), self.thresholds)
        return self.network.prototypes.classify(features, BANKS.index(self.classifier)).softmax(dim=1)

    def everywhere(self, images: Tensor) -> None:
        """Send images through the parts of all three classifiers."""
        self.network.everywhere(images)


def bank_owners(targets: Targets) -> Tensor:
    """The class whose prototypes a voxel may move, in the labelled and in the unlabelled bank: (B * S, 2) int64.

    Annotated structures belong to the labelled bank, guessed structures to the other one, and background to both.
    """
    completed, guessed = targets.completed, targets.guessed
    annotated = (completed != guessed) & (completed != IGNORE)  # the two differ on annotated structures only
    labelled = completed.where(annotated | (guessed == 0), IGNORE)
    unlabelled = guessed.where(~annotated & (completed != IGNORE), IGNORE)
    return torch.stack([labelled.flatten(), unlabelled.flatten()], dim=1)
