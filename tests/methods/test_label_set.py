"""Label-set losses: golden values of the official package, hand values, and what a set must not decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from labelwise.losses.partial import marginal_cross_entropy, members, possible_classes
from labelwise.methods.leaf_dice import leaf_dice
from labelwise.types import IGNORE

LIVER_ONLY = torch.tensor([[False, True, False]])  # classes: background, liver, spleen
EVERYTHING = torch.ones(1, 3, dtype=torch.bool)
NOTHING = torch.zeros(1, 3, dtype=torch.bool)


def random_case(cases: int = 1, highest: int = 1) -> tuple[Tensor, Tensor]:
    """Logits in float64 and labels up to `highest`, which must be annotated."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(cases, 3, 4, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, highest + 1, (cases, 4, 5), generator=generator)


@pytest.fixture
def arrays(golden):
    return golden("leafdice")


def known(arrays) -> tuple[Tensor, Tensor]:
    """Labels in the package's form, and annotated structures."""
    labels = torch.from_numpy(arrays["full_labels"].astype(np.int64))
    annotated = torch.from_numpy(arrays["annotated"])
    rows = torch.arange(len(labels)).view(-1, 1, 1, 1)
    return labels * annotated[rows, labels], annotated


def logits_of(arrays) -> Tensor:
    return torch.from_numpy(arrays["logits"]).requires_grad_()


