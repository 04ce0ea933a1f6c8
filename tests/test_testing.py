"""The checks of `labelwise.testing` accept what keeps the contract, and each refuses what breaks it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from labelwise import Card, ConfigError, Method, Softmax
from labelwise.components import Decay, EmaTeacher
from labelwise.losses import masked_mean, open_voxels, possible_classes, supervised
from labelwise.nets import NetFactory, find_net
from labelwise.testing import METHOD_CHECKS, NETWORK_CHECKS, SMALL_NETS, check_method, check_network
from labelwise.types import IGNORE


@dataclass(frozen=True)
class Config:
    weight: float = 0.1


class Good(Method):
    """Labels, and certainty where they leave something open; in 2D, to be fast."""

    card = Card(
        "Good", "", "Keeps the contract.", frozenset({"full", "partial", "none"}), dims=frozenset({2})
    )
    Config = Config

    def __init__(self, nets, config):
        super().__init__()
        self.config, self.network = config, nets.network()

    def terms(self, batch):
        logits = self.network(batch.images)
        certain = logits.float().square().mean(dim=1)
        return {
            "supervised": supervised(logits, batch.labels, batch.annotated),
            "open": self.config.weight * masked_mean(certain, self.where(batch)),
        }

    def where(self, batch):
        return open_voxels(batch.labels, batch.annotated, batch.inside)

    def forward(self, batch, progress):
        return self.terms(batch)

    def predictor(self):
        return Softmax(self.network)


class NoSentence(Good):
    card = replace(Good.card, idea="no sentence")


class NotFinite(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": terms["open"] / batch.annotated.any()}


class NamesOfTheBatch(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms if batch.unlabelled.any() else {"supervised": terms["supervised"]}


class TeachesNothing(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": terms["open"].detach()}


class ReadsUnlabelled(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": terms["open"] * (batch.labels == IGNORE).float().mean()}


class ForgetsGaps(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        complete = [row for row, sparse in enumerate(batch.sparse or ()) if not sparse]
        return terms | {"supervised": terms["supervised"] * (len(complete) > 0 or not batch.sparse)}


class KnowsCasesOnly(Good):
    def forward(self, batch, progress):
        annotated = batch.annotated.flatten(2).any(dim=2) if batch.annotated.ndim > 2 else batch.annotated
        return self.terms(batch._replace(annotated=annotated))


class CountsOnTheBackground(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        possible = possible_classes(batch.labels, batch.annotated)
        open_to_it = possible[:, 0] | ~self.where(batch)  # everywhere, it seems
        return terms | {"open": terms["open"] + open_to_it.float().log().mean()}


class AsksInPadding(Good):
    def where(self, batch):
        return open_voxels(batch.labels, batch.annotated)


class SupervisesWithoutLabels(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return {"supervised": terms["supervised"] + terms["open"], "open": terms["open"]}


class NeedsEveryClass(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        voxels = torch.stack([(batch.labels == c).sum() for c in range(1, 4)])
        return terms | {"open": terms["open"] * (voxels / voxels).mean()}


class HalfPrecision(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": self.network(batch.images).bfloat16().square().mean()}


class Waits(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": terms["open"] * float(batch.labels.sum() > -1)}


class OwnDice(Good):
    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": terms["open"] * random.random()}


class TooHigh(nn.Module):
    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, images):
        return 8 * self.predictor(images)


class ScoresAboveOne(Good):
    def predictor(self):
        return TooHigh(Softmax(self.network))


class NeverLearns(Good):
    def parameter_groups(self):
        return [{"params": list(self.parameters())}]

    def forward(self, batch, progress):
        return {name: 1e-9 * term + term.detach() for name, term in self.terms(batch).items()}


class Forgets(Good):
    def __init__(self, nets, config):
        super().__init__(nets, config)
        self.remembered = float(torch.rand(()))

    def forward(self, batch, progress):
        terms = self.terms(batch)
        return terms | {"open": terms["open"] * self.remembered}


class AveragesInSecret(Good):
    def __init__(self, nets, config):
        super().__init__(nets, config)
        self.teacher = EmaTeacher(self.network, Decay(0.01))


class KeepsItsStart(Good):
    @classmethod
    def decays(cls, config):
        return {"weight": Decay(0.01, fixed=0.999)}


class LeavesWeightsOut(Good):
    def parameter_groups(self):
        return [{"params": list(self.parameters())[1:]}]


class HasAnIdleHead(Good):
    def __init__(self, nets, config):
        super().__init__(nets, config)
        self.idle = torch.nn.Linear(2, 2)


class LeavesTheBatch(Good):
    def forward(self, batch, progress):
        self.seen = batch.images
        return self.terms(batch)


BROKEN = {
    "the_card_says_what_the_method_is": NoSentence,
    "terms_are_finite_for_every_mix_of_cases": NotFinite,
    "terms_have_the_same_names_for_every_mix_of_cases": NamesOfTheBatch,
    "every_term_teaches": TeachesNothing,
    "labels_of_unlabelled_cases_are_never_read": ReadsUnlabelled,
    "cases_annotated_in_parts_are_learnt_from": ForgetsGaps,
    "cases_annotated_for_a_region_are_learnt_from": CountsOnTheBackground,
    "a_class_is_learnt_only_where_it_is_annotated": KnowsCasesOnly,
    "what_lies_beyond_the_scan_is_not_learnt_from": AsksInPadding,
    "without_supervision_the_supervised_term_is_silent": SupervisesWithoutLabels,
    "a_class_without_a_voxel_is_no_problem": NeedsEveryClass,
    "bf16_gives_nearly_the_same_terms_in_float32": HalfPrecision,
    "a_step_never_waits_for_the_device": Waits,
    "the_same_seed_gives_the_same_step": OwnDice,
    "the_predictor_gives_one_score_per_class_in_the_unit_interval": ScoresAboveOne,
    "two_cases_can_be_learnt_by_heart": NeverLearns,
    "state_survives_a_save_and_a_load": Forgets,
    "averaged_networks_are_declared_and_their_statistics_can_be_renewed": AveragesInSecret,
    "the_defaults_suit_every_length_of_training": KeepsItsStart,
    "parameter_groups_cover_every_trainable_weight_once": LeavesWeightsOut,
    "a_weight_without_a_gradient_is_declared": HasAnIdleHead,
    "what_a_batch_leaves_for_after_step_is_declared": LeavesTheBatch,
}


def test_a_good_method_keeps_the_contract():
    check_method(Good, settings={"weight": 0.2}, net="unet", net_settings={"width": 4, "dropout_scale": 0.0})


def test_every_check_has_a_method_that_breaks_it():
    assert set(BROKEN) == set(METHOD_CHECKS)


@pytest.mark.parametrize("check", BROKEN)
def test_what_breaks_the_contract_is_refused_by_the_check_of_that_name(check):
    with pytest.raises(AssertionError, match=rf"{BROKEN[check].__name__} breaks 1 of .*\n{check}: \S"):
        check_method(BROKEN[check], only=[check])


def test_every_failure_is_told_at_once():
    with pytest.raises(AssertionError) as caught:
        check_method(NoSentence, only=["the_card_says_what_the_method_is", "every_term_teaches"])
    assert "every_term_teaches" not in str(caught.value)

    class Raises(NoSentence):
        def forward(self, batch, progress):
            raise ZeroDivisionError("in forward")

    with pytest.raises(AssertionError) as caught:
        check_method(Raises, only=["the_card_says_what_the_method_is", "every_term_teaches"])
    assert "the idea is no sentence" in str(caught.value)
    assert "every_term_teaches: ZeroDivisionError: in forward" in str(caught.value)


def test_an_unknown_check_or_setting_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'every_term_teaches'"):
        check_method(Good, only=["every_term_teches"])
    with pytest.raises(ConfigError, match="unknown setting 'weigth'"):
        check_method(Good, settings={"weigth": 1})


# networks

UNET = find_net("unet")
SMALL = SMALL_NETS["unet"]


class HalfLogits(UNET):
    def head(self, in_channels, out_channels):
        return (
            nn.Conv2d(in_channels, out_channels, 1)
            if self.dims == 2
            else nn.Conv3d(in_channels, out_channels, 1)
        )


class UnusedWeights(UNET):
    def encoder(self):
        encoder = super().encoder()
        encoder.unused = nn.Linear(1, 1)
        return encoder


class WrongStride(UNET):
    @property
    def stride(self):
        return 2 * super().stride


class Shared(UNET):
    def encoder(self):
        self.once = getattr(self, "once", None) or super().encoder()
        return self.once


BROKEN_NETWORKS = {
    "logits_are_float32_and_as_large_as_the_image": HalfLogits,
    "every_weight_is_trained": UnusedWeights,
    "parts_fit_together_and_name_their_channels": WrongStride,
    "new_parts_have_weights_of_their_own": Shared,
}


def test_every_check_of_networks_has_a_network_that_breaks_it():
    assert set(BROKEN_NETWORKS) == set(NETWORK_CHECKS)


@pytest.mark.parametrize("check", BROKEN_NETWORKS)
def test_a_network_that_breaks_a_check_is_refused_by_it(check):
    with pytest.raises(AssertionError, match=rf"{check}_in_2d: \S"):
        check_network(BROKEN_NETWORKS[check], settings=SMALL, only=[check])


def test_a_network_is_built_as_the_factory_builds_it():
    nets = NetFactory("unet", SMALL, dims=2, in_channels=1, num_classes=2)
    assert set(nets.strides) == {UNET(nets.settings, 2, 1).stride}
    with pytest.raises(ConfigError, match="unknown check"):
        check_network(UNET, settings=SMALL, only=["nothing"])
