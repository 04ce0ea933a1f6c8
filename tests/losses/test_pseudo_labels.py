"""Hard pseudo-labels, the losses against them, and the supervised Dice that counts the background."""

from __future__ import annotations

import pytest
import torch

from labelwise.losses.agreement import pseudo_dice
from labelwise.losses.partial import annotated_dice, dice_with_background, hard_labels, pseudo_cross_entropy
from labelwise.types import IGNORE

FULL = torch.tensor([[True, True, True]])
LIVER = torch.tensor([[False, True, False]])
NOTHING = torch.zeros(1, 3, dtype=torch.bool)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_hard_labels_never_contradict_a_label():
    logits = torch.tensor([[[0.0] * 3, [9.0] * 3, [1.0] * 3]])
    labels = torch.tensor([[0, 1, IGNORE]])
    assert hard_labels(logits, labels, FULL).tolist() == [[0, 1, 1]]
    assert hard_labels(logits, labels, LIVER).tolist() == [[2, 1, 1]]
    assert hard_labels(logits, torch.full((1, 3), IGNORE), NOTHING).tolist() == [[1, 1, 1]]


def test_pseudo_cross_entropy_is_a_mean_over_the_voxels_of_the_batch():
    logits = torch.zeros(2, 4, 3)
    logits[1, 2] = torch.tensor(2.0).log()  # p(2) = 2/5
    target = torch.tensor([[0, 1, IGNORE], [2, 2, 2]])
    expected = (2 * torch.tensor(4.0).log() + 3 * torch.tensor(2.5).log()) / 5
    torch.testing.assert_close(pseudo_cross_entropy(logits, target), expected)
    where = torch.tensor([[True, False, True], [False, False, False]])
    torch.testing.assert_close(pseudo_cross_entropy(logits, target, where), torch.tensor(4.0).log())


def test_pseudo_cross_entropy_weighs_classes_and_voxels():
    logits = torch.zeros(1, 2, 2)
    logits[0, 1, 1] = torch.tensor(3.0).log()  # p(1) = 3/4 at the second voxel
    target = torch.tensor([[0, 1]])
    loss = pseudo_cross_entropy(logits, target, class_weights=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(loss, (torch.tensor(2.0).log() + 3 * torch.tensor(4 / 3).log()) / 4)
    confidence = torch.tensor([[0.5, 0.0]])
    torch.testing.assert_close(
        pseudo_cross_entropy(logits, target, voxel_weights=confidence), torch.tensor(2.0).log()
    )


@pytest.mark.parametrize("loss", [pseudo_cross_entropy, pseudo_dice])
def test_where_nothing_takes_part_the_loss_is_zero_without_a_gradient(loss):
    logits = torch.randn(2, 3, 4, requires_grad=True)
    value = loss(logits, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_pseudo_dice_by_hand():
    logits = torch.zeros(1, 3, 4)  # p = 1/3
    target = torch.tensor([[0, 1, 1, IGNORE]])
    # sums over three voxels: of p 1 for each class; of y 1, 2, 0; of p y 1/3, 2/3, 0
    classes = torch.tensor([1 - 1 / 3, 1 - 4 / 9, 1.0])
    torch.testing.assert_close(pseudo_dice(logits, target, smooth=0), classes.mean())
    torch.testing.assert_close(pseudo_dice(logits, target, smooth=0, absent="skip"), classes[:2].mean())
    torch.testing.assert_close(pseudo_dice(logits, target, smooth=0, background=False), classes[1:].mean())


def test_pooled_pseudo_dice_adds_the_cases_up_first():
    logits, target = torch.randn(2, 3, 5), torch.randint(0, 3, (2, 5))
    joined = pseudo_dice(logits.transpose(0, 1).reshape(1, 3, 10), target.reshape(1, 10))
    torch.testing.assert_close(pseudo_dice(logits, target, pooling="batch"), joined)


def test_dice_with_background_joins_the_structures_that_nobody_annotated_with_the_background():
    logits, labels = torch.randn(1, 3, 6), torch.tensor([[0, 0, 1, 1, IGNORE, 0]])
    merged = torch.stack([torch.logsumexp(logits[:, [0, 2]], dim=1), logits[:, 1]], dim=1)
    two_classes = pseudo_dice(merged, labels, pooling="case")
    torch.testing.assert_close(dice_with_background(logits, labels, LIVER), two_classes)


def test_dice_with_background_of_a_complete_case_is_the_dice_of_all_classes():
    logits, labels = torch.randn(1, 3, 6), torch.tensor([[0, 2, 1, 1, 0, 2]])
    everything = dice_with_background(logits, labels, FULL, squared=True)
    torch.testing.assert_close(everything, pseudo_dice(logits, labels, squared=True))
    structures = annotated_dice(logits, labels, FULL, squared=True)
    torch.testing.assert_close(structures, pseudo_dice(logits, labels, squared=True, background=False))


@pytest.mark.parametrize("pooling", ["case", "batch"])
def test_dice_with_background_ignores_cases_without_annotation(pooling):
    logits = torch.randn(2, 3, 6, requires_grad=True)
    labels = torch.full((2, 6), IGNORE)
    labels[0] = torch.tensor([0, 0, 1, 2, 1, 0])
    annotated = torch.cat([FULL, NOTHING])
    value = dice_with_background(logits, labels, annotated, pooling=pooling)
    value.backward()
    torch.testing.assert_close(value, dice_with_background(logits[:1], labels[:1], FULL))
    assert logits.grad[1].abs().max() == 0
    nothing = dice_with_background(logits[1:], labels[1:], NOTHING, pooling=pooling, absent="include")
    assert nothing.item() == 0
