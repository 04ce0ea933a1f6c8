"""Consistency, entropy and cross-entropy against complete labels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.agreement import mean_log_probability, voxel_entropy
from labelwise.losses.partial import cross_entropy, mean_over_cases, squared_difference
from labelwise.types import IGNORE

with np.load(Path(__file__).parents[1] / "golden" / "mean_teacher.npz", allow_pickle=False) as file:
    GOLDEN = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

UNLABELLED = slice(int(GOLDEN["n_labelled"]), None)


def log_passes(key: str) -> Tensor:
    """In float64: the values are those of float32, so the rounding of this processor must not add to theirs."""
    return mean_log_probability(logits.double().log_softmax(dim=1) for logits in GOLDEN[key])


def random_logits() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()


# squared difference


def test_squared_difference_worked_out_by_hand():
    """One voxel of two classes differs by 0.5 in both; two voxels count."""
    p = torch.tensor([[[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]]])
    q = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    where = torch.tensor([[True, True, False]])
    assert squared_difference(p, q, where).item() == pytest.approx(0.5 / (2 * 2))


def test_equal_predictions_are_consistent():
    p = random_logits().softmax(dim=1)
    assert squared_difference(p, p).item() == 0


def test_everywhere_is_the_mean_square_error():
    p, q = random_logits().softmax(dim=1), torch.full((2, 3, 4, 5), 1 / 3, dtype=torch.float64)
    expected = F.mse_loss(p, q)
    torch.testing.assert_close(squared_difference(p, q), expected)
    torch.testing.assert_close(squared_difference(p, q, torch.ones(2, 4, 5, dtype=torch.bool)), expected)


def test_an_empty_mask_gives_zero_with_a_zero_gradient():
    logits = random_logits()
    target = torch.full_like(logits, 1 / 3).detach()
    loss = squared_difference(logits, target, torch.zeros(2, 4, 5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_plain_mean_teacher_agrees_with_the_official_code():
    logits = GOLDEN["logits_student"].clone().requires_grad_()
    loss = squared_difference(logits.softmax(1)[UNLABELLED], GOLDEN["logits_teacher"].softmax(1))
    loss.backward()
    torch.testing.assert_close(loss, GOLDEN["mt_cons"])
    torch.testing.assert_close(logits.grad, GOLDEN["grad_mt_wrt_student"], rtol=1e-4, atol=1e-8)


def test_masked_consistency_agrees_with_the_official_code():
    """UA-MT: the gradient of labelled cases is exactly 0, and the sum is divided by C times the mask."""
    logits = GOLDEN["logits_student"].clone().requires_grad_()
    where = GOLDEN["mask"][:, 0].bool()
    loss = squared_difference(logits.softmax(1)[UNLABELLED], GOLDEN["logits_teacher"].softmax(1), where)
    loss.backward()
    torch.testing.assert_close(loss, GOLDEN["uamt_cons_dist"])
    torch.testing.assert_close(logits.grad, GOLDEN["grad_cons_wrt_student"], rtol=1e-4, atol=1e-8)
    assert logits.grad[: UNLABELLED.start].abs().max() == 0


def test_masked_consistency_of_several_classes_agrees_with_the_golden_value():
    student, teacher = (GOLDEN[f"mcls_logits_{name}"].double().softmax(1) for name in ("student", "teacher"))
    loss = squared_difference(student, teacher, GOLDEN["mcls_mask"][:, 0].bool())
    torch.testing.assert_close(loss, GOLDEN["mcls_cons_dist"], rtol=1e-5, atol=0)


def test_gradient_of_the_difference_matches_finite_differences():
    logits = random_logits()[:, :, :2, :3].detach().requires_grad_()
    target = logits.detach().roll(1, dims=1).softmax(dim=1)
    where = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.autograd.gradcheck(lambda z: squared_difference(z, target, where), (logits,))


# entropy


def test_entropy_worked_out_by_hand():
    """Even over C classes: ln C. Certain: 0. Over two of three classes, the third impossible: ln 2."""
    log_probabilities = torch.tensor(
        [[[math.log(1 / 3), 0.0, math.log(0.5)], [math.log(1 / 3), -math.inf, math.log(0.5)]]]
    )
    third = torch.tensor([[[math.log(1 / 3), -math.inf, -math.inf]]])
    entropy = voxel_entropy(torch.cat([log_probabilities, third], dim=1))
    torch.testing.assert_close(entropy, torch.tensor([[math.log(3), 0.0, math.log(2)]]))


def test_entropy_of_impossible_classes_has_a_finite_gradient():
    logits = torch.tensor([[[2.0], [1.0], [-math.inf]]], requires_grad=True)
    voxel_entropy(logits.log_softmax(dim=1)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_gradient_of_the_entropy_matches_finite_differences():
    logits = random_logits()[:, :, :2, :3].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: voxel_entropy(z.log_softmax(dim=1)), (logits,))


def test_the_mean_of_equal_passes_is_one_pass():
    one = random_logits().log_softmax(dim=1)
    torch.testing.assert_close(mean_log_probability([one] * 8), one)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_the_mean_over_passes_stays_finite_for_certain_predictions(scale: float):
    passes = [(scale * sign * random_logits().detach().float()).log_softmax(dim=1) for sign in (1, -1)]
    assert torch.isfinite(voxel_entropy(mean_log_probability(passes))).all()


def test_uncertainty_and_mask_agree_with_the_official_code():
    """The official code adds 1e-6 inside the logarithm: equal up to 1e-6 per class."""
    log_mean = log_passes("logits_mc")
    torch.testing.assert_close(log_mean.exp().float(), GOLDEN["mc_mean_prob"])
    entropy = voxel_entropy(log_mean)
    torch.testing.assert_close(entropy.float(), GOLDEN["uncertainty"][:, 0], rtol=0, atol=3e-6)
    assert torch.equal(entropy < GOLDEN["threshold"], GOLDEN["mask"][:, 0].bool())


def test_uncertainty_of_several_classes_agrees_with_the_golden_values():
    entropy = voxel_entropy(log_passes("mcls_logits_mc"))
    torch.testing.assert_close(entropy.float(), GOLDEN["mcls_uncertainty"][:, 0], rtol=1e-5, atol=1e-6)
    assert torch.equal(entropy < GOLDEN["mcls_threshold"], GOLDEN["mcls_mask"][:, 0].bool())


# cross-entropy against complete labels, and the mean that all losses share


def test_cross_entropy_is_that_of_torch_without_ignored_voxels():
    logits = random_logits()
    labels = logits.detach().roll(1, dims=1).argmax(dim=1)
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels))


def test_cross_entropy_reads_neither_ignored_voxels_nor_those_outside_the_mask():
    logits = random_logits()
    labels = logits.detach().roll(1, dims=1).argmax(dim=1)
    where = torch.zeros(2, 4, 5, dtype=torch.bool)
    where[:, :2] = True
    expected = F.cross_entropy(logits[:, :, :2], labels[:, :2])
    torch.testing.assert_close(cross_entropy(logits, labels, where), expected)
    torch.testing.assert_close(cross_entropy(logits, labels.masked_fill(~where, IGNORE)), expected)
    assert cross_entropy(logits, torch.full_like(labels, IGNORE)).item() == 0


def test_convention_means_are_taken_within_a_case_and_then_over_cases_that_have_a_valid_entry():
    values = torch.tensor([[1.0, 3.0], [5.0, 100.0], [7.0, 7.0]])
    where = torch.tensor([[True, True], [True, False], [False, False]])
    assert mean_over_cases(values, where).item() == pytest.approx((2 + 5) / 2)
