"""Yes-or-no questions: what is asked, and what the answers cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.losses.binary import (
    binary_cross_entropy,
    excluding_classes,
    known_negatives,
    present_dice,
    region_answers,
)
from labelwise.losses.partial import OverlapSums, structure_answers
from labelwise.types import IGNORE


def test_a_structure_is_known_everywhere_in_the_labelled_part_of_a_case_that_annotates_it():
    labels = torch.tensor([[0, 1, IGNORE], [0, 2, 0]])
    annotated = torch.tensor([[False, True, False], [True, True, True]])
    truth, known = structure_answers(labels, annotated)
    assert known.int().tolist() == [[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]]
    assert truth.int().tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]]


def test_one_row_per_voxel_says_the_same_as_one_row_per_case():
    labels = torch.randint(0, 3, (2, 4, 4))
    annotated = torch.tensor([[False, True, False], [False, False, True]])
    spread = annotated[:, :, None, None].expand(2, 3, 4, 4)
    for one, other in zip(
        structure_answers(labels, annotated), structure_answers(labels, spread), strict=True
    ):
        assert torch.equal(one, other)


def test_cross_entropy_of_the_valid_pairs_agrees_with_the_golden_value(golden):
    arrays = golden("marginal_exclusion")
    logits = torch.from_numpy(arrays["psup_sigmoid_logits"])
    labels = torch.from_numpy(arrays["psup_sigmoid_labels"].astype(np.int64))
    annotated = torch.cat(
        [torch.zeros(3, 1, dtype=torch.bool), torch.from_numpy(arrays["psup_sigmoid_annotated"])], 1
    )
    truth, known = structure_answers(labels, annotated)
    losses, asked = binary_cross_entropy(logits, truth, known)
    assert int(asked.sum()) == 7
    assert losses[asked].mean().item() == pytest.approx(float(arrays["psup_masked_bce_mean_f64"]), rel=1e-5)


def test_what_is_not_known_costs_nothing_and_teaches_nothing():
    logits = torch.randn(1, 2, 4, requires_grad=True)
    truth, known = structure_answers(torch.full((1, 4), IGNORE), torch.zeros(1, 3, dtype=torch.bool))
    losses, asked = binary_cross_entropy(logits, truth, known)
    assert not asked.any()
    losses.sum().backward()
    assert losses.sum() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_voxel_of_one_structure_is_none_of_those_that_nobody_annotated():
    labels = torch.tensor([[0, 1, 2, IGNORE]])
    annotated = torch.tensor([[False, True, True, False]])
    assert known_negatives(labels, annotated).int().tolist() == [[[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]]
    spread = annotated[:, :, None].expand(1, 4, 4)
    assert torch.equal(known_negatives(labels, spread), known_negatives(labels, annotated))


def test_a_complete_and_an_unlabelled_case_have_no_negatives_beyond_their_answers():
    labels = torch.tensor([[0, 1, 2], [IGNORE] * 3])
    assert not known_negatives(labels, torch.tensor([[True] * 3, [False] * 3])).any()


def test_a_class_excludes_no_region_that_may_hide_within_it():
    """A structure with its tumour, the tumour, another structure: the label "structure" may hide a tumour."""
    regions = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    excludes = excluding_classes(regions)
    assert excludes.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]]
    found = known_negatives(torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool), excludes)
    assert found.int().tolist() == [[[0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]]]
    single = torch.eye(3, 4).roll(1, dims=1).bool()
    assert excluding_classes(single).int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]


# regions

NESTED = torch.tensor([[False, True, True], [False, False, True]])  # a structure with its tumour, the tumour


def test_a_region_holds_the_voxels_of_all_its_classes():
    truth, known = region_answers(torch.tensor([[0, 1, 2, IGNORE]]), torch.tensor([[True] * 3]), NESTED)
    assert known.int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 0]]]
    assert truth.int().tolist() == [[[0, 1, 1, 0], [0, 0, 1, 0]]]


def test_a_region_is_known_where_all_its_classes_are_annotated():
    labels = torch.tensor([[0, 1], [0, 2], [IGNORE, IGNORE]])
    annotated = torch.tensor([[False, True, False], [False, False, True], [False, False, False]])
    truth, known = region_answers(labels, annotated, NESTED)
    assert known.int().tolist() == [[[0, 0], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]]
    assert truth.int().tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
@pytest.mark.parametrize("per_voxel", [False, True])
def test_regions_of_one_structure_are_the_structures(shape, per_voxel):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, *shape), generator=generator)
    labels[:, 0] = IGNORE
    annotated = torch.rand(3, 4, *(shape if per_voxel else ()), generator=generator) < 0.5
    structures = torch.eye(4, dtype=torch.bool)[1:]
    for one, other in zip(
        region_answers(labels, annotated, structures), structure_answers(labels, annotated), strict=True
    ):
        assert torch.equal(one, other)


def test_the_dice_loss_of_what_is_present_by_hand():
    sums = OverlapSums(
        torch.tensor([3.0, 0.0, 0.0]), torch.tensor([4.0, 2.0, 2.0]), torch.tensor([4.0, 3.0, 0.0])
    )
    assert present_dice(sums).tolist() == pytest.approx([0.25, 1.0, 0.0])


def test_a_map_without_a_true_voxel_has_no_dice_and_no_gradient():
    predicted = torch.tensor([0.0, 5.0], requires_grad=True)
    loss = present_dice(OverlapSums(predicted * 0, predicted, torch.zeros(2)))
    loss.sum().backward()
    assert not loss.any()
    assert predicted.grad is not None
    assert not predicted.grad.any()
