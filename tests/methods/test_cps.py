"""CPS against the arrays of the official formulas, and what it does with partly annotated cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_batch, make_method
from labelwise.components.batches import mix
from labelwise.losses.partial import hard_labels, per_voxel, pseudo_cross_entropy
from labelwise.methods import cps
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-7}
END = Progress(30_000, 30_000)


class Replay(nn.Module):
    """Stands in for a network: returns the given logits, one after the other."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = list(outputs)

    def forward(self, images):
        return self.outputs.pop(0)


def replayed(first, second, **settings):
    method = make_method("cps", settings=settings)
    method.first, method.second = Replay(*first), Replay(*second)
    return method


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def batch_of(labels, complete):
    """A batch of four classes whose first `complete` cases are annotated, the others not at all."""
    labels = labels.clone()
    labels[complete:] = IGNORE
    annotated = torch.zeros(len(labels), 4, dtype=torch.bool)
    annotated[:complete] = True
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, annotated)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def arrays(golden):
    return {name: tensor(array) for name, array in golden("cps").items()}


@pytest.fixture
def mixed(arrays):
    """Two labelled and two unlabelled cases, the logits of both networks with a gradient."""
    labels = torch.cat([arrays["label"], arrays["label"]]).long()
    logits = [torch.cat([arrays[f"logit{n}_l"], arrays[f"logit{n}_u"]]).requires_grad_() for n in (1, 2)]
    return batch_of(labels, complete=2), logits


def test_the_medical_variant_agrees_with_the_official_formulas(arrays, mixed):
    batch, logits = mixed
    terms = replayed(logits[:1], logits[1:], consistency_weight=1.0)(batch, END)
    torch.testing.assert_close(terms["supervised"], arrays["loss_sup_1"] + arrays["loss_sup_2"], **CLOSE)
    crossed = arrays["loss_cps_unl_1"] + arrays["loss_cps_unl_2"]
    torch.testing.assert_close(terms["cross_pseudo"], crossed, **CLOSE)
    (of_supervised,) = torch.autograd.grad(terms["supervised"], logits[0], retain_graph=True)
    torch.testing.assert_close(of_supervised[:2], arrays["grad_sup_logit1_l"], **CLOSE)
    assert of_supervised[2:].abs().max() == 0
    (of_crossed,) = torch.autograd.grad(terms["cross_pseudo"], logits[0])
    torch.testing.assert_close(of_crossed[2:], arrays["grad_cps_unl_logit1_u"], **CLOSE)
    assert of_crossed[:2].abs().max() == 0


def test_the_original_variant_agrees_with_the_official_formulas(arrays, mixed):
    batch, logits = mixed
    settings = {"consistency_on": "all", "pseudo_labels": "plain", "ramp_fraction": 0.0}
    method = replayed(logits[:1], logits[1:], consistency_weight=1.5, **settings)
    loss = method(batch, Progress(0, 100))["cross_pseudo"] / 1.5
    torch.testing.assert_close(loss, arrays["loss_cps_all"], **CLOSE)
    (gradient,) = torch.autograd.grad(loss, logits[0])
    torch.testing.assert_close(gradient[:2], arrays["grad_cps_logit1_l"], **CLOSE)
    torch.testing.assert_close(gradient[2:], arrays["grad_cps_logit1_u"], **CLOSE)


def test_cross_entropy_with_ignored_voxels_agrees_with_the_official_formula(arrays):
    for number in (1, 2):
        loss = pseudo_cross_entropy(arrays[f"logit{number}_l"], arrays["label_ignore"].long())
        torch.testing.assert_close(loss, arrays[f"loss_ce_ignore_{number}"], **CLOSE)


def test_cut_mix_agrees_with_the_official_formulas(arrays, monkeypatch):
    # Four unlabelled cases u0, u1, v0, v1. Each u is mixed with its v, and each v with its u by the opposite mask:
    # the same two images twice, whose mean is the mean over the first two.
    keep = arrays["mix_mask"][:, 0] == 0
    monkeypatch.setattr(cps, "partners", lambda annotated: [2, 3, 0, 1])
    monkeypatch.setattr(cps, "toggled_boxes", lambda *_, **__: torch.cat([keep, ~keep]))
    clean = [torch.cat([arrays[f"logit{n}_u"], arrays[f"logit{n}_v"]]) for n in (1, 2)]
    for number, logits in zip((1, 2), clean, strict=True):
        spliced = mix(logits[:2], logits[2:], keep)
        unknown = torch.full(keep.shape, IGNORE)
        pseudo = hard_labels(spliced, unknown, torch.zeros(2, 4, dtype=torch.bool))
        assert pseudo.equal(arrays[f"pseudo{number}_mix"].long())
    students = [torch.cat([arrays[f"logit{n}_mix"]] * 2).requires_grad_() for n in (1, 2)]
    method = replayed([clean[0], students[0]], [clean[1], students[1]], cut_mix=True, consistency_weight=1.0)
    terms = method(batch_of(torch.zeros(4, 3, 4, 5).long(), complete=0), END)
    torch.testing.assert_close(terms["cross_pseudo"], arrays["loss_cps_mix"], **CLOSE)
    (gradient,) = torch.autograd.grad(terms["cross_pseudo"], students[0])
    torch.testing.assert_close(gradient[:2] * 2, arrays["grad_cps_mix_logit1"], **CLOSE)


