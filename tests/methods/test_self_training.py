"""Self-training: what the teacher may say, what boxes carry with them, and how the weights rise."""

from __future__ import annotations

import pytest
import torch

from conftest import SPACE, make_batch, make_method
from labelwise.losses.partial import possible_classes, supervised
from labelwise.methods.self_training.method import Targets, complete_labels, partners, splice
from labelwise.methods.self_training.reliability import Reliability
from labelwise.types import IGNORE, Progress


def method_with(**settings):
    return make_method("self_training", dims=2, settings=settings)


def test_the_teacher_names_only_classes_that_the_labels_leave_open():
    method = method_with(confidence=0.0, reliability=False)
    batch = make_batch("full", "partial", "none", dims=2)
    target, trust = complete_labels(method.teacher, batch, method.config, method.reliability)
    possible = possible_classes(batch.labels, batch.annotated)
    assert possible.gather(1, target.unsqueeze(1))[1:].all()
    assert (trust[0] == 0).all(), "a complete case needs no teacher"
    assert (trust[1][batch.labels[1] > 0] == 0).all(), "a labelled voxel needs no teacher"
    assert (trust[2] > 0).all()


def test_trust_rises_evenly_from_the_confidence_to_1():
    method = method_with(confidence=0.6, reliability=False)
    logits = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.55, 0.45]], dtype=torch.float64).log()
    method.teacher.network = torch.nn.Identity()
    two = logits.T.reshape(1, 2, 3, 1)
    batch = make_batch("none", dims=2)._replace(
        images=two,
        weak_images=two,
        labels=torch.full((1, 3, 1), IGNORE),
        annotated=torch.zeros(1, 2, dtype=torch.bool),
        annotated_on_host=((False, False),),
    )
    _, trust = complete_labels(method.teacher, batch, method.config, method.reliability)
    assert trust.flatten().tolist() == pytest.approx([0.75, 0.25, 0.0])


def test_the_teacher_sees_the_weak_view_and_the_student_the_strong_one():
    method = method_with(cut_mix=0.0)
    seen = {}
    method.student.encoder.register_forward_hook(
        lambda module, inputs, output: seen.update(student=inputs[0])
    )
    method.teacher.network.register_forward_hook(
        lambda module, inputs, output: seen.update(teacher=inputs[0])
    )
    batch = make_batch("full", "none", dims=2)
    method(batch._replace(weak_images=batch.images + 7), Progress(5, 10))
    assert torch.equal(seen["student"], batch.images)
    assert torch.equal(seen["teacher"], batch.images[1:] + 7)


def test_a_box_brings_the_image_the_labels_and_what_is_annotated_of_the_same_case():
    method = method_with(cut_mix=1.0, box_area=(0.3, 0.3))
    batch = make_batch("full", "partial", "none", dims=2)
    marks = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    target, trust = batch.labels * 0, marks[:, 0]
    images, labels, annotated, _, mixed_trust, _ = splice(
        batch._replace(images=marks), Targets(target, trust), method.config
    )
    origin = images[:, 0].long()
    assert (origin != torch.arange(3).view(3, 1, 1)).flatten(1).float().mean(1).min() > 0.2
    assert torch.equal(mixed_trust.long(), origin)
    assert torch.equal(labels, batch.labels.gather(0, origin))
    everywhere = batch.annotated.view(3, SPACE.num_classes, 1, 1).expand(-1, -1, 32, 32)
    assert torch.equal(annotated, everywhere.gather(0, origin.unsqueeze(1).expand_as(annotated)))


def test_only_unlabelled_cases_change_boxes_if_asked():
    method = method_with(cut_among="unlabelled", cut_mix=1.0)
    partner = partners(make_batch("full", "partial", "none", dims=2), [0, 1, 2], method.config.cut_among)
    assert partner == [0, 2, 1]


def test_a_single_case_has_no_partner_but_itself():
    assert partners(make_batch("none", dims=2), [0], "all") == [0]


def test_the_weight_rises_over_the_ramp_and_stays():
    batch, terms = make_batch("none", "none", dims=2), []
    for step in (0, 10, 20, 99):
        method = method_with(pseudo_weight=2.0, ramp=0.2, cut_mix=0.0, confidence=0.0, reliability=False)
        terms.append(method(batch, Progress(step, 100))["pseudo"].item())
    assert terms[0] == 0
    assert terms[2] > 0
    assert [term / terms[2] for term in terms] == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_with_complete_labels_and_no_boxes_it_is_supervised_learning():
    method = method_with(cut_mix=0.0)
    batch = make_batch("full", "full", dims=2)
    terms = method(batch, Progress(5, 10))
    logits = method.student(batch.images)
    expected = supervised(logits, batch.labels, batch.annotated, squared=True, pooling="batch")
    torch.testing.assert_close(terms["supervised"], expected)
    assert terms["pseudo"].item() == 0