# golden values: all annotated; {1, 2}; {3}; {1, 2} with structure 2 absent


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "leaf_dice_per_case"),
        ({"squared": False}, "leaf_dice_linear_per_case"),
        ({"normalize": "present"}, "leaf_dice_present_only_per_case_f64"),
        (
            {"normalize": "present", "squared": False},
            "leaf_dice_linear_present_only_per_case_f64",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_agrees_with_the_golden_values_case_by_case(arrays, settings, key):
    possible = possible_classes(*known(arrays))
    logits = logits_of(arrays)
    for row in range(4):
        value = leaf_dice(logits[row : row + 1], possible[row : row + 1], **settings)
        assert value.item() == pytest.approx(float(arrays[key][row]), rel=1e-5)
    assert leaf_dice(logits, possible, **settings).item() == pytest.approx(
        float(arrays[key].mean()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "leaf_dice"),
        ({"squared": False}, "leaf_dice_linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_mean_and_its_gradient_agree_with_the_official_package(arrays, settings, key):
    logits = logits_of(arrays)
    value = leaf_dice(logits, possible_classes(*known(arrays)), **settings)
    value.backward()
    assert value.item() == pytest.approx(float(arrays[f"{key}_loss"]), rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.from_numpy(arrays[f"{key}_grad"]), rtol=1e-5, atol=1e-7)


def test_the_official_cross_entropy_is_ours_plus_the_log_of_the_set_size(arrays):
    logits, (labels, annotated) = logits_of(arrays), known(arrays)
    size = possible_classes(labels, annotated).sum(dim=1)
    offset = size.log().flatten(1).mean(dim=1)
    torch.testing.assert_close(
        offset, torch.from_numpy(arrays["marg_ce_log_set_size_offset_f64"]).float(), rtol=1e-5, atol=1e-6
    )
    for row in range(4):
        value = marginal_cross_entropy(
            logits[row : row + 1], labels[row : row + 1], annotated[row : row + 1]
        ).item()
        assert value == pytest.approx(float(arrays["marg_ce_correct_per_case_f64"][row]), rel=1e-5)
        assert value + offset[row].item() == pytest.approx(float(arrays["marg_ce_per_case"][row]), rel=1e-5)
    together = marginal_cross_entropy(logits, labels, annotated)
    together.backward()
    torch.testing.assert_close(logits.grad, torch.from_numpy(arrays["marg_ce_grad"]), rtol=1e-5, atol=1e-7)


# hand values


@pytest.mark.parametrize(("squared", "predicted"), [(True, 2 / 9), (False, 2 / 3)])
@pytest.mark.parametrize(("normalize", "classes"), [("all", 3), ("present", 1)])
def test_leaf_dice_worked_out_by_hand(squared, predicted, normalize, classes):
    """p = 1/3 in two voxels, one of them liver; nobody knows whether the other one is background or spleen."""
    value = leaf_dice(
        torch.zeros(1, 3, 2),
        possible_classes(torch.tensor([[0, 1]]), LIVER_ONLY),
        squared=squared,
        normalize=normalize,
        smooth=0.0,
    )
    # In the open voxel nothing is decided about background and spleen, but the liver is not there.
    assert value.item() == pytest.approx(1 - (2 / 3) / (predicted + 1) / classes, rel=1e-6)


# identities


def test_complete_labels_make_plain_dice_of_leaf_dice():
    logits, labels = random_case(2, highest=2)
    p, y = logits.softmax(dim=1).flatten(2), members(labels, 3).flatten(2).double()
    plain = 1 - (2 * (p * y).sum(2) / (p.square().sum(2) + y.sum(2) + 1e-5)).mean()
    possible = possible_classes(labels, EVERYTHING.expand(2, -1))
    torch.testing.assert_close(leaf_dice(logits, possible), plain)


def test_an_annotation_per_voxel_that_is_the_same_everywhere_is_an_annotation_per_case():
    logits, labels = random_case(2)
    annotated = LIVER_ONLY.expand(2, -1)
    spread = annotated[:, :, None, None].expand(2, 3, 4, 5)
    torch.testing.assert_close(
        leaf_dice(logits, possible_classes(labels, spread)),
        leaf_dice(logits, possible_classes(labels, annotated)),
    )


def test_does_not_care_how_a_set_shares_its_probability():
    logits, labels = random_case()
    possible = possible_classes(labels, LIVER_ONLY)
    swapped = torch.where(labels.unsqueeze(1) == 0, logits[:, [2, 1, 0]], logits)
    torch.testing.assert_close(leaf_dice(logits, possible), leaf_dice(swapped, possible))


def test_adding_a_constant_to_all_logits_changes_nothing():
    logits, labels = random_case()
    possible = possible_classes(labels, LIVER_ONLY)
    torch.testing.assert_close(leaf_dice(logits + 7, possible), leaf_dice(logits, possible))


def test_an_unlabelled_case_is_not_counted():
    logits, labels = random_case(2)
    labels[1] = IGNORE
    both = leaf_dice(logits, possible_classes(labels, torch.cat([LIVER_ONLY, NOTHING])))
    torch.testing.assert_close(both, leaf_dice(logits[:1], possible_classes(labels[:1], LIVER_ONLY)))


@pytest.mark.parametrize("annotated", [LIVER_ONLY, EVERYTHING])
def test_ignored_voxels_are_never_read(annotated):
    logits, labels = random_case()
    labels[:, :2] = IGNORE
    other = logits.detach().clone()
    other[:, :, :2] = 50.0
    possible = possible_classes(labels, annotated)
    value = leaf_dice(logits, possible)
    torch.testing.assert_close(value, leaf_dice(other, possible))
    value.backward()
    assert logits.grad[:, :, :2].abs().max() == 0
    assert logits.grad[:, :, 2:].abs().max() > 0


def test_leaf_dice_gives_un_annotated_classes_no_gradient_of_their_own():
    logits, labels = random_case()
    possible = possible_classes(labels, LIVER_ONLY)
    probabilities = logits.detach().softmax(dim=1).requires_grad_()
    leaf_dice(probabilities.log(), possible).backward()
    # Through the softmax every class sees the liver's gradient; background and spleen see nothing else.
    assert (probabilities.grad[:, 0] - probabilities.grad[:, 2]).abs().max() < 1e-12
    assert (probabilities.grad[:, 1] - probabilities.grad[:, 0]).abs().min() > 1e-6


def test_a_class_that_is_a_leaf_elsewhere_is_not_pushed_out_of_a_set_that_contains_it():
    """Regions: the second voxel is liver or spleen. It takes no part in the liver's Dice."""
    possible = torch.tensor([[[False, False], [True, True], [False, True]]])
    logits = torch.zeros(1, 3, 2)
    value = leaf_dice(logits, possible, smooth=0.0, normalize="present")
    assert value.item() == pytest.approx(1 - (2 / 3) / (1 / 9 + 1), rel=1e-6)


# silence


@pytest.mark.parametrize(("annotated", "fill"), [(NOTHING, 0), (NOTHING, IGNORE), (EVERYTHING, IGNORE)])
def test_silent_without_supervision(annotated, fill):
    logits, labels = random_case()
    value = leaf_dice(logits, possible_classes(labels.fill_(fill), annotated))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize(("normalize", "expected"), [("all", 1.0), ("present", 0.0)])
def test_leaf_dice_learns_nothing_from_an_annotated_structure_without_a_voxel(normalize, expected):
    logits, labels = random_case()
    value = leaf_dice(logits, possible_classes(labels.zero_(), LIVER_ONLY), normalize=normalize)
    value.backward()
    assert value.item() == expected
    assert logits.grad.abs().max() == 0


# gradients, extremes, precision


@pytest.mark.parametrize("annotated", [LIVER_ONLY, EVERYTHING])
def test_gradient_matches_finite_differences(annotated):
    logits, labels = random_case()
    few, labels = logits[:, :, :2, :3].detach().requires_grad_(), labels[:, :2, :3]
    labels[0, 0, 0] = IGNORE
    assert torch.autograd.gradcheck(lambda z: leaf_dice(z, possible_classes(labels, annotated)), (few,))


@pytest.mark.parametrize("scale", [1e-30, 1e2, 1e4])
def test_stays_finite_for_extreme_logits(scale):
    logits, labels = random_case()
    extreme = (logits.detach().float() * scale).requires_grad_()
    value = leaf_dice(extreme, possible_classes(labels, LIVER_ONLY))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(extreme.grad).all()


def test_statistics_stay_in_float32_under_autocast_and_for_half_logits():
    logits, labels = random_case()
    half, possible = logits.detach().bfloat16(), possible_classes(labels, LIVER_ONLY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = leaf_dice(half, possible)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, leaf_dice(half.float(), possible), rtol=0, atol=0)
