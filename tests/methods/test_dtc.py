"""DTC against the official code's arrays: every output of a network is given, the rest is ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import SPACE, make_batch, make_method
from labelwise.components.dual_task import Answers
from labelwise.methods.base import NetFactory
from labelwise.methods.dtc import DualTaskConsistency, DualTaskConsistencyConfig
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(3000, 6000)


class Replay(nn.Module):
    """Stands in for the network: returns the given answers."""

    def __init__(self, logits, before_tanh):
        super().__init__()
        self.answers = Answers(logits, before_tanh.tanh())

    def forward(self, images):
        return self.answers


def with_targets(method, batch):
    labels = batch.labels.numpy()
    arguments = labels, batch.annotated.numpy(), np.ones((len(labels), labels.ndim - 1))
    extra = {
        name: torch.from_numpy(function(*arguments)) for name, function in method.extra_targets().items()
    }
    return batch._replace(extra=extra)


def one_structure(method, labels):
    """2 labelled, 2 unlabelled cases."""
    labels = torch.from_numpy(labels).long()
    labels[2:] = IGNORE
    annotated = torch.zeros(4, 2, dtype=torch.bool)
    annotated[:2] = True
    return with_targets(method, Batch(torch.zeros(4, 1, *labels.shape[1:]), labels, annotated))


def replayed(arrays, **settings):
    method = make_method("dtc", settings=settings)
    logits, before_tanh = (
        torch.from_numpy(arrays[name]).requires_grad_() for name in ("seg_logits", "sdm_pre_tanh")
    )
    method.network = Replay(logits, before_tanh)
    return method, (before_tanh, logits)


def test_it_agrees_with_the_official_code(golden):
    arrays = golden("dtc")
    method, inputs = replayed(arrays)
    batch = one_structure(method, arrays["label"])
    terms = method(batch, HALFWAY)
    assert method.config.weight(HALFWAY) == pytest.approx(float(arrays["cons_weight"]), rel=1e-5)
    consistency = method.consistency(method.network(batch.images), batch)
    total = torch.stack(list(terms.values())).sum()
    for value, key in ((terms["supervised"], "sup"), (consistency, "cons"), (total, "total")):
        torch.testing.assert_close(value, torch.tensor(arrays[f"loss_{key}"]), **CLOSE)
    for value, key in ((consistency, "cons"), (total, "total")):
        gradients = torch.autograd.grad(value, inputs, retain_graph=True)
        for gradient, name in zip(gradients, ("sdm_pre_tanh", "seg_logits"), strict=True):
            expected = torch.from_numpy(arrays[f"grad_{key}_wrt_{name}"])
            # k = 1500 magnifies the last digit of tanh: compared with the largest entry of the gradient.
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_distance_and_mask_are_those_of_the_official_code(golden):
    arrays = golden("dtc")
    method, _ = replayed(arrays)
    target = one_structure(method, arrays["label"]).extra["signed_distance"][:2, 0]
    largest = [target.clamp_min(0).amax((1, 2, 3)), (-target).clamp_min(0).amax((1, 2, 3))]
    outside, inside = (value.view(2, 1, 1, 1) for value in largest)
    relative = target.clamp_min(0) / outside + target.clamp_max(0) / inside
    torch.testing.assert_close(relative, torch.from_numpy(arrays["sdm_gt_labelled"]), **CLOSE)
    mask = method.mask_of(torch.from_numpy(arrays["sdm_pre_tanh"]).tanh())
    torch.testing.assert_close(mask, torch.from_numpy(arrays["dist_to_mask"]), rtol=1e-4, atol=1e-5)


def test_the_mask_is_one_half_on_the_surface_and_finite_at_the_ends():
    method = make_method("dtc")
    distances = torch.tensor([-1.0, -0.01, 0.0, 0.01, 1.0], dtype=torch.float64, requires_grad=True)
    mask = method.mask_of(distances)
    assert mask.tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-6)
    (gradient,) = torch.autograd.grad(mask.sum(), distances)
    assert gradient.tolist() == pytest.approx([0, -4.586e-4, -375, -4.586e-4, 0], abs=1e-6)


def test_labelled_cases_take_part_in_the_consistency_unless_only_open_ones_shall(golden):
    arrays = golden("dtc")
    for where, expected in (("all", [True, True, True, True]), ("open", [False, False, True, True])):
        method, (_, logits) = replayed(arrays, consistency_on=where)
        consistency = method(one_structure(method, arrays["label"]), HALFWAY)["consistency"]
        (gradient,) = torch.autograd.grad(consistency, logits)
        assert (gradient.abs().amax((1, 2, 3, 4)) > 0).tolist() == expected


def test_partly_annotated_cases_are_open_for_their_other_structures_only():
    method = make_method("dtc", settings={"consistency_on": "open", "known_negatives": False})
    batch = with_targets(method, make_batch("partial"))
    logits = torch.zeros(1, 3, 32, 32, 32, requires_grad=True)
    consistency = method.consistency(Answers(logits, torch.full_like(logits, -0.5)), batch)
    (gradient,) = torch.autograd.grad(consistency, logits)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).tolist() == [False, True, True]
    supervised = method(batch, HALFWAY)["supervised"]
    heads = (method.network.segmentation.head, method.network.distance_head)
    for gradient in torch.autograd.grad(supervised, [head.convolution.weight for head in heads]):
        assert (gradient.flatten(1).abs().amax(1) > 0).tolist() == [True, False, False]


def test_with_everything_known_and_only_open_voxels_there_is_nothing_to_agree_on():
    method = make_method("dtc", settings={"consistency_on": "open"})
    terms = method(with_targets(method, make_batch("full", "full")), HALFWAY)
    assert terms["consistency"].item() == 0
    assert terms["consistency"].requires_grad


def test_where_a_structure_is_labelled_the_maps_of_others_learn_their_absence():
    batch = make_batch("partial")
    gradients = []
    for on in (True, False):
        method = make_method("dtc", settings={"known_negatives": on})
        logits = torch.zeros(1, 3, 32, 32, 32, requires_grad=True)
        method.network = Replay(logits, torch.zeros(1, 3, 32, 32, 32, requires_grad=True))
        supervised = method(with_targets(method, batch), HALFWAY)["supervised"]
        gradients.append(torch.autograd.grad(supervised, logits)[0])
    liver = batch.labels[0] == 1
    expected = 0.25 * liver / liver.sum()  # sigmoid 1/2, mean over the liver, and over the two pairs
    torch.testing.assert_close(gradients[0][0, 1:] - gradients[1][0, 1:], expected.expand(2, -1, -1, -1))
    assert gradients[0][0, 0].equal(gradients[1][0, 0])


def test_ignored_voxels_are_in_no_supervised_sum():
    method = make_method("dtc", settings={"cross_entropy_weight": 1.0, "known_negatives": False})
    batch = make_batch("full", "partial")
    batch.labels[:, 20:] = IGNORE
    batch = with_targets(method, batch)
    logits = torch.zeros(2, 3, 32, 32, 32, requires_grad=True)
    distances = torch.zeros(2, 3, 32, 32, 32, requires_grad=True)
    method.network = Replay(logits, distances)
    supervised = method(batch, HALFWAY)["supervised"]
    for gradient in torch.autograd.grad(supervised, (logits, distances)):
        assert gradient[:, :, 20:].abs().max() == 0
        assert gradient[0, :, :20].abs().amax((1, 2, 3)).min() > 0
        assert gradient[1, 1:].abs().max() == 0


def test_a_structure_without_a_voxel_still_teaches_the_distances():
    batch = make_batch("full", "none", absent="pancreas")
    for absent, teaches in (("far", True), ("skip", False)):
        method = make_method("dtc", settings={"absent_distance": absent})
        supervised = method(with_targets(method, batch), HALFWAY)["supervised"]
        (gradient,) = torch.autograd.grad(supervised, method.network.distance_head.convolution.weight)
        assert bool(gradient[2].abs().max() > 0) == teaches


def test_distances_stay_in_full_precision_under_autocast():
    method = make_method("dtc")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = method.network(make_batch("none").images)
    assert answers.distances.dtype == answers.logits.dtype == torch.float32
    remainder = answers.distances - answers.distances.bfloat16().float()
    assert remainder.abs().max() > 0, "the head itself must not round to half precision"


def test_any_network_of_the_factory_gets_two_heads():
    for name in ("vnet", "unet"):
        nets = NetFactory(name, {"width": 4}, dims=2, in_channels=1, num_classes=SPACE.num_classes)
        method = DualTaskConsistency(nets, DualTaskConsistencyConfig())
        answers = method.network(torch.randn(1, 1, 32, 32))
        assert answers.logits.shape == answers.distances.shape == (1, 3, 32, 32)
        assert answers.distances.abs().max() < 1


def test_the_maps_can_begin_with_a_prior():
    method = make_method("dtc", settings={"structure_prior": 0.01})
    scores = method.predictor()(make_batch("none").images)
    assert scores[:, 1:].mean().item() == pytest.approx(0.01, abs=0.01)