def test_each_network_learns_from_the_other_ones_labels_only():
    method = make_method("cps", dims=2)
    batch = make_batch("none", dims=2)
    first, second = (torch.randn(1, 4, 32, 32, requires_grad=True) for _ in range(2))
    (expected,) = torch.autograd.grad(pseudo_cross_entropy(first, second.argmax(dim=1)), first)
    (gradient,) = torch.autograd.grad(method.cross_pseudo((first, second), batch), first)
    torch.testing.assert_close(gradient, expected)


def test_a_pseudo_label_never_names_a_structure_that_is_annotated_elsewhere():
    method = make_method("cps")
    batch = make_batch("partial", dims=2)
    liver_everywhere = torch.zeros(1, 4, 32, 32)
    liver_everywhere[:, 1] = 9.0
    target = method.targets(liver_everywhere, batch.labels, batch.annotated)
    assert ((target == 1) == (batch.labels == 1)).all()


def test_annotated_voxels_of_a_partly_annotated_case_take_no_part_in_the_crossed_term():
    method = make_method("cps", dims=2, settings={"consistency_weight": 1.0})
    batch = make_batch("partial", dims=2)
    logits = [torch.randn(1, 4, 32, 32, requires_grad=True) for _ in range(2)]
    method.cross_pseudo(tuple(logits), batch).backward()
    liver = batch.labels == 1
    assert (logits[0].grad.abs().sum(dim=1)[liver] == 0).all()
    assert (logits[0].grad.abs().sum(dim=1)[~liver] > 0).all()


def test_on_all_voxels_the_labels_stand_in_for_pseudo_labels():
    method = make_method("cps", dims=2, settings={"consistency_on": "all"})
    batch = make_batch("full", "full", dims=2)
    logits = tuple(torch.randn(2, 4, 32, 32) for _ in range(2))
    expected = sum(pseudo_cross_entropy(z, batch.labels) for z in logits)
    torch.testing.assert_close(method.cross_pseudo(logits, batch), expected)


def test_without_an_open_voxel_the_crossed_term_is_silent():
    for cut_mix in (False, True):
        method = make_method("cps", dims=2, settings={"cut_mix": cut_mix})
        term = method(make_batch("full", "full", dims=2), END)["cross_pseudo"]
        assert term.item() == 0
        assert term.requires_grad


@pytest.mark.parametrize("kinds", [("full", "partial", "none"), ("partial", "none"), ("none", "none")])
def test_cut_mix_takes_any_mix_of_cases(kinds):
    method = make_method("cps", dims=2, settings={"cut_mix": True})
    terms = method(make_batch(*kinds, dims=2), END)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_after_a_splice_each_voxel_is_judged_by_the_case_it_came_from():
    batch = make_batch("partial", "none", dims=2)
    keep = torch.zeros(2, 32, 32, dtype=torch.bool)
    keep[:, :16] = True
    splice = cps.Splicer([1, 0], keep)
    labels, annotated = splice(batch.labels), splice(per_voxel(batch.annotated, batch.labels))
    assert labels[0, 16:].eq(IGNORE).all()
    assert labels[1, 16:].equal(batch.labels[0, 16:])
    assert annotated[0, 1, :16].all()
    assert not annotated[0, 1, 16:].any()


@pytest.mark.parametrize("initialisation", ["default", "kaiming_xavier"])
def test_the_two_networks_start_differently(initialisation):
    method = make_method("cps", settings={"initialisation": initialisation})
    kernels = [
        (mine, theirs)
        for mine, theirs in zip(method.first.parameters(), method.second.parameters(), strict=True)
        if mine.ndim > 1
    ]
    assert all(not mine.equal(theirs) for mine, theirs in kernels)


def test_convolutions_start_by_he_and_by_glorot():
    torch.manual_seed(0)
    networks = [nn.Conv3d(64, 16, 3) for _ in range(2)]
    cps.start_differently(*networks)
    fan_in, fan_out = 64 * 27, 16 * 27
    assert networks[0].weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    assert networks[1].weight.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.03)


def test_the_weight_rises_in_stairs_or_is_constant():
    method = make_method("cps")
    weights = [method.config.weight(Progress(step, 30_000)) for step in (0, 149, 150, 29_999)]
    assert weights[0] == weights[1] == pytest.approx(0.1 * np.exp(-5))
    assert weights[1] < weights[2] < weights[3] < 0.1
    assert make_method("cps", settings={"ramp_fraction": 0.0}).config.weight(Progress(0, 100)) == 0.1


def test_either_network_or_their_mean_predicts():
    images = make_batch("none", dims=2).images
    scores = {}
    for choice in ("first", "second", "both"):
        method = make_method("cps", dims=2, settings={"classifier": choice})
        scores[choice] = method.predictor().eval()(images)
    assert not scores["first"].equal(scores["second"])
    torch.testing.assert_close(scores["both"], (scores["first"] + scores["second"]) / 2)
