"""Supervision by partial labels: hand values, identities, invariances, silence, gradients, golden."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.partial import (
    annotated_dice,
    marginal_cross_entropy,
    open_voxels,
    possible_classes,
    supervised,
)
from labelwise.types import IGNORE

Loss = Callable[..., Tensor]
LOSSES: list[Loss] = [marginal_cross_entropy, annotated_dice, supervised]
GOLDEN = Path(__file__).parents[1] / "golden"

LIVER_ONLY = torch.tensor([[False, True, False]])  # classes: background, liver, spleen
EVERYTHING = torch.ones(1, 3, dtype=torch.bool)
NOTHING = torch.zeros(1, 3, dtype=torch.bool)


def random_case(cases: int = 1, highest: int = 1) -> tuple[Tensor, Tensor]:
    """Logits in float64 and labels up to `highest`, which must be annotated."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(cases, 3, 4, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, highest + 1, (cases, 4, 5), generator=generator)


def vectors(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


# hand values


def test_marginal_cross_entropy_worked_out_by_hand():
    """p = 1/3 everywhere: a background voxel costs ln 3/2 (two classes merged), a liver voxel ln 3."""
    loss = marginal_cross_entropy(torch.zeros(1, 3, 2), torch.tensor([[0, 1]]), LIVER_ONLY)
    assert loss.item() == pytest.approx((math.log(3 / 2) + math.log(3)) / 2, rel=1e-6)


@pytest.mark.parametrize(("squared", "denominator"), [(False, 2 / 3 + 1), (True, 2 / 9 + 1)])
def test_dice_worked_out_by_hand(squared: bool, denominator: float):
    """p(liver) = 1/3 in two voxels, one of them liver; spleen is not annotated and takes no part."""
    loss = annotated_dice(
        torch.zeros(1, 3, 2), torch.tensor([[0, 1]]), LIVER_ONLY, squared=squared, smooth=0.0
    )
    assert loss.item() == pytest.approx(1 - (2 / 3) / denominator, rel=1e-6)


def test_supervised_is_half_the_sum_of_its_parts():
    logits, labels = random_case(2)
    annotated = LIVER_ONLY.expand(2, -1)
    parts = marginal_cross_entropy(logits, labels, annotated) + annotated_dice(logits, labels, annotated)
    torch.testing.assert_close(supervised(logits, labels, annotated), parts / 2)


# identities


def test_is_plain_cross_entropy_when_everything_is_annotated():
    logits, labels = random_case(2, highest=2)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(marginal_cross_entropy(logits, labels, EVERYTHING.expand(2, -1)), expected)


def test_is_plain_dice_when_everything_is_annotated():
    logits, labels = random_case(2, highest=2)
    p, y = logits.softmax(dim=1).flatten(2), F.one_hot(labels, 3).movedim(-1, 1).flatten(2)
    dice = (2 * (p * y).sum(2) + 1e-5) / (p.sum(2) + y.sum(2) + 1e-5)
    torch.testing.assert_close(
        annotated_dice(logits, labels, EVERYTHING.expand(2, -1)), 1 - dice[:, 1:].mean()
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_an_annotation_per_voxel_that_is_the_same_everywhere_is_an_annotation_per_case(loss: Loss):
    logits, labels = random_case(2)
    annotated = LIVER_ONLY.expand(2, -1)
    per_voxel = annotated[:, :, None, None].expand(2, 3, 4, 5)
    torch.testing.assert_close(loss(logits, labels, per_voxel), loss(logits, labels, annotated))


def test_pooling_over_a_batch_of_one_is_pooling_over_the_case():
    logits, labels = random_case()
    torch.testing.assert_close(
        annotated_dice(logits, labels, LIVER_ONLY, pooling="batch"),
        annotated_dice(logits, labels, LIVER_ONLY),
    )


def test_pooling_over_the_batch_sums_over_the_cases_that_annotate_the_structure():
    """Two cases side by side are one larger case; the third does not annotate the liver and adds nothing."""
    logits, labels = random_case(3)
    labels[2] = 0
    annotated = torch.tensor([[False, True, False], [False, True, False], [False, False, True]])
    joined = annotated_dice(
        torch.cat([logits[:1], logits[1:2]], dim=2), torch.cat([labels[:1], labels[1:2]], dim=1), LIVER_ONLY
    )
    torch.testing.assert_close(annotated_dice(logits, labels, annotated, pooling="batch"), joined)


# invariances


def test_does_not_care_how_background_and_spleen_share_their_probability():
    logits, labels = random_case()
    swapped = logits[:, [2, 1, 0]]
    torch.testing.assert_close(
        marginal_cross_entropy(logits, labels, LIVER_ONLY),
        marginal_cross_entropy(swapped, labels, LIVER_ONLY),
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_adding_a_constant_to_all_logits_changes_nothing(loss: Loss):
    logits, labels = random_case()
    torch.testing.assert_close(loss(logits + 7, labels, LIVER_ONLY), loss(logits, labels, LIVER_ONLY))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_column_of_the_background_is_never_read(loss: Loss):
    logits, labels = random_case()
    claimed = torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        loss(logits, labels, claimed), loss(logits, labels, LIVER_ONLY), rtol=0, atol=0
    )


@pytest.mark.parametrize("pooling", ["case", "batch"])
def test_an_unlabelled_case_in_the_batch_changes_nothing(pooling: str):
    logits, labels = random_case(2)
    labels[1] = IGNORE
    annotated = torch.cat([LIVER_ONLY, NOTHING])
    both = supervised(logits, labels, annotated, pooling=pooling)
    torch.testing.assert_close(both, supervised(logits[:1], labels[:1], LIVER_ONLY, pooling=pooling))


@pytest.mark.parametrize("per_voxel", [False, True])
@pytest.mark.parametrize("pooling", ["case", "batch"])
def test_ignored_voxels_are_never_read(pooling: str, per_voxel: bool):
    logits, labels = random_case(2)
    labels[:, :2] = IGNORE
    other = logits.detach().clone()
    other[:, :, :2] = 50.0
    annotated = LIVER_ONLY.expand(2, -1)
    if per_voxel:
        annotated = annotated[:, :, None, None].expand(2, 3, 4, 5)
    loss = supervised(logits, labels, annotated, pooling=pooling)
    torch.testing.assert_close(loss, supervised(other, labels, annotated, pooling=pooling))
    loss.backward()
    assert logits.grad[:, :, :2].abs().max() == 0
    assert logits.grad[:, :, 2:].abs().min() > 0


def test_convention_every_case_weighs_the_same_however_many_voxels_it_labels():
    logits, labels = random_case(2)
    labels[0, 1:] = IGNORE
    cases = [marginal_cross_entropy(logits[i : i + 1], labels[i : i + 1], LIVER_ONLY) for i in (0, 1)]
    both = marginal_cross_entropy(logits, labels, LIVER_ONLY.expand(2, -1))
    torch.testing.assert_close(both, sum(cases) / 2)


# silence


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("annotated", "fill"), [(NOTHING, 0), (NOTHING, IGNORE), (EVERYTHING, IGNORE)])
@pytest.mark.parametrize("per_voxel", [False, True])
def test_silent_without_supervision(loss: Loss, annotated: Tensor, fill: int, per_voxel: bool):
    logits, labels = random_case()
    if per_voxel:
        annotated = annotated[:, :, None, None].expand(1, 3, 4, 5)
    value = loss(logits, labels.fill_(fill), annotated)
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_an_annotated_structure_without_a_voxel_is_skipped_or_included():
    logits, labels = random_case()
    labels.zero_()
    assert annotated_dice(logits, labels, LIVER_ONLY).item() == 0
    assert annotated_dice(logits, labels, LIVER_ONLY, absent="include").item() == pytest.approx(1, abs=1e-4)
    assert marginal_cross_entropy(logits, labels, LIVER_ONLY).item() > 0  # it still says where no liver is


def test_an_unannotated_structure_gets_no_dice_gradient_of_its_own():
    logits, labels = random_case()
    probabilities = logits.softmax(dim=1)
    probabilities.retain_grad()
    loss = annotated_dice(probabilities.log(), labels, LIVER_ONLY)
    loss.backward()
    gradient = probabilities.grad / probabilities.grad.abs().max()
    liver_alone = gradient[:, 0] - gradient[:, 2]  # both see the liver's gradient through the softmax only
    assert liver_alone.abs().max() < 1e-10


# gradients, extremes, precision


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("annotated", [LIVER_ONLY, EVERYTHING])
def test_gradient_matches_finite_differences(loss: Loss, annotated: Tensor):
    logits, labels = random_case()
    few, labels = logits[:, :, :2, :3].detach().requires_grad_(), labels[:, :2, :3]
    labels[0, 0, 0] = IGNORE
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, annotated), (few,))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-30, 1e2, 1e4])
def test_stays_finite_for_extreme_logits(loss: Loss, scale: float):
    logits, labels = random_case()
    extreme = (logits.detach().float() * scale).requires_grad_()
    value = loss(extreme, labels, LIVER_ONLY)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(extreme.grad).all()