def test_the_whole_objective_is_the_sum_that_the_page_says():
    method = method_with(cut_mix=0.0, confidence=0.0, pseudo_weight=0.7, ramp=0.1, reliability=False)
    batch = make_batch("none", "none", dims=2)
    terms = method(batch, Progress(50, 100))
    logits = method.student(batch.images).double()
    probabilities = method.teacher(batch.images).softmax(1)
    trust, target = (
        part.double() if number == 0 else part for number, part in enumerate(probabilities.max(1))
    )
    surprise = -logits.log_softmax(1).gather(1, target.unsqueeze(1))[:, 0]
    cross_entropy = (trust * surprise).sum() / trust.sum()
    p, truth = logits.softmax(1), torch.nn.functional.one_hot(target, 4).movedim(-1, 1).double()
    weighted = trust.unsqueeze(1)
    common, size, true = ((part * weighted).sum((0, 2, 3)) for part in (p * truth, p * p, truth))
    dice = 1 - (2 * common + 1e-5) / (size + true + 1e-5)
    expected = 0.7 * trust.mean() * (cross_entropy + dice[1:][true[1:] > 0].mean()) / 2
    assert terms["pseudo"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_teacher_forgets_half_within_its_half_life():
    method = method_with(teacher_half_life=0.05)
    for parameter in method.student.parameters():
        parameter.data.fill_(0.0)
    for parameter in method.teacher.network.parameters():
        parameter.data.fill_(1.0)
    for step in range(900, 950):
        method.after_step(Progress(step, 1000))
    assert next(method.teacher.network.parameters()).flatten()[0].item() == pytest.approx(0.5, rel=1e-4)


def test_a_fresh_student_learns_from_the_finished_teacher_of_the_round_before():
    first, second = method_with(), make_method("noisy_student", dims=2, seed=9)
    fresh = {name: tensor.clone() for name, tensor in second.student.state_dict().items()}
    missing = second.start_from(first)
    finished = first.teacher.network.state_dict()
    assert all(torch.equal(tensor, finished[name]) for name, tensor in second.labeller.state_dict().items())
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in second.student.state_dict().items())
    assert all(name.startswith(("student.", "teacher.")) for name in missing)


def test_the_finished_teacher_is_never_trained():
    second = make_method("noisy_student", dims=2)
    before = {name: tensor.clone() for name, tensor in second.labeller.state_dict().items()}
    sum(second(make_batch("full", "none", dims=2), Progress(50, 100)).values()).backward()
    second.after_step(Progress(50, 100))
    assert all(parameter.grad is None for parameter in second.labeller.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in second.labeller.state_dict().items())


def test_structures_are_believed_by_their_precision_and_background_by_the_recall_of_what_is_not_annotated():
    reliability = Reliability(3)
    # One case annotates both structures in six voxels, of which the networks name some rightly.
    said = torch.tensor([[1, 1, 1, 0, 2, 2]])
    truth = torch.tensor([[1, 1, 0, 2, 2, IGNORE]])
    logits = torch.nn.functional.one_hot(said, 3).movedim(-1, 1).double()
    everything = torch.ones(1, 3, 6, dtype=torch.bool)
    reliability.observe(logits, truth, everything, keep=0.5)
    assert reliability.found.tolist() == [0.0, 2.0, 1.0]  # background is no structure: label 0 may hide some
    recall, precision = [2 / 2, 1 / 2], [2 / 3, 1 / 1]
    rows = torch.tensor([[False, False, False], [False, True, False], [False, False, True]])
    found = reliability.factors(rows)
    assert found[:, 1:].flatten().tolist() == pytest.approx(precision * 3)
    assert found[:, 0].tolist() == pytest.approx([sum(recall) / 2, recall[1], recall[0]])


def test_what_a_case_does_not_annotate_says_nothing_of_precision():
    reliability = Reliability(3)
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2]]), 3).movedim(-1, 1).double()
    liver_only = torch.tensor([[False, True, False]]).unsqueeze(-1).expand(1, 3, 2)
    reliability.observe(logits, torch.tensor([[1, 0]]), liver_only, keep=0.0)
    assert reliability.named.tolist() == [0.0, 1.0, 0.0]


def test_a_network_that_has_found_nothing_yet_teaches_nothing():
    method = method_with(confidence=0.0)
    _, trust = complete_labels(method.teacher, make_batch("none", dims=2), method.config, method.reliability)
    assert (trust == 0).all()


def test_background_in_a_gap_counts_by_the_recall_of_all_structures():
    reliability = Reliability(3)
    reliability.found.copy_(torch.tensor([0.0, 1.0, 1.0]))
    reliability.labelled.copy_(torch.tensor([0.0, 1.0, 4.0]))
    reliability.named.copy_(torch.tensor([0.0, 1.0, 1.0]))
    liver_only = torch.tensor([[False, True, False]])
    counted = reliability.of(torch.tensor([[0, 0]]), torch.tensor([[0, IGNORE]]), liver_only)
    assert counted.tolist() == [[0.25, 0.625]]
