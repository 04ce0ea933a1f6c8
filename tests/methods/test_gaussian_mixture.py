"""The class Gaussians of labelled voxels against the official code's arrays, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.methods.guidednet.gaussian_mixture import (
    SMALLEST_DEVIATION,
    Means,
    as_voxels,
    class_means,
    deviations,
    half_binary_cross_entropy,
    half_label_cross_entropy,
    kernel_responses,
    knowledge,
    mean_absolute_distance,
    mean_over_known,
    means_of_cases,
    posteriors,
    rows_of_means,
    shared_overlap,
    voxels_at,
)
from labelwise.types import IGNORE

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CLASSES = 5


@pytest.fixture
def arrays(golden):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in golden("guidednet").items()}


def labels_of(arrays, name="label_l"):
    return arrays[name].long().flatten(1)


def everything(cases):
    return torch.ones(cases, CLASSES, dtype=torch.bool)


def pooled(arrays):
    known = knowledge(labels_of(arrays), everything(2))
    return known, class_means(as_voxels(arrays["rep_A_l"]), known.own)


# what labels know


def test_what_is_known_agrees_with_the_calculation_for_partial_labels(arrays):
    found = knowledge(labels_of(arrays, "pl_label"), arrays["pl_annot"].bool())
    assert torch.equal(found.known, as_voxels(arrays["pl_known"]).bool())
    assert torch.equal(found.own.sum(dim=(0, 1)).double(), arrays["pl_count"])


def test_an_unlabelled_case_knows_nothing_whatever_its_labels_say():
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    for label in (0, IGNORE):
        found = knowledge(torch.full((1, 4), label), nothing)
        assert not found.own.any()
        assert not found.known.any()


def test_left_out_voxels_of_a_complete_case_are_not_known():
    found = knowledge(torch.tensor([[0, 2, IGNORE]]), torch.ones(1, 3, dtype=torch.bool))
    assert found.known.tolist() == [[[True] * 3, [True] * 3, [False] * 3]]
    assert found.own.int().tolist() == [[[1, 0, 0], [0, 0, 1], [0, 0, 0]]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("step", [1, 2])
def test_the_gradient_of_chosen_voxels_keeps_the_layout_of_the_maps(layout, step):
    maps = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
    place = (..., slice(0, None, step), slice(step - 1, None, step), slice(0, None, step))
    voxels = voxels_at(maps, place)
    expected = maps[place].movedim(1, -1).flatten(1, -2)
    assert torch.equal(voxels, expected)
    weights = torch.randn_like(voxels)
    (gradient,) = torch.autograd.grad((voxels * weights).sum(), maps)
    assert torch.equal(gradient, torch.autograd.grad((expected * weights).sum(), maps)[0])
    assert gradient.stride() == maps.stride()


# means


def test_means_of_each_image_agree_with_the_official_code(arrays):
    own = knowledge(labels_of(arrays), everything(2)).own
    means = class_means(as_voxels(arrays["rep_A_l"]), own, "image")
    assert torch.equal(means.present, arrays["present"].bool())
    torch.testing.assert_close(means.values, arrays["proto_image"], **CLOSE)


def test_means_of_the_batch_agree_with_the_calculation(arrays):
    _, means = pooled(arrays)
    torch.testing.assert_close(means.values[0], arrays["proto_pool"], **CLOSE)


def test_means_of_the_batch_weigh_voxels_alike():
    """One case with 3 voxels of the class at feature 1, another with one at 5: the mean is 2, not 3."""
    features = torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]]).unsqueeze(2)
    own = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool().unsqueeze(2)
    assert class_means(features, own).values.item() == 2
    assert class_means(features, own, "image").values.flatten().tolist() == [1, 5]


def test_the_mean_of_an_absent_class_is_zero_and_has_no_gradient():
    features = torch.randn(2, 6, 3, requires_grad=True)
    means = class_means(features, torch.zeros(2, 6, 4, dtype=torch.bool))
    assert not means.present.any()
    (gradient,) = torch.autograd.grad(means.values.sum(), features)
    assert gradient.abs().max() == means.values.abs().max() == 0


def test_cases_without_labels_take_turns_with_the_means_of_those_with():
    assert rows_of_means("image", [False, True, False, True, False]) == [1, 1, 3, 3, 1]
    assert rows_of_means("batch", [False, True]) == [0, 0]
    assert rows_of_means("image", [False, False]) == [0, 0]


# responses


def test_responses_agree_with_the_official_code(arrays):
    own = knowledge(labels_of(arrays), everything(2)).own
    means = class_means(as_voxels(arrays["rep_A_l"]), own, "image")
    for name in ("l", "u"):
        distances = mean_absolute_distance(as_voxels(arrays[f"rep_A_{name}"]), means.values)
        expected = as_voxels(arrays["resp_A_l" if name == "l" else "resp_A_u_image"])
        # The official array of unlabelled images holds absent classes too; the losses leave them out.
        expected = expected * means.present.unsqueeze(1)
        torch.testing.assert_close(kernel_responses(distances, means.present), expected, **CLOSE)


def test_responses_to_the_means_of_the_batch_agree_with_the_calculation(arrays):
    _, means = pooled(arrays)
    means = means_of_cases(means, [0, 0])
    distances = mean_absolute_distance(as_voxels(arrays["rep_A_l"]), means.values)
    found = kernel_responses(distances, means.present)
    torch.testing.assert_close(found, as_voxels(arrays["resp_A_l_pool"]), **CLOSE)


def test_posteriors_agree_with_the_calculation(arrays):
    known, means = pooled(arrays)
    probabilities = as_voxels(arrays["logit_A_l"].softmax(dim=1))
    cases = means_of_cases(means, [0, 0])
    distances = {
        name: mean_absolute_distance(as_voxels(arrays[f"rep_A_{name}"]), cases.values) for name in "lu"
    }
    deviation = deviations(distances["l"], probabilities, known.own)
    torch.testing.assert_close(deviation[0], arrays["bayes_sigma"], **CLOSE)
    torch.testing.assert_close(means.counts[0] / means.counts.sum(), arrays["bayes_prior"], **CLOSE)
    for name, distance in distances.items():
        found = posteriors(distance, deviation.expand(2, -1), cases.counts)
        torch.testing.assert_close(found, as_voxels(arrays[f"bayes_post_{name}"]), **CLOSE)


def test_posteriors_leave_out_absent_classes():
    distances = torch.rand(2, 5, 3)
    counts = torch.tensor([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    found = posteriors(distances, torch.full((2, 3), 0.5), counts)
    torch.testing.assert_close(found[0].sum(dim=1), torch.ones(5))
    assert found[0, :, 1].abs().max() == 0
    assert found[1].abs().max() == 0


def test_posteriors_by_hand():
    """Two classes, deviations 1 and 2, equally frequent, distances 0 and 2."""
    found = posteriors(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2))
    first, second = 1.0, 0.5 * np.exp(-0.5)
    assert found[0, 0, 0].item() == pytest.approx(first / (first + second))


def test_a_class_without_spread_keeps_a_smallest_deviation():
    nothing = torch.zeros(1, 4, 2)
    found = deviations(nothing, nothing + 0.5, torch.ones(1, 4, 2, dtype=torch.bool))
    torch.testing.assert_close(found, torch.full((1, 2), SMALLEST_DEVIATION))


def test_distances_are_float32_in_half_precision():
    features = torch.randn(1, 7, 4)
    means = torch.randn(1, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = mean_absolute_distance(features.bfloat16(), means)
        centres = class_means(features.bfloat16(), torch.ones(1, 7, 3, dtype=torch.bool)).values
    assert rough.dtype == centres.dtype == torch.float32
    exact = (features.bfloat16().float().unsqueeze(2) - means.unsqueeze(1)).abs().mean(dim=3)
    torch.testing.assert_close(rough, exact)


def test_the_gradient_of_the_distance_is_the_sign_of_the_difference():
    features = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    means = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mean_absolute_distance, (features, means))


# losses


def test_the_overlap_of_means_agrees_with_the_calculation(arrays):
    means = Means(arrays["proto_image"], arrays["present"].bool(), arrays["present"].float())
    torch.testing.assert_close(shared_overlap(means), arrays["loss_max"], **CLOSE)


def test_the_overlap_of_a_single_class_is_zero():
    values = torch.randn(1, 3, 2, requires_grad=True)
    only = torch.tensor([[False, True, False]])
    loss = shared_overlap(Means(values, only, only.float()))
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss.item() == gradient.abs().max() == 0


def test_two_classes_overlap_by_their_distance():
    """Means (0, 0) and (1, 3): mean absolute difference 2, exp(-4)."""
    values = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [9.0, 9.0]]])
    present = torch.tensor([[True, True, False]])
    assert shared_overlap(Means(values, present, present.float())).item() == pytest.approx(np.exp(-4))


def test_both_forms_of_the_cross_entropy_agree_on_hard_targets():
    responses = torch.rand(2, 5, 3)
    own = torch.rand(2, 5, 3) < 0.3
    by_target = half_binary_cross_entropy(responses, own.float())
    torch.testing.assert_close(half_label_cross_entropy(responses, own), by_target, rtol=1e-5, atol=1e-6)


def test_certain_answers_cost_a_finite_amount():
    extremes = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = half_binary_cross_entropy(extremes, 1 - extremes.detach()).sum()
    (gradient,) = torch.autograd.grad(loss, extremes)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_mean_is_over_classes_first_and_over_voxels_then():
    """The first voxel knows two classes (1 and 3), the second one (8), the third none: (2 + 8) / 2."""
    values = torch.tensor([[[1.0, 3.0], [8.0, 5.0], [7.0, 7.0]]])
    where = torch.tensor([[[True, True], [True, False], [False, False]]])
    assert mean_over_known(values, where).item() == 5
    assert mean_over_known(values, where & False).item() == 0


def test_a_mask_of_cases_gives_the_mean_of_the_same_mask_of_voxels():
    values, where = torch.rand(3, 6, 4), torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    by_case = mean_over_known(values, where.unsqueeze(1))
    by_voxel = mean_over_known(values, where.unsqueeze(1).expand(-1, 6, -1))
    torch.testing.assert_close(by_case, by_voxel)
