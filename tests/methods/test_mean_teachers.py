"""Mean Teacher and UA-MT against the official code's arrays: every output of a network is given, the rest is ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_batch, make_method
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(3000, 6000)


class Replay(nn.Module):
    """Stands in for a network: returns the given logits, one after the other."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = list(outputs)

    def forward(self, images):
        return self.outputs.pop(0)


def replayed(name, student, *teacher, **settings):
    method = make_method(name, settings=settings)
    method.student = Replay(student)
    method.teacher = Replay(*teacher)
    return method


def batch_of(arrays, num_classes=2):
    """2 labelled, 2 unlabelled cases."""
    labels = torch.from_numpy(arrays["label"]).long()
    labels[2:] = IGNORE
    annotated = torch.zeros(4, num_classes, dtype=torch.bool)
    annotated[:2] = True
    return Batch(torch.zeros(4, 1, *labels.shape[1:]), labels, annotated)


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def test_mean_teacher_agrees_with_the_official_code(golden):
    arrays = golden("mean_teacher")
    student = tensor(arrays["logits_student"]).requires_grad_()
    method = replayed("mean_teacher", student, tensor(arrays["logits_teacher"]))
    batch = batch_of(arrays)
    distance = method.consistency(method.student(batch.images), batch)
    torch.testing.assert_close(distance, tensor(arrays["mt_cons"]).float(), **CLOSE)
    (gradient,) = torch.autograd.grad(distance, student)
    torch.testing.assert_close(gradient, tensor(arrays["grad_mt_wrt_student"]).float(), **CLOSE)
    assert gradient[:2].abs().max() == 0, "labelled cases take no part in the consistency"


def test_ua_mt_agrees_with_the_official_code(golden):
    arrays = golden("mean_teacher")
    student = tensor(arrays["logits_student"]).requires_grad_()
    passes = [tensor(arrays["logits_teacher"]), *tensor(arrays["logits_mc"])]
    method = replayed("ua_mt", student, *passes)
    terms = method(batch_of(arrays), HALFWAY)
    torch.testing.assert_close(terms["supervised"], tensor(arrays["loss_sup"]).float(), **CLOSE)
    assert method.config.weight(HALFWAY) == pytest.approx(float(arrays["cons_weight"]), rel=1e-5)
    distance = terms["consistency"] / method.config.weight(HALFWAY)
    torch.testing.assert_close(distance, tensor(arrays["uamt_cons_dist"]).float(), **CLOSE)
    total = terms["supervised"] + terms["consistency"]
    torch.testing.assert_close(total, tensor(arrays["loss_total"]).float(), **CLOSE)
    gradients = [
        torch.autograd.grad(term, student, retain_graph=True)[0]
        for term in (distance, terms["supervised"], total)
    ]
    for gradient, key in zip(gradients, ("cons", "sup", "total"), strict=True):
        torch.testing.assert_close(gradient, tensor(arrays[f"grad_{key}_wrt_student"]).float(), **CLOSE)


def test_ua_mt_agrees_with_the_calculation_for_four_classes(golden):
    arrays = golden("mean_teacher")
    student = tensor(arrays["mcls_logits_student"]).float()
    passes = [tensor(arrays["mcls_logits_teacher"]).float(), *tensor(arrays["mcls_logits_mc"]).float()]
    method = replayed("ua_mt", student, *passes)
    labels = torch.full((2, *student.shape[2:]), IGNORE)
    batch = Batch(torch.zeros(2, 1, *student.shape[2:]), labels, torch.zeros(2, 4, dtype=torch.bool))
    distance = method.consistency(student, batch, HALFWAY)
    torch.testing.assert_close(distance, tensor(arrays["mcls_cons_dist"]).float(), **CLOSE)
    assert method.threshold(HALFWAY) * np.log(4) == pytest.approx(float(arrays["mcls_threshold"]), rel=1e-5)


def test_no_certain_voxel_costs_nothing():
    method = make_method("ua_mt", settings={"threshold_start": 0.0, "threshold_end": 0.0})
    batch = make_batch("none", "none")
    distance = method.consistency(method.student(batch.images), batch, HALFWAY)
    assert distance.item() == 0


def test_where_everything_is_known_there_is_nothing_to_agree_on():
    for name in ("mean_teacher", "ua_mt"):
        method = make_method(name)
        terms = method(make_batch("full", "full"), HALFWAY)
        assert terms["consistency"].item() == 0
        assert terms["consistency"].requires_grad


def test_consistency_on_all_includes_complete_cases():
    method = make_method("mean_teacher", settings={"consistency_on": "all"})
    assert method(make_batch("full", "full"), HALFWAY)["consistency"].item() > 0


def test_the_weight_rises_in_stairs_to_the_published_end():
    method = make_method("mean_teacher")
    weights = [method.config.weight(Progress(step, 6000)) for step in (0, 149, 150, 5999)]
    assert weights[0] == weights[1] < weights[2]
    assert weights[3] == pytest.approx(0.0997, abs=1e-4)


def test_student_or_teacher_can_be_kept():
    for choice in ("student", "teacher"):
        method = make_method("mean_teacher", settings={"eval_model": choice})
        expected = method.student if choice == "student" else method.teacher.network
        assert method.predictor().network is expected
