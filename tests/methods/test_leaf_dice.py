"""Leaf-Dice as a method: golden values of the official package, and what the cross-entropy adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_batch, make_method
from labelwise.losses.partial import marginal_cross_entropy
from labelwise.types import IGNORE, Batch, Progress

START = Progress(0, 100)


class Given(nn.Module):
    """Stands in for a network: returns the given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


def given(logits, **settings):
    method = make_method("leaf_dice", settings=settings)
    method.network = Given(logits)
    return method


def golden_batch(arrays, unlabelled=0):
    """All annotated; {1, 2}; {3}; {1, 2} with structure 2 absent; then unlabelled cases."""
    labels = torch.from_numpy(arrays["full_labels"].astype(np.int64))
    annotated = torch.from_numpy(arrays["annotated"])
    labels = labels * annotated[torch.arange(4).view(-1, 1, 1, 1), labels]
    labels = torch.cat([labels, torch.full((unlabelled, *labels.shape[1:]), IGNORE)])
    annotated = torch.cat([annotated, torch.zeros(unlabelled, 5, dtype=torch.bool)])
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, annotated)


@pytest.mark.parametrize(("squared", "key"), [(True, "leaf_dice"), (False, "leaf_dice_linear")])
def test_leaf_dice_alone_agrees_with_the_official_package(golden, squared, key):
    arrays = golden("leafdice")
    logits = torch.from_numpy(arrays["logits"]).requires_grad_()
    loss = given(logits, ce_weight=0.0, squared_dice=squared)(golden_batch(arrays), START)["supervised"]
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays[f"{key}_loss"]), rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.from_numpy(arrays[f"{key}_grad"]), rtol=1e-5, atol=1e-7)


def test_the_default_is_the_official_sum_without_its_constant(golden):
    arrays = golden("leafdice")
    logits = torch.from_numpy(arrays["logits"]).requires_grad_()
    loss = given(logits)(golden_batch(arrays), START)["supervised"]
    loss.backward()
    constant = arrays["marg_ce_log_set_size_offset_f64"].mean()
    assert loss.item() == pytest.approx(float(arrays["leaf_dice_plus_marg_ce_loss"] - constant), rel=1e-5)
    gradient = torch.from_numpy(arrays["leaf_dice_grad"] + arrays["marg_ce_grad"])
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-5, atol=1e-7)


def test_the_mean_over_present_classes_agrees_with_the_golden_values(golden):
    arrays = golden("leafdice")
    method = given(torch.from_numpy(arrays["logits"]), ce_weight=0.0, normalize="present")
    expected = arrays["leaf_dice_present_only_per_case_f64"].mean()
    assert method(golden_batch(arrays), START)["supervised"].item() == pytest.approx(
        float(expected), rel=1e-5
    )


def test_unlabelled_cases_change_nothing(golden):
    arrays = golden("leafdice")
    logits = torch.from_numpy(arrays["logits"])
    more = torch.cat([logits, torch.ones_like(logits[:2])]).requires_grad_()
    loss = given(more)(golden_batch(arrays, unlabelled=2), START)["supervised"]
    torch.testing.assert_close(loss, given(logits)(golden_batch(arrays), START)["supervised"])
    loss.backward()
    assert more.grad[4:].abs().max() == 0


def test_a_batch_without_labels_gives_no_gradient():
    method = make_method("leaf_dice")
    term = method(make_batch("none", "none", size=16), START)["supervised"]
    term.backward()
    assert term.item() == 0
    assert all(not p.grad.any() for p in method.parameters() if p.grad is not None)


def test_the_cross_entropy_alone_punishes_an_absent_annotated_structure():
    batch = make_batch("partial", size=16, absent="liver")
    logits = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    alone = given(logits, ce_weight=0.0)(batch, START)["supervised"]
    both = given(logits)(batch, START)["supervised"]
    assert torch.autograd.grad(alone, logits)[0].abs().max() == 0
    torch.testing.assert_close(both - alone, marginal_cross_entropy(logits, batch.labels, batch.annotated))
    assert (torch.autograd.grad(both, logits)[0][:, 1] > 0).all()  # descent lowers the liver everywhere


def test_ignored_voxels_take_no_part():
    batch = make_batch("full", "partial", size=16)
    batch.labels[:, :8] = IGNORE
    logits = torch.randn(2, 4, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    other = logits.clone()
    other[:, :, :8] = 30.0
    torch.testing.assert_close(given(logits)(batch, START), given(other)(batch, START))
