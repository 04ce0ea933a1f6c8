"""Likelihood of groups of classes: reference values, partial labels, coarse maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from labelwise.losses.partial import marginal_cross_entropy
from labelwise.methods.dkuxnet.group_likelihood import (
    group_cross_entropy,
    grouped_labels,
    known_groups,
    soft_targets,
)
from labelwise.methods.dkuxnet.network import membership, mixture
from labelwise.types import IGNORE


def given(golden) -> dict[str, Tensor]:
    return {key: torch.as_tensor(values) for key, values in golden("dkuxnet").items()}


def query_mass(arrays: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of the queries, and the distribution over groups."""
    logits = arrays["head_mask_logits"].clone().requires_grad_()
    sizes = arrays["head_group_sizes"].tolist()
    members = membership([group for group, size in enumerate(sizes) for _ in range(size)])
    return logits, mixture(members, logits.softmax(dim=1))


EVERYTHING = torch.tensor([[False, True, True]] * 2)


def test_the_mean_over_labelled_voxels_and_its_gradient_agree_with_the_reference(golden):
    arrays = given(golden)
    labels = arrays["qd_label"].long()
    _, mass = query_mass(arrays)
    full = group_cross_entropy(mass, soft_targets(labels, 3, labels.shape[1:]), EVERYTHING)
    torch.testing.assert_close(full, arrays["qd_mean_full"])
    labels = torch.where(arrays["qd_valid"].bool(), labels, IGNORE)
    logits, mass = query_mass(arrays)
    loss = group_cross_entropy(mass, soft_targets(labels, 3, labels.shape[1:]), EVERYTHING)
    torch.testing.assert_close(loss, arrays["qd_mean_valid"])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], arrays["qd_mean_valid_dlogits"])


def test_partial_labels_agree_with_the_reference(golden):
    arrays = given(golden)
    labels = arrays["qd_partial_label"].long()
    known = arrays["qd_partial_annotated"].bool()
    known[:, 0] = False
    logits, mass = query_mass(arrays)
    loss = group_cross_entropy(mass, soft_targets(labels, 3, labels.shape[1:]), known)
    torch.testing.assert_close(loss, arrays["qd_partial_mean"])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], arrays["qd_partial_dlogits"])


def test_one_group_per_class_is_the_marginal_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, 5)
    annotated = torch.tensor([[True] * 4, [False, True, False, False], [False, False, True, True]])
    labels = torch.randint(0, 4, (3, 5, 5))
    labels = labels * annotated.gather(1, labels.flatten(1)).view_as(labels)
    labels[0, :2] = IGNORE
    known = known_groups(annotated, torch.eye(4, dtype=torch.bool))
    loss = group_cross_entropy(logits.softmax(dim=1), soft_targets(labels, 4, (5, 5)), known)
    torch.testing.assert_close(loss, marginal_cross_entropy(logits, labels, annotated))


def test_a_group_is_annotated_if_all_its_classes_are():
    in_group = membership([0, 1, 1, 2])
    annotated = torch.tensor([[False, True, False, True], [True, True, True, False]])
    assert known_groups(annotated, in_group).tolist() == [[False, False, True], [False, True, False]]


def test_labels_become_those_of_groups():
    labels = torch.tensor([[0, 1, 2, 3, IGNORE]])
    assert grouped_labels(labels, torch.tensor([0, 1, 1, 2])).tolist() == [[0, 1, 1, 2, IGNORE]]


def test_coarse_targets_are_the_labelled_parts():
    labels = torch.tensor([[[0, 1], [1, IGNORE]]])
    assert soft_targets(labels, 2, (1, 1)).flatten().tolist() == [0.25, 0.5]


def test_coarse_voxels_count_as_much_as_is_labelled_of_them():
    labels = torch.tensor([[[0, 0, 1, IGNORE], [0, 0, IGNORE, IGNORE]]])
    mass = torch.tensor([[[[0.5, 0.75]], [[0.5, 0.25]]]])
    loss = group_cross_entropy(mass, soft_targets(labels, 2, (1, 2)), torch.tensor([[False, True]]))
    assert loss.item() == pytest.approx((4 * math.log(2) + math.log(4)) / 5)


def test_a_group_without_mass_is_finite_and_without_labels_it_costs_nothing():
    mass = torch.tensor([[[1.0], [0.0]]], requires_grad=True)
    known = torch.tensor([[False, True]])
    assert group_cross_entropy(mass, soft_targets(torch.tensor([[1]]), 2, (1,)), known).isfinite()
    loss = group_cross_entropy(mass, soft_targets(torch.tensor([[IGNORE]]), 2, (1,)), known)
    (gradient,) = torch.autograd.grad(loss, mass)
    assert loss == 0
    assert gradient.abs().max() == 0


def test_the_gradient_is_exact_for_very_unlikely_groups():
    logits = torch.tensor([[[40.0], [-30.0]]], requires_grad=True)
    mass = logits.softmax(dim=1)
    loss = group_cross_entropy(
        mass, soft_targets(torch.tensor([[1]]), 2, (1,)), torch.tensor([[False, True]])
    )
    assert loss.item() == pytest.approx(70.0)
    assert torch.autograd.grad(loss, logits)[0].flatten().tolist() == pytest.approx([1.0, -1.0])
