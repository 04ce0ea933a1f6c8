"""Contrastive losses against the arrays of the official code of ARCO."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.methods.arco.contrastive import class_contrast, neighbour_distance, relation_divergence, unit

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def arrays(golden):
    return {key: torch.from_numpy(np.asarray(array)) for key, array in golden("arco").items()}


def all_true(count):
    return torch.ones(count, dtype=torch.bool)


def test_the_contrast_of_classes_agrees_with_the_official_code(arrays):
    queries = arrays["con_query"].clone().requires_grad_()
    negatives = unit(arrays["con_neg"])
    loss = class_contrast(queries, arrays["con_pos"], negatives, all_true(3))
    torch.testing.assert_close(loss, arrays["con_loss"], **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(loss, queries)[0], arrays["con_grad"], **CLOSE)
    for number in range(3):
        only = torch.arange(3) == number
        found = class_contrast(queries, arrays["con_pos"], negatives, only)
        torch.testing.assert_close(found, arrays["con_loss_per_class"][number], **CLOSE)


def test_no_valid_class_costs_nothing():
    queries = torch.zeros(2, 3, 4, requires_grad=True)
    loss = class_contrast(queries, torch.zeros(2, 4), torch.zeros(2, 3, 5, 4), ~all_true(2))
    loss.backward()
    assert loss.item() == 0
    assert queries.grad.abs().max() == 0


def test_the_distance_to_neighbours_agrees_with_the_calculation(arrays):
    student = arrays["nn_student"].clone().requires_grad_()
    loss = neighbour_distance(student, arrays["nn_teacher"], arrays["nn_bank"], all_true(12))
    torch.testing.assert_close(loss, arrays["nn_loss"], **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], arrays["nn_grad"], **CLOSE)
    # The official code chooses with the student and measures from the teacher.
    swapped = neighbour_distance(arrays["nn_teacher"], arrays["nn_student"], arrays["nn_bank"], all_true(12))
    torch.testing.assert_close(swapped, arrays["nn_loss_official_no_grad"], **CLOSE)


def test_rows_that_hold_nothing_are_no_neighbours(arrays):
    filled = torch.arange(12) < 2
    student, teacher = arrays["nn_student"].clone().requires_grad_(), arrays["nn_teacher"]
    found = neighbour_distance(student, teacher, arrays["nn_bank"], filled)
    expected = neighbour_distance(student, teacher, arrays["nn_bank"][:2], all_true(2))
    torch.testing.assert_close(found, expected)
    nothing = neighbour_distance(student, teacher, arrays["nn_bank"], ~all_true(12))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, student)[0].abs().max() == 0


def test_the_relation_to_a_memory_agrees_with_the_official_code(arrays):
    student = arrays["isd_student"].clone().requires_grad_()
    memory = unit(arrays["isd_queue"]).unsqueeze(1)

    def relation(**options):
        return relation_divergence(
            student.unsqueeze(1), arrays["isd_teacher"].unsqueeze(1), memory, all_true(36), **options
        )

    torch.testing.assert_close(relation(), arrays["isd_loss"], **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(relation(), student)[0], arrays["isd_grad"], **CLOSE)
    torch.testing.assert_close(relation(teacher_temperature=0.1), arrays["isd_loss_T01"], **CLOSE)


def test_a_window_is_compared_with_the_same_window_only():
    torch.manual_seed(0)
    student, teacher, memory = torch.randn(2, 3, 5), torch.randn(2, 3, 5), unit(torch.randn(4, 3, 5))
    together = relation_divergence(student, teacher, memory, all_true(4))
    alone = [
        relation_divergence(student[:, [p]], teacher[:, [p]], memory[:, [p]], all_true(4)) for p in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_an_empty_memory_relates_nothing():
    student = torch.randn(2, 1, 5, requires_grad=True)
    loss = relation_divergence(student, torch.randn(2, 1, 5), torch.zeros(4, 1, 5), ~all_true(4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0
