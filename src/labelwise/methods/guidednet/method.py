"""GuidedNet: labelled voxels guide unlabelled ones, by class Gaussians of their features and by class weights.

Paper      Zhao, Wang et al., ACM Multimedia 2024, https://arxiv.org/abs/2408.04914
Spec       docs/methods/guidednet.md: where paper and official code differ, and what we follow

    two networks of one kind, initialised differently; f = last map of the decoder, z = logits, p = softmax(z)
    for every batch (x, y, A), for both networks:
        mu_k = mean of f over the voxels labelled k
        d_k  = mean over the features of |f - mu_k|;   r_k = exp(-d_k^2)            response of every voxel to class k
        mixture = 1/2 BCE(r, y) + 1/2 BCE(p, r)                                     where labels know
                + 1/2 BCE(p, r)                                                     where they do not: rectification
                + mean over pairs of classes of exp(-|mu_k - mu_j|^2)
                + l(t) * mean (softmax(r) - softmax(r of the other network))^2
        n_k  = voxels of class k that the network gets right
        w_k <- 0.99 w_k + 0.01 * C log(n_max / n_k) / max over j of log(n_max / n_j)
        y'   = argmax of z, without a gradient
        minimise  supervised(z, y, A) + 0.3 * mixture + l(t) * CE(z, y' of the other network; its w as class weights)
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import select_rows, sum_over_ranks
from labelwise.components.teachers import (
    CLASSIFIERS,
    Classifier,
    Consistency,
    Decay,
    Part,
    TwoNetworks,
    start_differently,
)
from labelwise.losses.partial import (
    AbsentDice,
    anywhere,
    dice_with_background,
    hard_labels,
    marginal_cross_entropy,
    members,
    open_voxels,
    over_space,
    pseudo_cross_entropy,
)
from labelwise.methods.base import Card, ConfigError, Method, NetFactory
from labelwise.methods.guidednet.gaussian_mixture import (
    Means,
    Place,
    Scope,
    class_means,
    deviations,
    half_binary_cross_entropy,
    half_label_cross_entropy,
    kernel_responses,
    knowledge,
    mean_absolute_distance,
    mean_over_known,
    means_of_cases,
    posteriors,
    rows_of_means,
    shared_overlap,
    voxels_at,
)
from labelwise.types import IGNORE, Batch, Progress

MixtureTerm = Literal["label", "self", "rectify", "apart", "agree"]
MIXTURE_TERMS: tuple[MixtureTerm, ...] = get_args(MixtureTerm)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GuidedNetConfig(Consistency, AbsentDice):
    ramp_fraction: NonNegativeFloat = 1.5  # the end of the training cuts the ramp short
    ramp_interval: Part = 0.0075  # 150 of 20000 steps
    supervised_weight: NonNegativeFloat = 1.0
    mixture_weight: NonNegativeFloat = 0.3  # 0 leaves the mixture out
    mixture_terms: tuple[MixtureTerm, ...] = MIXTURE_TERMS
    mixture: Literal["kernel", "bayes"] = "kernel"  # responses exp(-d^2), or posteriors of Gaussians
    means_over: Scope = "batch"  # or "image": each labelled image has its own means
    agree_on: Literal["labelled", "unlabelled"] = "labelled"  # cases in which the networks' responses agree
    voxel_step: PositiveInt = 2  # the mixture looks at every so many voxel along each axis
    feature_level: NonNegativeInt = 0  # scales of the decoder above the last one
    cross_weight: NonNegativeFloat = 1.0  # 0 leaves the cross pseudo supervision out
    class_weighted: bool = True  # false: plain cross pseudo supervision
    class_weight_half_life: Part = 0.00345  # of w, as a part of the training: 0.99 in 20000 steps
    class_weight_decay: Part | None = None  # the same at every length of training; published: 0.99
    smallest_background_weight: NonNegativeFloat = 0.0
    consistency_on: Literal["open", "all"] = "all"  # voxels of the cross pseudo supervision
    classifier: Classifier = "first"  # the network that predicts, or their mean


class View(NamedTuple):
    """What one network says about a batch."""

    logits: Tensor  # (B, C, *S) float32
    features: Tensor  # (B, F, *S)


class Answers(NamedTuple):
    """What the labels say to the mixture about the N voxels that it looks at."""

    place: Place  # of these voxels
    own: Tensor  # (B, N, C) bool: labelled with the class
    known: Tensor  # (B, N, C) bool: whether the voxel has the class is known
    rows: list[int]  # whose means each case is compared with
    cases: Tensor  # (B, N, 1) bool: anything is annotated in the case, and the voxel is no padding
    inside: Tensor  # (B, N, 1) bool: the voxel is no padding


class GuidedNet(Method):
    card = Card(
        title="GuidedNet",
        paper="https://arxiv.org/abs/2408.04914",
        idea="Two networks teach each other, guided by class Gaussians and class weights of labelled voxels.",
        learns_from=frozenset({"full", "partial", "none"}),
        accumulates=False,
    )
    Config = GuidedNetConfig
    classifiers = CLASSIFIERS
    class_weights: Tensor
    started: Tensor

    def __init__(self, nets: NetFactory, config: GuidedNetConfig):
        super().__init__()
        self.config = config
        self.first = nets.network()
        self.second = nets.network()
        start_differently(self.first, self.second)
        if config.feature_level >= len(self.first.decoder.channels):
            raise ConfigError(
                "the decoder has no such scale",
                found=f"feature_level = {config.feature_level}",
                expected=f"0 to {len(self.first.decoder.channels) - 1}",
            )
        self.register_buffer("class_weights", torch.ones(2, nets.num_classes))  # of the two networks
        self.register_buffer("started", torch.zeros(nets.num_classes, dtype=torch.bool))  # has been labelled
        self.decay = self.decays(config)["class_weight_decay"]
        self.moved: tuple[Tensor, Tensor] | None = None  # what both become after this step

    @classmethod
    def decays(cls, config: GuidedNetConfig) -> dict[str, Decay]:
        return {"class_weight_decay": Decay(config.class_weight_half_life, config.class_weight_decay)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        views = self.views(batch.images)
        ramp = self.config.weight(progress)
        supervised = self.supervised(views[0].logits, batch) + self.supervised(views[1].logits, batch)
        mixture = self.mixture(views, batch, ramp)
        return {
            "supervised": self.config.supervised_weight * supervised,
            **{f"mixture_{name}": self.config.mixture_weight * term for name, term in mixture.items()},
            "cross_pseudo": self.config.cross_weight * ramp * self.cross_pseudo(views, batch, progress),
        }

    def views(self, images: Tensor) -> list[View]:
        """Logits of both networks, and the maps whose voxels the mixture compares."""
        level = self.config.feature_level
        return [View(*network.with_features(images, level)) for network in (self.first, self.second)]

    def supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        """Half of cross-entropy and Dice, background included."""
        dice = dice_with_background(
            logits,
            batch.labels,
            batch.annotated,
            squared=True,
            pooling="batch",
            absent=self.config.absent_dice,
        )
        return (marginal_cross_entropy(logits, batch.labels, batch.annotated) + dice) / 2

    # the mixture

    def mixture(self, views: list[View], batch: Batch, ramp: float) -> dict[str, Tensor]:
        """The terms of the mixture, summed over both networks, before the weight of the mixture."""
        annotated = [any(row[1:]) for row in batch.annotated_rows]
        silent = views[0].logits.sum() * 0
        if not self.config.mixture_weight or not any(annotated):
            return dict.fromkeys(MIXTURE_TERMS, silent)
        answers = self.answers(batch, annotated)
        found = [self.mixture_of_network(view, answers) for view in views]
        terms = {name: found[0][0][name] + found[1][0][name] for name in found[0][0]}
        rows = [row for row, has in enumerate(annotated) if has is (self.config.agree_on == "labelled")]
        if rows:
            terms["agree"] = 2 * ramp * agreement(*(select_rows(responses, rows) for _, responses in found))
        wanted = self.config.mixture_terms
        return {name: terms.get(name, silent) if name in wanted else silent for name in MIXTURE_TERMS}

    def answers(self, batch: Batch, annotated: list[bool]) -> Answers:
        """What the labels of a batch say; a grid of voxels is looked at, with a random start."""
        step, dims = self.config.voxel_step, batch.labels.ndim - 1
        starts = torch.randint(step, (dims,)).tolist() if step > 1 else [0] * dims
        place: Place = (..., *(slice(start, None, step) for start in starts))
        there = batch.annotated if batch.annotated.ndim == 2 else batch.annotated[place].flatten(2)
        own, known = knowledge(batch.labels[place].flatten(1), there)
        rows = rows_of_means(self.config.means_over, annotated)
        inside = batch.inside[place].flatten(1).unsqueeze(2)
        cases = anywhere(batch.annotated)[:, 1:].any(dim=1).view(-1, 1, 1) & inside
        return Answers(place, own, known, rows, cases, inside)

    def mixture_of_network(self, view: View, answers: Answers) -> tuple[dict[str, Tensor], Tensor]:
        """The terms that concern one network, and its responses (B, N, C)."""
        features, logits = (voxels_at(part, answers.place) for part in (view.features, view.logits))
        probabilities = logits.softmax(dim=2)
        means = class_means(features, answers.own, self.config.means_over)
        responses = self.responses(features, probabilities, means, answers)
        present = select_rows(means.present, answers.rows).unsqueeze(1)
        tie = half_binary_cross_entropy(probabilities, responses)
        by_label = half_label_cross_entropy(responses, answers.own)
        terms = {
            "label": mean_over_known(by_label, answers.known & present),
            "self": mean_over_known(tie, answers.cases & present),
            "rectify": mean_over_known(tie, ~answers.known & answers.inside & present),
            "apart": shared_overlap(means),
        }
        return terms, responses

    def responses(self, features: Tensor, probabilities: Tensor, means: Means, answers: Answers) -> Tensor:
        """How much each voxel belongs to each class by its features: (B, N, C) in [0, 1]."""
        cases = means_of_cases(means, answers.rows)
        distances = mean_absolute_distance(features, cases.values)
        if self.config.mixture == "kernel":
            return kernel_responses(distances, cases.present)
        deviation = deviations(distances, probabilities, answers.own, self.config.means_over)
        return posteriors(distances, select_rows(deviation, answers.rows), cases.counts)

    # cross pseudo supervision

    def cross_pseudo(self, views: list[View], batch: Batch, progress: Progress) -> Tensor:
        """Each network against the other's pseudo-labels, whose classes weigh as the other network masters them."""
        first, second = (view.logits for view in views)
        predictions = [logits.argmax(dim=1) for logits in (first, second)]
        weights = self.learn_class_weights(predictions, batch, progress)
        targets = self.pseudo_labels([first, second], predictions, batch)
        where = batch.inside
        if self.config.consistency_on == "open":
            where = open_voxels(batch.labels, batch.annotated, where)
        if not self.config.class_weighted:
            weights = torch.ones_like(weights)
        return pseudo_cross_entropy(
            first, targets[1], where, class_weights=weights[1]
        ) + pseudo_cross_entropy(second, targets[0], where, class_weights=weights[0])

    def pseudo_labels(self, logits: list[Tensor], predictions: list[Tensor], batch: Batch) -> list[Tensor]:
        """The predictions; in partly annotated cases, restricted to what the labels leave possible."""
        if not any(any(row[1:]) and not all(row[1:]) for row in batch.annotated_rows):
            return predictions
        # Complete cases keep the plain prediction, as in the official code, which has no others with labels.
        complete = batch.complete.view(-1, *(1 for _ in batch.labels.shape[1:]))
        given = batch.labels.masked_fill(complete, IGNORE)
        return [hard_labels(opinion, given, batch.annotated) for opinion in logits]

    @torch.no_grad()
    def learn_class_weights(self, predictions: list[Tensor], batch: Batch, progress: Progress) -> Tensor:
        """The weights (2, C) after this batch, from what each network gets right in all ranks.

        A class begins with the weight by its labelled voxels where it is first met.
        """
        counts = torch.stack(
            [voxels_right(guess, batch.labels, batch.annotated) for guess in (batch.labels, *predictions)]
        )
        fresh, known = rarity_weights(sum_over_ranks(counts))
        begins = known[0] & ~self.started
        weights = torch.where(begins, fresh[0], self.class_weights)
        decay = self.decay.keep(progress)
        weights = torch.where(known[1:], decay * weights + (1 - decay) * fresh[1:], weights)
        self.moved = weights, self.started | begins
        background = torch.arange(weights.shape[1], device=weights.device) == 0
        floor = self.config.smallest_background_weight
        return torch.where(background, weights.clamp_min(floor), weights)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        if self.moved is not None:
            weights, started = self.moved
            self.class_weights.copy_(weights)
            self.started.copy_(started)
            self.moved = None

    def predictor(self) -> nn.Module:
        return TwoNetworks(self.first, self.second, self.config.classifier)


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of two networks' responses (B, N, C), after a softmax over the classes."""
    return F.mse_loss(first.softmax(dim=2), second.softmax(dim=2))


