"""The target adaptive loss against the arrays of a public implementation, and for any mix of cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import make_batch, make_method
from labelwise.losses.partial import annotated_dice, marginal_cross_entropy, target_adaptive_loss
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-7}
HALFWAY = Progress(50, 100)


class Replay(nn.Module):
    """Stands in for a network: returns the given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def batch_of(labels, annotated):
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, annotated)


def supervised(logits, batch, **settings):
    method = make_method("target_adaptive", settings=settings)
    method.network = Replay(logits)
    terms = method(batch, HALFWAY)
    assert tuple(terms) == ("supervised",)
    return terms["supervised"]


def golden_case(golden):
    arrays = golden("pipofan")
    logits = tensor(arrays["tal_logits"]).requires_grad_()
    return arrays, logits, tensor(arrays["tal_labels"]).long(), tensor(arrays["tal_annotated"])


def test_value_and_gradient_agree_with_the_public_implementation(golden):
    arrays, logits, labels, annotated = golden_case(golden)
    loss = supervised(logits, batch_of(labels, annotated))
    torch.testing.assert_close(loss, tensor(arrays["tal_loss"]).float(), **CLOSE)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, tensor(arrays["tal_grad"]), **CLOSE)


def test_each_case_agrees_with_the_calculation_in_float64(golden):
    arrays, logits, labels, annotated = golden_case(golden)
    for row, expected in enumerate(arrays["tal_per_case_f64"]):
        one = slice(row, row + 1)
        loss = supervised(logits[one].double(), batch_of(labels[one], annotated[one]))
        assert loss.item() == pytest.approx(expected, rel=1e-7)


def test_is_the_log_of_the_merged_probabilities_of_the_public_implementation(golden):
    arrays, logits, labels, annotated = golden_case(golden)
    merged = tensor(
        arrays["tal_merged_prob"]
    )  # background, first annotated structure, second annotated structure
    # Structure 1 is the first and 3 the second of case 0; 2 and 4 of case 1.
    place = torch.stack([labels[0].add(1).div(2, rounding_mode="floor"), labels[1] // 2])
    expected = -merged.gather(1, place[:, None]).log().mean()
    torch.testing.assert_close(supervised(logits, batch_of(labels, annotated)), expected, **CLOSE)


def test_complete_labels_give_the_ordinary_cross_entropy(golden):
    arrays, logits, _, annotated = golden_case(golden)
    labels = tensor(arrays["tal_full_labels"]).long()
    loss = supervised(logits, batch_of(labels, torch.ones_like(annotated)))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels), **CLOSE)


def test_worked_out_by_hand():
    """p = 1/4 for each of 4 classes, structure 1 annotated: -ln 3/4 for label 0, -ln 1/4 for structure 1."""
    labels = torch.tensor([[[0, 0], [0, 1]]])
    batch = batch_of(labels, torch.tensor([[False, True, False, False]]))
    expected = (-3 * math.log(3 / 4) - math.log(1 / 4)) / 4
    assert supervised(torch.zeros(1, 4, 2, 2), batch).item() == pytest.approx(expected, rel=1e-6)


def test_random_heterogeneous_batches_give_the_marginal_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        annotated = torch.rand(4, 5, generator=generator) < 0.5
        drawn = torch.randint(0, 5, (4, 6, 6, 6), generator=generator)
        labels = drawn * annotated.gather(1, drawn.flatten(1)).view_as(drawn)
        labels[annotated[:, 1:].sum(dim=1) == 0] = IGNORE
        labels[:, 0] = IGNORE
        logits = torch.randn(4, 5, 6, 6, 6, generator=generator)
        expected = marginal_cross_entropy(logits, labels, annotated)
        torch.testing.assert_close(supervised(logits, batch_of(labels, annotated)), expected, rtol=0, atol=0)


def test_an_unlabelled_case_does_not_count_in_the_mean(golden):
    _, logits, labels, annotated = golden_case(golden)
    alone = supervised(logits[:1], batch_of(labels[:1], annotated[:1]))
    labels[1], annotated[1] = IGNORE, False
    both = supervised(logits, batch_of(labels, annotated))
    torch.testing.assert_close(both, alone, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(both, logits)
    assert gradient[1].abs().max() == 0


def test_ignored_voxels_are_silent(golden):
    _, logits, labels, annotated = golden_case(golden)
    labels[:, :2] = IGNORE
    loss = supervised(logits, batch_of(labels, annotated))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, :, :2].abs().max() == 0
    assert gradient[:, :, 2:].abs().max() > 0


def test_an_annotated_structure_without_a_voxel_is_pushed_down_and_an_unannotated_one_is_not(golden):
    _, logits, labels, annotated = golden_case(golden)
    (gradient,) = torch.autograd.grad(supervised(logits, batch_of(labels * 0, annotated)), logits)
    structures = gradient.flatten(2).sum(dim=2)[:, 1:]
    assert (structures[annotated[:, 1:]] > 0).all()
    assert (structures[~annotated[:, 1:]] < 0).all()


def test_nothing_annotated_costs_nothing_and_stays_in_the_graph():
    method = make_method("target_adaptive")
    loss = method(make_batch("none", "none"), HALFWAY)["supervised"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in method.parameters() if p.grad is not None)


def test_dice_is_added_with_its_weight(golden):
    _, logits, labels, annotated = golden_case(golden)
    batch = batch_of(labels, annotated)
    dice = annotated_dice(logits, labels, annotated)
    torch.testing.assert_close(
        supervised(logits, batch, dice_weight=0.5), supervised(logits, batch) + 0.5 * dice
    )
    torch.testing.assert_close(
        target_adaptive_loss(logits, labels, annotated, dice_weight=0.5), supervised(logits, batch) + dice / 2
    )