def test_a_hopelessly_wrong_voxel_still_has_its_full_gradient():
    """Liver is certain where label 0 says it is not: -log P grows by one per unit of the liver's logit."""
    logits = torch.tensor([[[0.0], [500.0], [-3.0]]], requires_grad=True)
    loss = marginal_cross_entropy(logits, torch.tensor([[0]]), LIVER_ONLY)
    loss.backward()
    assert loss.item() == pytest.approx(500 - math.log(1 + math.exp(-3)), rel=1e-6)
    assert logits.grad[0, 1].item() == pytest.approx(1)


@pytest.mark.parametrize("loss", LOSSES)
def test_statistics_stay_in_float32_under_autocast_and_for_half_logits(loss: Loss):
    logits, labels = random_case()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, labels, LIVER_ONLY)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), labels, LIVER_ONLY), rtol=0, atol=0)


# label sets


def test_possible_classes_are_those_of_the_definition():
    """A labelled structure is itself; 0 is background or an un-annotated structure; IGNORE is anything."""
    labels = torch.tensor([[0, 1, IGNORE]])
    expected = [[True, False, True], [False, True, False], [True, False, True]]  # voxel by voxel
    expected[2] = [True, True, True]
    torch.testing.assert_close(possible_classes(labels, LIVER_ONLY)[0].T, torch.tensor(expected))


