"""The three losses of PL-Seg against the official code's arrays, and worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from labelwise.methods.pl_seg.losses import (
    PAIRS_AT_ONCE,
    class_affinity,
    classwise_orthogonal_loss,
    decoupled_foreground,
    progressive_self_distillation,
    soft_cross_entropy,
)
from labelwise.types import IGNORE

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def random_case(num_classes=3, cases=2, size=4, seed=0):
    """Probabilities that want a gradient, and labels in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, num_classes, size, size, generator=generator)
    labels = torch.randint(num_classes, (cases, size, size), generator=generator)
    return logits.softmax(dim=1).requires_grad_(), labels


def index(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


# decoupled foreground


def test_the_decoupled_foreground_loss_agrees_with_the_official_code(golden):
    arrays = golden("plseg")
    labels = torch.from_numpy(arrays["hadfl_labels"]).long()
    for step in range(3):
        logits = torch.from_numpy(arrays["hadfl_logits"][step]).requires_grad_()
        cases, structures = (
            part.flatten() for part in torch.meshgrid(torch.arange(2), torch.arange(1, 5), indexing="ij")
        )
        losses = decoupled_foreground(logits.softmax(dim=1), labels[step], cases, structures)
        loss = losses.total(0.0).sum()
        assert loss.item() == pytest.approx(float(arrays["dfl_loss"][step]), rel=1e-5)
        if step == 0:
            (gradient,) = torch.autograd.grad(loss, logits)
            torch.testing.assert_close(gradient, torch.from_numpy(arrays["dfl_grad_step0"]), **CLOSE)


def test_a_pair_worked_out_by_hand():
    p = torch.tensor([[[0.75, 0.75, 0.5], [0.25, 0.25, 0.5]]])
    losses = decoupled_foreground(p, torch.tensor([[1, 0, 0]]), index(0), index(1))
    assert losses.cross_entropy.item() == pytest.approx(
        -(math.log(0.25) + math.log(0.75) + math.log(0.5)) / 3
    )
    assert losses.dice.item() == pytest.approx(1 - (2 * 0.25 / 2 + 2 * 1.25 / 4) / 2, rel=1e-4)
    assert losses.present.tolist() == [True]


def test_voxels_about_which_nothing_is_known_count_for_nothing():
    p, labels = random_case(cases=1)
    labels[:, 2:] = IGNORE
    whole = decoupled_foreground(p, labels.to(torch.uint8), index(0), index(1))
    labelled = decoupled_foreground(p[:, :, :2], labels[:, :2], index(0), index(1))
    for mine, expected in zip(whole, labelled, strict=True):
        torch.testing.assert_close(mine, expected)
    (gradient,) = torch.autograd.grad(whole.total(0.5).sum(), p)
    assert gradient[:, :, 2:].abs().max() == 0


def test_an_absent_structure_costs_its_share_of_the_cross_entropy_only():
    p, _ = random_case(cases=1)
    losses = decoupled_foreground(p, torch.zeros(1, 4, 4, dtype=torch.int64), index(0), index(2))
    assert not losses.present.any()
    assert losses.total(0.0).item() == 0
    assert losses.total(0.5).item() == pytest.approx(-(1 - p[:, 2]).log().mean().item() / 2)


def test_a_case_without_a_labelled_voxel_costs_nothing():
    p, labels = random_case(cases=1)
    losses = decoupled_foreground(p, torch.full_like(labels, IGNORE), index(0), index(1))
    assert losses.cross_entropy.item() == 0
    assert losses.total(0.5).item() == 0


def test_without_a_pair_the_loss_is_empty_and_its_gradient_zero():
    p, labels = random_case()
    loss = decoupled_foreground(p, labels, index(), index()).total(0.0).sum()
    assert loss.item() == 0
    assert torch.autograd.grad(loss, p)[0].abs().max() == 0


def test_certain_and_wrong_is_expensive_but_finite():
    logits = torch.tensor([[[200.0, 200.0], [-200.0, -200.0]]]).requires_grad_()
    losses = decoupled_foreground(logits.softmax(dim=1), torch.tensor([[1, 0]]), index(0), index(1))
    assert losses.cross_entropy.item() == pytest.approx(-math.log(1e-10) / 2, rel=1e-5)
    assert torch.autograd.grad(losses.total(0.0).sum(), logits)[0].isfinite().all()


def test_many_pairs_cost_what_each_of_them_costs_alone():
    p, labels = random_case(num_classes=PAIRS_AT_ONCE + 4, size=12)
    pairs = [(case, structure) for structure in range(1, PAIRS_AT_ONCE + 4) for case in range(2)]
    cases, structures = (index(*part) for part in zip(*pairs, strict=True))
    together = decoupled_foreground(p, labels, cases, structures)
    alone = [decoupled_foreground(p, labels, index(case), index(structure)) for case, structure in pairs]
    for mine, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.cat(parts))


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_pairs():
    p, labels = random_case(num_classes=6, size=32)

    def kept(*structures):
        seen = {}

        def keep(tensor):
            seen[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = decoupled_foreground(p, labels, index(*(0 for _ in structures)), index(*structures))
        return sum(seen.values()), losses

    assert kept(1, 2, 3, 4, 5)[0] - kept(1)[0] < labels[0].nbytes


# orthogonal classes


def test_the_orthogonal_loss_agrees_with_the_official_code(golden):
    arrays = golden("plseg")
    logits = torch.from_numpy(arrays["cocl_logits"]).requires_grad_()
    p = logits.softmax(dim=1)
    torch.testing.assert_close(class_affinity(p), torch.from_numpy(arrays["cocl_affinity"]), **CLOSE)
    loss = classwise_orthogonal_loss(p)
    assert loss.item() == pytest.approx(float(arrays["cocl_loss"]), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.from_numpy(arrays["cocl_grad"]), rtol=1e-4, atol=1e-6)


def test_identical_maps_cost_most_and_disjoint_maps_least():
    num_classes = 5
    identical = torch.full((2, num_classes, 10), 1 / num_classes)
    disjoint = torch.eye(num_classes).repeat(1, 2).unsqueeze(0)
    assert classwise_orthogonal_loss(identical).item() == pytest.approx(math.log(num_classes))
    least = math.log(1 + (num_classes - 1) / math.e)
    assert classwise_orthogonal_loss(disjoint).item() == pytest.approx(least)


def test_a_class_that_vanishes_has_a_direction_all_the_same():
    logits = torch.tensor([[[300.0] * 8, [-300.0] * 8, [0.0] * 8]]).requires_grad_()
    loss = classwise_orthogonal_loss(logits.softmax(dim=1))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_affinities_are_kept_in_float32_under_bfloat16():
    p, _ = random_case(size=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = class_affinity(p)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, class_affinity(p))


# self-distillation


def test_the_distillation_agrees_with_the_official_code(golden):
    arrays = golden("plseg")
    outputs = [torch.from_numpy(arrays[f"psd_logits{s}"]).requires_grad_() for s in (1, 2, 3, 4)]
    for s in (2, 3, 4):
        term = soft_cross_entropy(outputs[s - 1], torch.from_numpy(arrays[f"psd_teacher{s}"]), 10.0)
        assert term.item() == pytest.approx(float(arrays["psd_terms"][s - 2]), rel=1e-5)
    loss = progressive_self_distillation(outputs, 10.0)
    assert loss.item() == pytest.approx(float(arrays["psd_loss"]), rel=1e-5)
    gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    assert gradients[0] is None, "the finest output is only a teacher"
    for s in (2, 3, 4):
        torch.testing.assert_close(gradients[s - 1], torch.from_numpy(arrays[f"psd_grad{s}"]), **CLOSE)


def test_two_dimensional_outputs_are_distilled_too():
    fine = torch.randn(2, 3, 8, 8)
    coarse = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = progressive_self_distillation([fine, coarse], 10.0)
    assert loss.item() == pytest.approx(math.log(3), abs=0.1)
    assert torch.autograd.grad(loss, coarse)[0].abs().sum() > 0


def test_the_soft_cross_entropy_of_equal_predictions_is_their_entropy():
    logits = torch.log(torch.tensor([[[0.5], [0.25], [0.25]]]))
    assert soft_cross_entropy(logits, logits).item() == pytest.approx(1.5 * math.log(2))
