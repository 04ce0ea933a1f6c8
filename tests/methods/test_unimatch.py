"""UniMatch: hand-computed losses, what becomes a target, and what the views are."""

from __future__ import annotations

import math

import pytest
import torch

from conftest import make_batch, make_method
from labelwise.losses.partial import open_voxels
from labelwise.methods.unimatch import Targets, UniMatchConfig, confident_loss
from labelwise.types import IGNORE, Progress

HALFWAY = Progress(50, 100)


def targets_of(labels):
    labels = torch.tensor(labels)
    return Targets(labels, torch.ones_like(labels, dtype=torch.bool))


# the loss


def test_the_cross_entropy_is_divided_by_all_voxels_and_the_dice_sees_the_certain_ones():
    """p = 1/2 at four voxels, two of them certain: CE ln 2 * 2 / 4; Dice 2 * 0.5 / (0.25 + 0.25 + 1)."""
    loss = confident_loss(torch.zeros(1, 2, 4), targets_of([[1, 0, IGNORE, IGNORE]]), UniMatchConfig())
    expected = (math.log(2) / 2 + 1 - 1 / 1.5) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_where_nothing_is_certain_the_loss_is_zero_with_a_zero_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = confident_loss(logits, targets_of([[[IGNORE] * 4] * 4] * 2), UniMatchConfig())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == gradient.abs().max() == 0


def test_uncertain_voxels_have_no_gradient():
    logits = torch.randn(1, 2, 4, requires_grad=True)
    confident_loss(logits, targets_of([[1, 0, IGNORE, 0]]), UniMatchConfig()).backward()
    assert logits.grad[0, :, 2].abs().max() == 0
    assert logits.grad[0, :, [0, 1, 3]].abs().min() > 0


# the targets


def test_only_voxels_of_which_the_weak_view_is_sure_become_targets():
    method = make_method("unimatch")
    sure, unsure = math.log(0.96 / 0.04), math.log(0.94 / 0.06)
    logits = torch.full((1, 4, 3), -50.0)
    logits[0, 0] = 0
    logits[0, 2] = torch.tensor([sure, unsure, -sure])
    unlabelled = torch.full((1, 3), IGNORE), torch.zeros(1, 4, dtype=torch.bool)
    targets = method.targets(logits, *unlabelled)
    assert targets.labels.tolist() == [[2, IGNORE, 0]]
    assert targets.counted.all()


def test_certainty_is_measured_among_the_classes_that_the_labels_leave_open():
    """Half liver, half spleen: nobody is sure, but where the liver is known to be absent it is the spleen."""
    method = make_method("unimatch")
    logits = torch.tensor([-50.0, 0, 0, -50.0]).view(1, 4, 1).repeat(2, 1, 2)
    labels = torch.tensor([[0, 1], [IGNORE, IGNORE]])
    annotated = torch.tensor([[False, True, False, False], [False] * 4])
    targets = method.targets(logits, labels, annotated)
    assert targets.labels.tolist() == [[2, 1], [IGNORE, IGNORE]]


def test_consistency_on_chooses_the_voxels():
    batch = make_batch("full", "partial", "none")
    logits = torch.zeros(3, 4, *batch.labels.shape[1:])
    logits[:, 2] = 20.0
    for choice, expected in (("unlabelled", None), ("open", open_voxels(batch.labels, batch.annotated))):
        method = make_method("unimatch", settings={"consistency_on": choice})
        targets = method.targets(logits, batch.labels, batch.annotated)
        if expected is None:
            assert targets.counted.all()
            assert torch.equal(targets.labels[1] == 1, batch.labels[1] == 1)
        else:
            assert torch.equal(targets.counted, expected)
            assert (targets.labels[~expected] == IGNORE).all()


def test_complete_cases_are_shown_in_strong_views_only_if_asked_for():
    batch = make_batch("full", "full")
    for choice in ("unlabelled", "open", "all"):
        terms = make_method("unimatch", settings={"consistency_on": choice})(batch, HALFWAY)
        for name in ("strong_views", "feature_dropout"):
            assert (terms[name].item() > 0) == (choice == "all")
            assert terms[name].requires_grad


def test_no_gradient_reaches_the_targets():
    method = make_method("unimatch", settings={"threshold": 0.0})
    logits = torch.randn(2, 4, 8, 8, 8, requires_grad=True)
    batch = make_batch("none", "none", size=8)
    targets = method.targets(logits, batch.labels, batch.annotated)
    assert not any(target.requires_grad for target in targets)
    assert not (targets.labels == IGNORE).any()


# the views


def test_boxes_move_images_and_targets_together():
    method = make_method(
        "unimatch", settings={"cut_mix": 1.0, "gamma": 0.0, "contrast": 0.0, "noise_std": 0.0}
    )
    labels = torch.tensor([0, 1]).view(2, 1, 1, 1).expand(2, 16, 16, 16).clone()
    images = labels.unsqueeze(1) * 2.0 - 1
    images[:, :, 0, 0, 0] += 0.5  # an image with one value only has no range
    torch.manual_seed(0)
    changed, targets = method.strong_view(images, Targets(labels, labels == labels))
    moved = targets.labels != labels
    assert moved.flatten(1).any(dim=1).all()
    torch.testing.assert_close((changed[:, 0] > 0).long(), targets.labels)


def test_without_cut_mix_geometry_and_targets_stay():
    method = make_method("unimatch", settings={"cut_mix": 0.0})
    images, labels = torch.randn(2, 1, 8, 8, 8), torch.randint(0, 4, (2, 8, 8, 8))
    changed, targets = method.strong_view(images, Targets(labels, labels >= 0))
    assert torch.equal(targets.labels, labels)
    assert (changed - images).abs().max() > 0.05


def test_feature_dropout_drops_whole_channels_of_the_chosen_cases_only():
    method = make_method("unimatch", settings={"feature_dropout": 0.5})
    seen = []
    method.student.decoder.register_forward_hook(lambda _, features, __: seen.extend(features[0]))
    images = make_batch("full", "none").images
    logits, dropped = method.weak_view(images, [1])
    assert (len(logits), len(dropped)) == (2, 1)
    for scale in seen:
        plain, changed = scale[1].flatten(1), scale[2].flatten(1)
        gone = (changed == 0).all(dim=1)
        torch.testing.assert_close(changed[~gone], 2 * plain[~gone])
    assert any((scale[2].flatten(1) == 0).all(dim=1).any() for scale in seen)


def test_the_weak_view_alone_is_a_plain_pass():
    method, batch = make_method("unimatch"), make_batch("full", "full")
    torch.testing.assert_close(method.weak_view(batch.images, [])[0], method.student(batch.images))


def test_a_single_unlabelled_case_is_enough():
    terms = make_method("unimatch", settings={"threshold": 0.0})(make_batch("none"), HALFWAY)
    assert terms["supervised"].item() == 0
    assert terms["strong_views"].item() > 0
    assert terms["feature_dropout"].item() > 0


def test_the_weights_scale_their_terms():
    batch, found = make_batch("full", "none", "partial"), []
    for weight in (0.5, 1.0):
        method = make_method("unimatch", settings={"views_weight": weight, "feature_weight": 2 * weight})
        torch.manual_seed(0)
        found.append(method(batch, HALFWAY))
    for name, factor in (("supervised", 1), ("strong_views", 2), ("feature_dropout", 2)):
        assert found[1][name].item() == pytest.approx(factor * found[0][name].item(), rel=1e-5)