@pytest.mark.parametrize("annotated", [NOTHING, LIVER_ONLY, EVERYTHING])
def test_open_voxels_are_those_with_more_than_one_possible_class(annotated: Tensor):
    _, labels = random_case()
    labels[0, 0] = IGNORE
    labels = labels if annotated[0, 1] else labels.masked_fill(labels == 1, 0)
    for known in (annotated, annotated[:, :, None, None].expand(1, 3, 4, 5)):
        torch.testing.assert_close(open_voxels(labels, known), possible_classes(labels, known).sum(dim=1) > 1)


def test_mixed_voxels_follow_the_case_they_came_from():
    """Left half from a case with everything annotated, right half from one with the liver only."""
    logits, labels = random_case(highest=1)
    mixed = torch.cat(
        [EVERYTHING[:, :, None, None].expand(1, 3, 4, 2), LIVER_ONLY[:, :, None, None].expand(1, 3, 4, 3)], 3
    )
    halves = [
        marginal_cross_entropy(logits[..., :2], labels[..., :2], EVERYTHING) * 8,
        marginal_cross_entropy(logits[..., 2:], labels[..., 2:], LIVER_ONLY) * 12,
    ]
    torch.testing.assert_close(marginal_cross_entropy(logits, labels, mixed), sum(halves) / 20)


# golden values


def test_agrees_with_the_golden_values_case_by_case():
    """Four cases: {1, 2} with structure 2 absent, {3}, everything, nothing."""
    golden = vectors("marginal_exclusion")
    for row in range(4):
        arguments = (
            golden["het_logits"][row : row + 1].double(),
            golden["het_labels"][row : row + 1].long(),
            golden["het_annotated"][row : row + 1],
        )
        torch.testing.assert_close(
            marginal_cross_entropy(*arguments), golden["het_marginal_ce_f64"][row], rtol=1e-5, atol=1e-12
        )
        torch.testing.assert_close(
            annotated_dice(*arguments), golden["het_dice_loss_present_only_f64"][row], rtol=1e-5, atol=0
        )
        torch.testing.assert_close(
            annotated_dice(*arguments, absent="include"), golden["het_dice_loss_f64"][row], rtol=1e-5, atol=0
        )