def voxels_right(prediction: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """How many voxels of each class are predicted rightly; wrong ones count as background.

    The background is counted in complete cases only, where it is known.

    Shapes
        prediction  (B, *S)  int64 in [0, C); its value at IGNORE does not matter
        labels      (B, *S)  int64 in [0, C) or IGNORE
        annotated   (B, C) or (B, C, *S) bool; column 0 is not read
        returns     (C,)     float32
    """
    complete = over_space(annotated, labels.ndim - 1)[:, 1:].all(dim=1)
    counted = labels.where(prediction == labels, 0)
    unknown = (labels == IGNORE) | ((counted == 0) & ~complete)
    found = members(counted.masked_fill(unknown, IGNORE), annotated.shape[1])
    return found.flatten(2).sum(dim=(0, 2)).float()


def rarity_weights(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Class weights from numbers of voxels: 0 for the most frequent class, C for the rarest.

    ``C log(n_max / n_k) / max over j of log(n_max / n_j)``, over the classes with a voxel.

    Shapes
        counts      (..., C) float
        returns     weights (..., C) float, 0 without a voxel; whether the weight is known (..., C) bool

    Example
        >>> rarity_weights(torch.tensor([1000.0, 10.0, 100.0, 0.0]))
        (tensor([0., 4., 2., 0.]), tensor([ True,  True,  True, False]))
    """
    counted = counts > 0
    logarithms = counts.clamp_min(1).log()
    rarity = (logarithms.amax(dim=-1, keepdim=True) - logarithms) * counted
    rarest = rarity.amax(dim=-1, keepdim=True)
    return counts.shape[-1] * rarity / rarest.clamp_min(1e-8), counted & (rarest > 0)
