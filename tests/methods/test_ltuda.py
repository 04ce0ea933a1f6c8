"""Both stages of LTUDA against the official code's arrays, on every kind of case, and from one stage to the next."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from conftest import SPACE, make_batch, make_method
from labelwise.components.batches import _warn_of_a_single_case, mix
from labelwise.errors import ConfigError
from labelwise.losses.partial import members
from labelwise.methods.base import threshold_scores
from labelwise.methods.ltuda.cda import (
    LtudaConfig,
    Targets,
    annotated_loss,
    complete_targets,
    partial_bce,
    partial_dice,
    pseudo_loss,
    teacher_labels,
    views,
    weak_loss,
)
from labelwise.methods.ltuda.method import bank_owners
from labelwise.nets.factory import NetFactory
from labelwise.types import IGNORE, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)
BOTH = ("ltuda_cda", "ltuda")

PUBLISHED = LtudaConfig(known_negatives=False)


@pytest.fixture
def arrays(golden):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in golden("ltuda").items()}


# partial cross-entropy


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("name", "target"),
    [("partial", "pbce_target_partial"), ("full", "pbce_target_full"), ("mixed", "mix_partial_out")],
)
def test_the_partial_cross_entropy_agrees_with_the_official_code(arrays, name, target, reduction):
    logits, target = arrays["pbce_logits"].clone().requires_grad_(), arrays[target]
    everywhere = torch.ones(4, 6, 5, dtype=torch.bool)
    loss = partial_bce(logits, target == 1, target >= 0, everywhere, reduction)
    torch.testing.assert_close(loss, arrays[f"pbce_{name}_loss_{reduction}"], **CLOSE)
    (gradient,) = torch.autograd.grad(loss, logits)
    if f"pbce_{name}_grad_{reduction}" in arrays:
        expected = arrays[f"pbce_{name}_grad_{reduction}"]
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_where_nothing_is_known_the_loss_is_zero_with_a_zero_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nothing = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    for reduction in ("sum", "mean"):
        loss = partial_bce(logits, nothing, nothing, nothing[:, 0], reduction)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == gradient.abs().max() == 0


def test_voxels_that_the_labels_leave_out_do_not_count():
    """One case with 2 of 4 voxels left out: the mean is over the other two."""
    labels = torch.tensor([[1, 0, IGNORE, IGNORE]])
    targets = complete_targets(labels, torch.tensor([[True, True]]), torch.tensor([[1, 1, 1, 1]]))
    logits = torch.zeros(1, 1, 4)
    assert annotated_loss(logits, targets, PUBLISHED).item() == pytest.approx(np.log(2))
    assert pseudo_loss(logits, targets, "sum").item() == pytest.approx(np.log(2))


def test_where_a_structure_is_labelled_the_maps_of_others_learn_their_absence():
    """Two of four voxels are liver; the other two maps pay ln 2 there: half of the voxels, mean over both maps."""
    labels, annotated = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[False, True, False, False]])
    targets = complete_targets(labels, annotated, torch.zeros(1, 4, dtype=torch.int64))
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    more = annotated_loss(logits, targets, LtudaConfig()) - annotated_loss(logits, targets, PUBLISHED)
    assert more.item() == pytest.approx(np.log(2) / 2)
    (gradient,) = torch.autograd.grad(more, logits)
    assert gradient[0].tolist() == [[0, 0, 0, 0], [0.0625, 0.0625, 0, 0], [0.0625, 0.0625, 0, 0]]


def test_the_dice_of_annotated_structures_joins_their_cross_entropy():
    """Two structures, the second without a voxel: its Dice says nothing. p = 1/2 on 4 voxels, one of them liver."""
    labels, annotated = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[True, True, True]])
    targets = complete_targets(labels, annotated, torch.zeros(1, 4, dtype=torch.int64))
    logits = torch.zeros(1, 2, 4)
    alone, joined = (
        weak_loss(logits, targets, LtudaConfig(dice_weight=w, known_negatives=False)).item() for w in (0, 2)
    )
    assert joined - alone == pytest.approx(2 * (1 - 2 * 0.5 / (2 + 1)), abs=1e-4)
    assert partial_dice(logits, torch.zeros_like(targets.truth), targets.known).item() == 0


# pseudo-labels


def test_pseudo_labels_and_their_owners_agree_with_the_official_code(arrays):
    guesses = teacher_labels(arrays["pl_teacher_logits"], torch.zeros(4, 5, dtype=torch.bool), 0.5)
    assert torch.equal(guesses, arrays["pl_argmax"].long())
    annotated = members(arrays["pl_task"].long(), 5)
    labels = arrays["pl_hard"].long()
    targets = complete_targets(labels, annotated, guesses)
    assert torch.equal(targets.completed, arrays["pl_pseudo"].long())
    keep = arrays["mix_mask"][:, 0] == 1
    mixed = Targets(*(mix(target, target.roll(-1, 0), keep) for target in targets))
    assert torch.equal(mixed.completed, arrays["pl_pseudo_mixed"].long())
    for found, suffix in ((targets, ""), (mixed, "_mixed")):
        owners = bank_owners(found).view(4, 6, 5, 2)
        for number, bank in enumerate(("labeled", "unlabeled")):
            expected = arrays[f"pl_mask_{bank}{suffix}"].long()
            assert torch.equal(owners[..., number], expected.masked_fill(expected < 0, IGNORE)), bank


def test_full_partial_and_unlabelled_cases_become_what_the_table_says():
    annotated = torch.stack(
        [SPACE.annotated(structures) for structures in (SPACE.structures, ("liver",), ())]
    )
    labels = torch.tensor([[1, 2, 0, 0, IGNORE], [1, 0, 0, 0, IGNORE], [IGNORE] * 5])
    guesses = torch.tensor([[2, 3, 3, 0, 1], [2, 1, 2, 0, 2], [1, 2, 0, 3, 1]])
    targets = complete_targets(labels, annotated, guesses)
    out = IGNORE
    assert targets.completed.tolist() == [[1, 2, 0, 0, out], [1, 0, 2, 0, out], [1, 2, 0, 3, 1]]
    owners = bank_owners(targets).view(3, 5, 2)
    assert owners[..., 0].tolist() == [[1, 2, 0, 0, out], [1, 0, out, 0, out], [out, out, 0, out, out]]
    assert owners[..., 1].tolist() == [[out, out, 0, 0, out], [out, 0, 2, 0, out], [1, 2, 0, 3, 1]]
    assert targets.known.any(dim=2).tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_a_restricted_teacher_takes_the_second_best_structure_if_the_best_is_annotated():
    logits = torch.tensor([3.0, 2.0, -1.0]).view(1, 3, 1)
    liver = SPACE.annotated(["liver"]).unsqueeze(0)
    assert teacher_labels(logits, liver, 0.5).item() == 1
    assert teacher_labels(logits, liver, 0.5, restrict=True).item() == 2
    everything = SPACE.annotated(SPACE.structures).unsqueeze(0)
    assert teacher_labels(logits, everything, 0.5, restrict=True).item() == 0
    assert teacher_labels(logits, liver, 0.97).item() == 0


# views


def test_strong_views_are_spliced_from_the_batch_and_differ(arrays):
    method, batch = make_method("ltuda_cda", dims=2), make_batch("full", "partial", "none", dims=2)
    weak, first, second = views(batch, method.teacher, method.config)
    assert weak.images is batch.images
    nxt = batch.images.roll(-1, 0)
    for view in (first, second):
        assert torch.where(view.images == batch.images, True, view.images == nxt).all()
        inside = (view.images == nxt)[:, 0]
        assert (view.targets.completed == weak.targets.completed.roll(-1, 0))[inside].all()
        assert inside.flatten(1).any(dim=1).all()
    assert not torch.equal(first.images, second.images)


def test_without_cut_mix_the_strong_views_are_the_weak_one():
    method = make_method("ltuda_cda", dims=2, settings={"cut_mix": False})
    batch = make_batch("partial", "none", dims=2)
    for view in views(batch, method.teacher, method.config):
        assert view.images is batch.images


def test_a_batch_of_one_case_is_trained_without_mixing_and_with_a_warning(caplog):
    _warn_of_a_single_case.cache_clear()
    method = make_method("ltuda_cda", dims=2)
    with caplog.at_level(logging.WARNING, logger="labelwise"):
        for _ in range(2):
            terms = method(make_batch("partial", dims=2), HALFWAY)
    assert torch.stack(list(terms.values())).isfinite().all()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", BOTH)
def test_the_teacher_normalises_by_its_own_batch_or_by_the_training(name):
    batch = make_batch("partial", "none", dims=2)
    for choice, training in (("batch", True), ("eval", False)):
        method = make_method(name, dims=2, settings={"teacher_bn": choice})
        method(batch, HALFWAY)
        norm = next(part for part in method.teacher.modules() if isinstance(part, nn.BatchNorm2d))
        assert norm.training is training


# terms


def test_what_the_labels_leave_out_teaches_nothing():
    torch.manual_seed(0)
    labels = make_batch("full", "partial", dims=2).labels
    labels[:, :8] = IGNORE
    annotated = make_batch("full", "partial", dims=2).annotated
    found = []
    for _ in range(2):
        guesses = torch.randint(0, 4, labels.shape)
        guesses[:, 8:] = 2
        targets = complete_targets(labels, annotated, guesses)
        logits = torch.full((2, 3, *labels.shape[1:]), 0.3, requires_grad=True)
        loss = annotated_loss(logits, targets, PUBLISHED) + pseudo_loss(logits, targets, "sum")
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient[:, :, :8].abs().max() == 0 < gradient[:, :, 8:].abs().min()
        assert (bank_owners(targets).view(*labels.shape, 2)[:, :8] == IGNORE).all()
        found.append(loss.item())
    assert found[0] == found[1]


def test_pseudo_labels_count_from_the_start_unless_a_ramp_is_set():
    start, middle, end = (Progress(step, 100) for step in (0, 50, 99))
    published, ramped = (make_method("ltuda_cda", settings=s) for s in ({}, {"pseudo_ramp": 0.5}))
    assert [published.pseudo_weight(progress) for progress in (start, end)] == [1, 1]
    assert [ramped.pseudo_weight(p) for p in (start, middle, end)] == pytest.approx([np.exp(-5), 1, 1])


def test_a_bank_without_weight_costs_nothing():
    batch = make_batch("partial", "none", dims=2)
    method = make_method("ltuda", dims=2, settings={"labelled_weight": 0.0})
    terms = method(batch, HALFWAY)
    assert terms["labelled_prototype"].item() == 0 < terms["unlabelled_prototype"].item()


def test_the_banks_move_after_the_step_and_stay_unit_vectors():
    method = make_method("ltuda", dims=2, settings={"prototype_momentum": 0.5})
    before = method.student.prototypes.banks.clone()
    method(make_batch("full", "partial", dims=2), HALFWAY)
    assert torch.equal(method.student.prototypes.banks, before)
    method.after_step(HALFWAY)
    after = method.student.prototypes.banks
    assert not torch.equal(after, before)
    for bank in (after, method.teacher.network.prototypes.banks):
        torch.testing.assert_close(bank.norm(dim=2), torch.ones(2, SPACE.num_classes * 5))


def test_the_banks_of_the_teacher_follow_those_of_the_student():
    method = make_method("ltuda", dims=2, settings={"prototype_momentum": 0.5, "ema_decay": 0.75})
    teacher = method.teacher.network.prototypes.banks.clone()
    method(make_batch("full", "partial", dims=2), HALFWAY)
    method.after_step(HALFWAY)
    expected = 0.75 * teacher + 0.25 * method.student.prototypes.banks
    found = method.teacher.network.prototypes.banks
    torch.testing.assert_close(found, expected / expected.norm(dim=2, keepdim=True))


def test_a_complete_batch_moves_no_structure_of_the_unlabelled_bank():
    method = make_method("ltuda", dims=2, settings={"prototype_momentum": 0.5})
    before = method.student.prototypes.banks.clone()
    method(make_batch("full", "full", dims=2), HALFWAY)
    torch.testing.assert_close(method.moved[1, 5:], before[1, 5:])


def test_only_some_pixels_may_teach_the_prototypes():
    method = make_method("ltuda", dims=2, settings={"max_pixels": 64})
    terms = method(make_batch("full", "partial", dims=2), HALFWAY)
    assert torch.stack(list(terms.values())).isfinite().all()
    with_all = make_method("ltuda", dims=2, settings={"max_pixels": 10**6})
    plain = make_method("ltuda", dims=2)
    batch = make_batch("full", "partial", dims=2)
    torch.manual_seed(1)
    everything = with_all(batch, HALFWAY)
    torch.manual_seed(1)
    assert everything == plain(batch, HALFWAY)


# prediction


def test_scores_turn_to_a_structure_exactly_at_its_threshold():
    tau = (0.5, 0.3, 0.8)
    probabilities = torch.tensor([[0.49, 0.29, 0.79], [0.51, 0.0, 0.0], [0.0, 0.31, 0.0], [0.4, 0.2, 0.81]])
    logits = torch.logit(probabilities.clamp(1e-6, 1 - 1e-6)).unsqueeze(2)
    scores = threshold_scores(logits, tau)[:, :, 0]
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert scores.min() >= 0
    assert scores.max() <= 1
    plain = threshold_scores(logits, (0.5, 0.5, 0.5))[:, 1:, 0]
    torch.testing.assert_close(plain, logits.sigmoid()[:, :, 0])


def test_there_is_one_threshold_for_each_structure_or_the_settings_are_refused():
    for name in BOTH:
        assert make_method(name, settings={"threshold": 0.4}).thresholds == (0.4, 0.4, 0.4)
        assert make_method(name, settings={"prediction_thresholds": [0.5, 0.5, 0.3]}).thresholds[2] == 0.3
        with pytest.raises(ConfigError, match=r"2 numbers\n.*3, one for each structure"):
            make_method(name, settings={"prediction_thresholds": [0.5, 0.3]})


def test_the_three_classifiers_hold_the_same_weights_and_decide_differently():
    images = make_batch("full", dims=2).images
    kinds = ("linear", "labelled_prototype", "unlabelled_prototype")
    first, *others = [make_method("ltuda", dims=2, settings={"classifier": kind}) for kind in kinds]
    weights = first.predictor().state_dict()
    scores = [first.predictor().eval()(images)]
    for other in others:
        other.predictor().load_state_dict(weights)
        scores.append(other.predictor().eval()(images))
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[1], scores[2])
    for score in scores[1:]:
        torch.testing.assert_close(score.sum(dim=1), torch.ones_like(score[:, 0]))


@pytest.mark.parametrize("name", BOTH)
def test_student_or_teacher_can_be_kept(name):
    for choice in ("student", "teacher"):
        method = make_method(name, settings={"eval_model": choice})
        expected = method.student if choice == "student" else method.teacher.network
        assert method.predictor().network is expected


# from one stage to the next


def test_the_second_stage_starts_from_the_student_of_the_first():
    first, second = make_method("ltuda_cda", seed=1), make_method("ltuda", seed=2)
    with torch.no_grad():
        for parameter in first.student.parameters():
            parameter.add_(1)
    missing = second.start_from(first)
    assert missing
    assert all(".prototypes." in name for name in missing)
    for name, value in first.student.state_dict().items():
        assert torch.equal(second.student.state_dict()[name], value), name
    for name, value in second.student.state_dict().items():
        assert torch.equal(second.teacher.network.state_dict()[name], value), name


def test_the_published_network_of_the_second_stage_has_its_published_number_of_parameters():
    method = type(make_method("ltuda"))
    nets = NetFactory("ltuda_unet", {}, dims=2, in_channels=1, num_classes=5)
    student = method(nets, method.Config()).student
    learned = sum(parameter.numel() for parameter in student.parameters())
    assert learned + student.prototypes.banks.numel() == 13_406_158  # published: 13.41 M, banks counted
