"""URPC against the official code's arrays, and what its consistency must do anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import SPACE, make_batch, make_method
from labelwise.methods.base import NetFactory
from labelwise.methods.urpc.method import Pyramid, Urpc, UrpcConfig, pyramid_consistency
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def tensor(array):
    return torch.from_numpy(array)


def scales_of(logits):
    """(S, B, C, *S), fine to coarse as in the official code -> S leaves, coarse to fine."""
    return [scale.clone().requires_grad_() for scale in tensor(logits).flip(0)]


def official_batch(arrays):
    """2 labelled, 2 unlabelled cases of three classes."""
    labels = tensor(arrays["label"]).long()
    labelled = int(arrays["n_labelled"])
    labels[labelled:] = IGNORE
    annotated = torch.zeros(len(labels), 3, dtype=torch.bool)
    annotated[:labelled] = True
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, annotated)


def unlabelled(scales):
    """Labels and annotated set of cases of which nothing is known."""
    shape = scales[0].shape
    return torch.full((shape[0], *shape[2:]), IGNORE), torch.zeros(shape[0], shape[1], dtype=torch.bool)


def drawn(count=3, cases=2, classes=3, scale=2.0):
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(cases, classes, 4, 3, 2, generator=generator) * scale).requires_grad_()
        for _ in range(count)
    ]


def test_losses_and_gradients_agree_with_the_official_code(golden):
    arrays = golden("urpc")
    method = make_method("urpc")
    batch = official_batch(arrays)
    scales = scales_of(arrays["logits"])
    supervised, consistency = method.supervised(scales, batch), method.consistency(scales, batch)
    torch.testing.assert_close(supervised, torch.tensor(float(arrays["loss_sup"])), **CLOSE)
    torch.testing.assert_close(consistency, torch.tensor(float(arrays["loss_cons"])), **CLOSE)
    for loss, key in ((supervised, "grad_sup"), (consistency, "grad_cons")):
        gradient = torch.stack(torch.autograd.grad(loss, scales, retain_graph=True)).flip(0)
        torch.testing.assert_close(gradient, tensor(arrays[key]), **CLOSE)


def test_the_sum_of_the_terms_agrees_with_the_official_code(golden):
    arrays = golden("urpc")
    method = make_method("urpc")
    scales = scales_of(arrays["logits"])
    method.network.scales = lambda images: scales
    progress = Progress(int(arrays["iteration"]), 60_000)
    assert method.config.weight(progress) == pytest.approx(float(arrays["cons_weight"]), rel=1e-6)
    total = sum(method(official_batch(arrays), progress).values())
    torch.testing.assert_close(total, torch.tensor(float(arrays["loss_total"])), **CLOSE)


def test_logits_far_apart_give_a_finite_loss_and_a_finite_gradient(golden):
    arrays = golden("urpc")
    batch = official_batch(arrays)
    scales = scales_of(arrays["extreme_logits"])
    consistency = make_method("urpc").consistency(scales, batch)
    assert consistency.item() == pytest.approx(float(arrays["extreme_loss_cons_own"]), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(consistency, scales))


def test_equal_scales_cost_nothing_and_stay_as_they_are():
    scale = drawn(1)[0].detach()
    scales = [scale.clone().requires_grad_() for _ in range(4)]
    loss = pyramid_consistency(scales, *unlabelled(scales))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    for gradient in torch.autograd.grad(loss, scales):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


def test_a_constant_added_to_all_logits_of_a_voxel_changes_nothing():
    scales = drawn()
    shifted = [scale + 5 * torch.randn_like(scale[:, :1]) for scale in scales]
    known = unlabelled(scales)
    torch.testing.assert_close(pyramid_consistency(shifted, *known), pyramid_consistency(scales, *known))


def test_the_loss_of_one_voxel_agrees_with_a_calculation_by_hand():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])  # two scales, two classes
    scales = [row.log().view(1, 2, 1, 1, 1) for row in p]
    mean = torch.tensor([0.7, 0.3])
    divergence = (mean * (mean / p).log()).sum(dim=1)
    # With one voxel the weight cancels; classes are averaged.
    expected = ((mean - p).square().mean(dim=1) + divergence).mean()
    torch.testing.assert_close(pyramid_consistency(scales, *unlabelled(scales)), expected)


def test_voxels_of_a_structure_and_complete_cases_take_no_part():
    labels = torch.zeros(2, 4, 3, 2, dtype=torch.int64)
    labels[0, :2] = 1
    annotated = torch.tensor([[False, True, False], [True, True, True]])
    scales = drawn()
    gradients = torch.autograd.grad(pyramid_consistency(scales, labels, annotated), scales)
    for gradient in gradients:
        assert gradient[1].abs().max() == 0
        assert gradient[0, :, :2].abs().max() == 0
        assert gradient[0, :, 2:].abs().min() > 0


def test_every_scale_is_pulled_away_from_a_structure_that_is_known_to_be_absent():
    annotated = torch.tensor([[False, True, False]])
    labels = torch.zeros(1, 4, 3, 2, dtype=torch.int64)
    scales = drawn(cases=1)
    for gradient in torch.autograd.grad(pyramid_consistency(scales, labels, annotated), scales):
        assert gradient[:, 1].sum() > 0, "a descent lowers the logit of the absent structure"


def test_where_the_mean_leaves_nothing_to_the_open_classes_it_is_no_opinion():
    annotated = torch.tensor([[False, True, False]])
    labels = torch.zeros(1, 4, 3, 2, dtype=torch.int64)
    scales = [torch.zeros(1, 3, 4, 3, 2).index_fill(1, torch.tensor(1), 30.0) for _ in range(2)]
    scales[0][:, 0] += 1
    scales = [scale.requires_grad_() for scale in scales]
    loss = pyramid_consistency(scales, labels, annotated)
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(loss, scales))


def test_complete_cases_alone_have_no_consistency_and_unlabelled_ones_no_supervision():
    method = make_method("urpc")
    assert method(make_batch("full", "full"), Progress(50, 100))["consistency"].item() == 0
    assert method(make_batch("none"), Progress(50, 100))["supervised"].item() == 0


def test_an_absent_structure_can_be_kept_in_the_dice():
    batch = make_batch("full", absent="pancreas")
    with_it, without = (
        make_method("urpc", settings={"absent_dice": choice})(batch, Progress(0, 100))["supervised"]
        for choice in ("include", "skip")
    )
    assert with_it > without


def test_scales_have_the_size_of_the_image_and_the_last_one_is_the_prediction():
    for dims in (2, 3):
        images = make_batch("none", dims=dims).images
        network = make_method("urpc", dims=dims).network.eval()
        scales = network.scales(images)
        assert [tuple(scale.shape) for scale in scales] == [(1, SPACE.num_classes, *[32] * dims)] * 4
        torch.testing.assert_close(network(images), scales[-1])


def test_fewer_scales_can_be_chosen():
    assert len(make_method("urpc", settings={"scales": 2}).network.heads) == 2


def test_the_mean_of_the_scales_can_decide():
    images = make_batch("none").images
    method = make_method("urpc", settings={"classifier": "mean"})
    scores = method.predictor().eval()(images)
    scales = method.network.eval().scales(images)
    torch.testing.assert_close(scores, torch.stack([s.softmax(dim=1) for s in scales]).mean(dim=0))


def test_the_published_network_has_the_published_number_of_parameters():
    nets = NetFactory("urpc_unet", {}, dims=3, in_channels=1, num_classes=2)
    assert sum(p.numel() for p in Pyramid(nets, 4).parameters()) == 5_884_504
    method = Urpc(nets, UrpcConfig())
    assert [module.p for module in method.modules() if isinstance(module, nn.Dropout3d)] == [
        0.5,
        0.3,
        0.2,
        0.1,
    ]


def test_dropout_can_be_switched_off():
    nets = NetFactory("urpc_unet", {"width": 2, "dropout_scale": 0.0}, dims=3, in_channels=1, num_classes=2)
    network = nets.network()
    images = torch.randn(1, 1, 32, 16, 16)
    torch.testing.assert_close(network(images), network(images), rtol=0, atol=0)