def test_a_batch_is_the_mean_of_its_supervised_cases():
    golden = vectors("marginal_exclusion")
    arguments = (golden["het_logits"], golden["het_labels"].long(), golden["het_annotated"])
    for loss, key in (
        (marginal_cross_entropy, "het_marginal_ce_f64"),
        (annotated_dice, "het_dice_loss_present_only_f64"),
    ):
        expected = golden[key][:3].mean().float()
        torch.testing.assert_close(loss(*arguments), expected, rtol=1e-5, atol=0)


def test_differs_from_the_published_code_which_adds_logits_instead_of_probabilities():
    golden = vectors("marginal_exclusion")
    arguments = (
        golden["homog_logits"],
        golden["homog_labels"].long(),
        golden["homog_annotated"].expand(2, -1),
    )
    cross_entropy = marginal_cross_entropy(*arguments).item()
    dice = annotated_dice(*arguments, absent="include").item()
    assert cross_entropy == pytest.approx(golden["homog_marginal_ce_f64"].item(), rel=1e-5)
    assert dice == pytest.approx(1 - golden["homog_marginal_dice_score_f64"].item(), rel=1e-5)
    assert abs(cross_entropy - golden["homog_official_ce_logit_merge"].item()) > 0.01
    assert abs(dice - 1 - golden["homog_official_negdice_logit_merge"].item()) > 0.01


def test_agrees_with_the_supervised_loss_of_the_left_atrium_benchmark():
    golden = vectors("mean_teacher")
    count = int(golden["n_labelled"])
    logits = golden["logits_student"].clone().requires_grad_()
    labels = golden["label"].long()
    labels[count:] = IGNORE
    annotated = torch.zeros(len(labels), 2, dtype=torch.bool)
    annotated[:count] = True
    dice = annotated_dice(logits, labels, annotated, squared=True, pooling="batch")
    loss = supervised(logits, labels, annotated, squared=True, pooling="batch")
    loss.backward()
    torch.testing.assert_close(marginal_cross_entropy(logits, labels, annotated), golden["loss_ce"])
    torch.testing.assert_close(dice, golden["loss_dice"])
    torch.testing.assert_close(loss, golden["loss_sup"])
    torch.testing.assert_close(logits.grad, golden["grad_sup_wrt_student"], rtol=1e-4, atol=1e-7)


# regions that are annotated as one


def region_case() -> tuple[Tensor, Tensor, Tensor]:
    """Three voxels with p = 0.2, 0.5, 0.3: a liver, one of liver and spleen, one of which nothing is known."""
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log().view(1, 3, 1).repeat(1, 1, 3)
    labels = torch.tensor([[1, IGNORE, IGNORE]])
    annotated = torch.tensor([[[True, True, False], [True, False, False], [True, False, False]]])
    annotated[0, 0, 2] = False
    return logits.requires_grad_(), labels, annotated


def test_a_voxel_of_a_region_costs_what_its_classes_have_together():
    logits, labels, annotated = region_case()
    loss = marginal_cross_entropy(logits, labels, annotated)
    assert loss.item() == pytest.approx((-math.log(0.5) - math.log(0.8)) / 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, :, 1].tolist() == pytest.approx([0.1, -0.0625, -0.0375])  # (p - p / 0.8 inside) / 2
    assert gradient[0, :, 2].abs().max() == 0


def test_a_voxel_of_a_region_can_be_its_classes_only_and_stays_open():
    _, labels, annotated = region_case()
    assert possible_classes(labels, annotated)[0].T.tolist() == [
        [False, True, False],
        [False, True, True],
        [True, True, True],
    ]
    assert open_voxels(labels, annotated).tolist() == [[False, True, True]]


def test_the_dice_of_the_classes_of_a_region_leaves_its_voxels_out():
    logits, labels, annotated = region_case()
    shorter = annotated_dice(logits[..., :1], labels[..., :1], annotated[..., :1])
    assert annotated_dice(logits, labels, annotated).item() == pytest.approx(shorter.item(), rel=1e-12)
