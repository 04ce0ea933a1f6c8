"""The exclusion loss: golden values, hand values, what it asks and where it is silent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from labelwise.losses.partial import annotated_dice, marginal_cross_entropy
from labelwise.methods.marginal_exclusion import exclusion_loss
from labelwise.types import IGNORE

LIVER_ONLY = torch.tensor([[False, True, False]])  # classes: background, liver, spleen
EVERYTHING = torch.ones(1, 3, dtype=torch.bool)
NOTHING = torch.zeros(1, 3, dtype=torch.bool)
VARIANTS = [(kind, channels) for kind in ("dice", "cross_entropy") for channels in ("all_fg", "unannotated")]


@pytest.fixture(params=VARIANTS, ids="-".join)
def loss(request):
    kind, channels = request.param
    return lambda *arguments: exclusion_loss(*arguments, kind=kind, channels=channels)


def random_case(cases: int = 1) -> tuple[Tensor, Tensor]:
    """Logits in float64, and labels 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(cases, 3, 4, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 2, (cases, 4, 5), generator=generator)


def per_voxel(annotated: Tensor, cases: int = 1) -> Tensor:
    return annotated[:, :, None, None].expand(cases, 3, 4, 5)


# golden values


@pytest.mark.parametrize(
    ("kind", "channels", "key"),
    [
        ("dice", "all_fg", "het_exclusion_dice_all_fg_f64"),
        ("dice", "unannotated", "het_exclusion_dice_unannotated_f64"),
        ("cross_entropy", "all_fg", "het_exclusion_ce_eps1_f64"),
    ],
)
def test_agrees_with_the_golden_values_case_by_case(golden, kind, channels, key):
    """Four cases: {1, 2} with structure 2 absent, {3}, everything, nothing."""
    arrays = golden("marginal_exclusion")
    logits = torch.from_numpy(arrays["het_logits"]).double()
    labels = torch.from_numpy(arrays["het_labels"]).long()
    annotated = torch.from_numpy(arrays["het_annotated"])
    for row in range(4):
        case = slice(row, row + 1)
        value = exclusion_loss(logits[case], labels[case], annotated[case], kind=kind, channels=channels)
        assert value.item() == pytest.approx(float(arrays[key][row]), rel=1e-5, abs=1e-12)
    together = exclusion_loss(logits, labels, annotated, kind=kind, channels=channels)
    assert together.item() == pytest.approx(float(arrays[key][:3].mean()), rel=1e-5)


def test_agrees_with_the_official_exclusion_of_a_batch_with_one_annotated_set(golden):
    arrays = golden("marginal_exclusion")
    logits = torch.from_numpy(arrays["homog_logits"])
    labels = torch.from_numpy(arrays["homog_labels"]).long()
    annotated = torch.from_numpy(arrays["homog_annotated"]).expand(2, -1)
    every, hidden = (exclusion_loss(logits, labels, annotated, channels=c) for c in ("all_fg", "unannotated"))
    assert every.item() == pytest.approx(float(arrays["homog_official_exclusion"]), rel=1e-5)
    assert every.item() == pytest.approx(float(arrays["homog_exclusion_dice_f64"]), rel=1e-5)
    assert hidden.item() == pytest.approx(
        float(arrays["homog_exclusion_dice_unannotated_only_f64"]), rel=1e-5
    )


def test_the_whole_objective_and_its_gradient_agree_with_the_golden_values(golden):
    arrays = golden("marginal_exclusion")
    logits = torch.from_numpy(arrays["het_logits"]).requires_grad_()
    known = torch.from_numpy(arrays["het_labels"]).long(), torch.from_numpy(arrays["het_annotated"])
    total = (
        marginal_cross_entropy(logits, *known)
        + annotated_dice(logits, *known, absent="include")
        + 2 * exclusion_loss(logits, *known)
    )
    total.backward()
    assert total.item() == pytest.approx(float(arrays["het_total_f64"]), rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.from_numpy(arrays["het_total_grad"]), rtol=1e-5, atol=1e-6)


# hand values


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("dice", "unannotated", 2 / 3 / (2 / 3 + 1)),  # spleen: E is the second voxel
        ("dice", "all_fg", 2 / 3 / (2 / 3 + 1)),  # liver: E is the first voxel; the same value
        ("cross_entropy", "unannotated", math.log(4 / 3) / 2),
        ("cross_entropy", "all_fg", math.log(4 / 3) / 2),
    ],
)
def test_worked_out_by_hand(kind, channels, expected):
    """p = 1/3 everywhere; the first voxel is not liver, the second one is."""
    value = exclusion_loss(
        torch.zeros(1, 3, 2), torch.tensor([[0, 1]]), LIVER_ONLY, kind=kind, channels=channels, smooth=0.0
    )
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_is_small_when_no_structure_is_where_it_cannot_be(loss):
    labels = torch.tensor([[0, 1]])
    right = 30 * torch.tensor(
        [[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]
    )  # spleen in the open voxel, liver in its own
    wrong = 30 * torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert loss(right, labels, LIVER_ONLY).item() < 1e-4
    assert loss(wrong, labels, LIVER_ONLY).item() > 0.3


def test_pushes_the_hidden_structure_out_of_the_labelled_one():
    """Gradient descent lowers the spleen's logit exactly where the liver is labelled."""
    logits, labels = random_case()
    exclusion_loss(logits, labels, LIVER_ONLY, channels="unannotated").backward()
    assert (logits.grad[:, 2][labels == 1] > 0).all()
    assert (logits.grad[:, 2][labels == 0] < 0).all()


# identities


def test_adding_a_constant_to_all_logits_changes_nothing(loss):
    logits, labels = random_case()
    torch.testing.assert_close(loss(logits + 7, labels, LIVER_ONLY), loss(logits, labels, LIVER_ONLY))


def test_the_column_of_the_background_is_never_read(loss):
    logits, labels = random_case()
    claimed = torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        loss(logits, labels, claimed), loss(logits, labels, LIVER_ONLY), rtol=0, atol=0
    )


