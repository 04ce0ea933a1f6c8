"""Marginal and exclusion loss as a method: its terms, their weights, and which cases they come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import make_batch, make_method
from labelwise.losses.partial import annotated_dice, marginal_cross_entropy
from labelwise.methods.marginal_exclusion import exclusion_loss
from labelwise.types import IGNORE, Batch, Progress

START = Progress(0, 100)


class Given(nn.Module):
    """Stands in for a network: returns the given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


def golden_method(arrays, **settings):
    """The method on the golden batch: {1, 2} with structure 2 absent, {3}, everything, nothing."""
    logits = torch.from_numpy(arrays["het_logits"]).requires_grad_()
    labels = torch.from_numpy(arrays["het_labels"]).long()
    annotated = torch.from_numpy(arrays["het_annotated"])
    labels[~annotated.any(dim=1)] = IGNORE
    method = make_method("marginal_exclusion", settings=settings)
    method.network = Given(logits)
    return method, Batch(torch.zeros(4, 1, *labels.shape[1:]), labels, annotated), logits


def test_the_sum_of_the_terms_and_its_gradient_agree_with_the_golden_values(golden):
    arrays = golden("marginal_exclusion")
    method, batch, logits = golden_method(arrays, absent_dice="include")
    terms = method(batch, START)
    total = terms["supervised"] + terms["exclusion"]
    total.backward()
    assert total.item() == pytest.approx(float(arrays["het_total_f64"]), rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.from_numpy(arrays["het_total_grad"]), rtol=1e-5, atol=1e-6)


def test_the_defaults_skip_absent_structures_and_weigh_the_exclusion_by_two(golden):
    arrays = golden("marginal_exclusion")
    method, batch, _ = golden_method(arrays)
    terms = method(batch, START)
    expected = arrays["het_marginal_ce_f64"][:3].mean() + arrays["het_dice_loss_present_only_f64"][:3].mean()
    assert terms["supervised"].item() == pytest.approx(float(expected), rel=1e-5)
    exclusion = 2 * arrays["het_exclusion_dice_all_fg_f64"][:3].mean()
    assert terms["exclusion"].item() == pytest.approx(float(exclusion), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"exclusion_channels": "unannotated"}, "het_exclusion_dice_unannotated_f64"),
        ({"exclusion_kind": "cross_entropy"}, "het_exclusion_ce_eps1_f64"),
    ],
)
def test_the_variants_of_the_exclusion_agree_with_the_golden_values(golden, settings, key):
    arrays = golden("marginal_exclusion")
    method, batch, _ = golden_method(arrays, exclusion_weight=1.0, **settings)
    assert method(batch, START)["exclusion"].item() == pytest.approx(float(arrays[key][:3].mean()), rel=1e-5)


@pytest.mark.parametrize("kinds", [("full", "full"), ("none", "none"), ("full", "none")])
def test_without_a_partly_annotated_case_nothing_is_excluded(kinds):
    method = make_method("marginal_exclusion")
    term = method(make_batch(*kinds, size=16), START)["exclusion"]
    term.backward()
    assert term.item() == 0
    assert all(not p.grad.any() for p in method.parameters() if p.grad is not None)


def test_ignored_voxels_take_part_in_no_term():
    method = make_method("marginal_exclusion")
    batch = make_batch("full", "partial", size=16)
    batch.labels[:, :8] = IGNORE
    logits = method.network(batch.images).detach()
    other = logits.clone()
    other[:, :, :8] = 30.0
    terms = []
    for given in (logits, other):
        method.network = Given(given)
        terms.append(method(batch, START))
    torch.testing.assert_close(terms[0], terms[1])


def test_an_absent_annotated_structure_changes_the_dice_alone():
    batch = make_batch("partial", size=16, absent="liver")
    logits = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    values = {}
    for absent in ("skip", "include"):
        method = make_method("marginal_exclusion", settings={"absent_dice": absent})
        method.network = Given(logits)
        values[absent] = method(batch, START)
    dice = annotated_dice(logits, batch.labels, batch.annotated, absent="include")
    cross_entropy = marginal_cross_entropy(logits, batch.labels, batch.annotated)
    torch.testing.assert_close(values["skip"]["supervised"], cross_entropy)
    torch.testing.assert_close(values["include"]["supervised"], cross_entropy + dice)
    torch.testing.assert_close(values["skip"]["exclusion"], values["include"]["exclusion"])


def test_a_few_steps_of_exclusion_lower_the_overlap():
    method = make_method("marginal_exclusion", settings={"exclusion_channels": "unannotated"})
    batch = make_batch("partial", "partial", size=16)
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    values = []
    for _ in range(10):
        term = method(batch, START)["exclusion"]
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        values.append(term.item())
    assert values[-1] < 0.5 * values[0]
    with torch.no_grad():
        last = exclusion_loss(
            method.network(batch.images), batch.labels, batch.annotated, channels="unannotated"
        )
    assert last < 0.3