def test_an_annotation_per_voxel_that_is_the_same_everywhere_is_an_annotation_per_case(loss):
    logits, labels = random_case(2)
    torch.testing.assert_close(
        loss(logits, labels, per_voxel(LIVER_ONLY, 2)), loss(logits, labels, LIVER_ONLY.expand(2, -1))
    )


def test_a_complete_case_counts_as_a_zero_in_the_mean(loss):
    logits, labels = random_case(2)
    both = loss(logits, labels, torch.cat([LIVER_ONLY, EVERYTHING]))
    torch.testing.assert_close(both, loss(logits[:1], labels[:1], LIVER_ONLY) / 2)


def test_an_unlabelled_case_is_not_counted(loss):
    logits, labels = random_case(2)
    labels[1] = IGNORE
    both = loss(logits, labels, torch.cat([LIVER_ONLY, NOTHING]))
    torch.testing.assert_close(both, loss(logits[:1], labels[:1], LIVER_ONLY))


@pytest.mark.parametrize("mixed", [False, True])
def test_ignored_voxels_are_never_read(loss, mixed):
    logits, labels = random_case()
    labels[:, :2] = IGNORE
    other = logits.detach().clone()
    other[:, :, :2] = 50.0
    annotated = per_voxel(LIVER_ONLY) if mixed else LIVER_ONLY
    value = loss(logits, labels, annotated)
    torch.testing.assert_close(value, loss(other, labels, annotated))
    value.backward()
    assert logits.grad[:, :, :2].abs().max() == 0
    assert logits.grad[:, :, 2:].abs().max() > 0


# silence


@pytest.mark.parametrize(
    ("annotated", "fill"), [(NOTHING, 0), (NOTHING, IGNORE), (EVERYTHING, 1), (LIVER_ONLY, IGNORE)]
)
@pytest.mark.parametrize("mixed", [False, True])
def test_silent_without_a_partly_annotated_case(loss, annotated, fill, mixed):
    logits, labels = random_case()
    value = loss(logits, labels.fill_(fill), per_voxel(annotated) if mixed else annotated)
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("kind", ["dice", "cross_entropy"])
def test_hidden_structures_are_left_alone_where_no_annotated_structure_has_a_voxel(kind):
    logits, labels = random_case()
    value = exclusion_loss(logits, labels.zero_(), LIVER_ONLY, kind=kind, channels="unannotated")
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_a_structure_that_is_excluded_nowhere_is_not_pushed_up():
    """Without a labelled voxel only the liver is asked about: half the Dice of an absent structure."""
    logits, labels = random_case()
    value = exclusion_loss(logits, labels.zero_(), LIVER_ONLY)
    liver = logits.detach().softmax(dim=1)[:, 1].sum().item()
    assert value.item() == pytest.approx((2 * liver + 1e-5) / (liver + 20 + 1e-5) / 2, rel=1e-6)


# gradients, extremes, precision


def test_gradient_matches_finite_differences(loss):
    logits, labels = random_case()
    few, labels = logits[:, :, :2, :3].detach().requires_grad_(), labels[:, :2, :3]
    labels[0, 0, 0] = IGNORE
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, LIVER_ONLY), (few,))


@pytest.mark.parametrize("scale", [1e-30, 1e2, 1e4])
def test_stays_finite_for_extreme_logits(loss, scale):
    logits, labels = random_case()
    extreme = (logits.detach().float() * scale).requires_grad_()
    value = loss(extreme, labels, LIVER_ONLY)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(extreme.grad).all()


def test_the_cross_entropy_form_is_bounded_by_ln_2():
    logits = torch.zeros(1, 3, 2)
    logits[:, 2] = 1e4
    value = exclusion_loss(
        logits, torch.ones(1, 2).long(), LIVER_ONLY, kind="cross_entropy", channels="unannotated"
    )
    assert value.item() == pytest.approx(math.log(2))


def test_statistics_stay_in_float32_under_autocast_and_for_half_logits(loss):
    logits, labels = random_case()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, labels, LIVER_ONLY)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), labels, LIVER_ONLY), rtol=0, atol=0)
