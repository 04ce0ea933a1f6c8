"""Averages, ramps, views and completed teachers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import make_batch
from labelwise.components.choose import take
from labelwise.components.ema import EmaTeacher
from labelwise.components.perturb import add_noise, strong_view
from labelwise.components.pseudo_label import complete
from labelwise.components.ramps import linear_ramp, sigmoid_ramp
from labelwise.types import IGNORE


def test_ramps_agree_with_the_official_code(golden):
    arrays = golden("mean_teacher")
    for step, expected in zip(arrays["ramp_t"], arrays["ramp_sigmoid_len40"], strict=True):
        assert sigmoid_ramp(float(step), 40) == pytest.approx(float(expected), rel=1e-6)
    for step, expected in zip(arrays["ramp_t"], arrays["ramp_linear_len40"], strict=True):
        assert linear_ramp(float(step), 40) == pytest.approx(float(expected), rel=1e-6)
    assert sigmoid_ramp(3, 0) == linear_ramp(3, 0) == 1.0


def test_the_average_agrees_with_the_official_code(golden):
    arrays = golden("mean_teacher")
    student = nn.Linear(3, 1, bias=False)
    teacher = EmaTeacher(student, decay=float(arrays["ema_decay"]))
    teacher.network.weight.data.copy_(torch.from_numpy(arrays["ema_teacher_init"]))
    for step, (weights, expected) in enumerate(
        zip(arrays["ema_student"], arrays["ema_teacher"], strict=True)
    ):
        student.weight.data.copy_(torch.from_numpy(weights))
        teacher.follow(student, step)
        torch.testing.assert_close(
            teacher.network.weight[0], torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6
        )


def test_after_the_first_step_the_teacher_is_the_student():
    student = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    teacher = EmaTeacher(student, decay=0.99)
    student[0].weight.data += 1
    student(torch.randn(2, 1, 4, 4, 4))
    teacher.follow(student, 0)
    for mine, theirs in zip(
        teacher.network.state_dict().values(), student.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_without_a_warm_up_the_decay_is_constant_and_memories_are_averaged():
    student = nn.Linear(2, 2)
    student.register_buffer("memory", torch.ones(2))
    student.register_buffer("statistics", torch.ones(2))
    teacher = EmaTeacher(student, decay=0.75, warm_up=False, averaged_buffers=["memory"])
    teacher.network.memory.zero_()
    teacher.network.statistics.zero_()
    teacher.follow(student, 0)
    assert teacher.network.memory.tolist() == [0.25, 0.25]
    assert teacher.network.statistics.tolist() == [1, 1]


def test_the_teacher_takes_part_in_no_gradient():
    student = nn.Conv3d(1, 2, 1)
    teacher = EmaTeacher(student, decay=0.9)
    assert not teacher(torch.randn(1, 1, 2, 2, 2)).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_chosen_rows_are_those_of_an_index_and_pass_the_gradient_on():
    values = torch.arange(12.0).reshape(4, 3).requires_grad_()
    assert torch.equal(take(values, [3, 1]), values[[3, 1]])
    take(values, [3, 1]).sum().backward()
    assert values.grad.sum(dim=1).tolist() == [0, 3, 0, 3]


def test_noise_is_clipped():
    images = torch.zeros(2, 1, 20, 20)
    difference = add_noise(images, 0.1, 0.2)
    assert 0.15 < difference.abs().max() <= 0.2
    assert difference.std() == pytest.approx(0.1, abs=0.02)


def test_the_strong_view_is_another_image_of_the_same_thing():
    torch.manual_seed(0)
    images = make_batch("full", "full").images
    view = strong_view(images)
    assert view.shape == images.shape
    assert view.isfinite().all()
    assert (view - images).abs().mean() > 0.05
    assert torch.corrcoef(torch.stack([view.flatten(), images.flatten()]))[0, 1] > 0.7
    constant = strong_view(torch.ones(1, 1, 4, 4))
    assert constant.isfinite().all()


class TestComplete:
    annotated = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])
    labels = torch.tensor([[2, 0], [1, 0], [IGNORE, IGNORE]])
    probabilities = torch.tensor([[[0.2, 0.5], [0.3, 0.25], [0.5, 0.25]]] * 3)

    def test_worked_out_by_hand(self):
        completed = complete(self.probabilities, self.labels, self.annotated)
        # Complete case: the label. Partly labelled: liver where it is drawn; elsewhere liver is impossible.
        assert torch.equal(completed[0], torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
        torch.testing.assert_close(completed[1], torch.tensor([[0.0, 2 / 3], [1.0, 0.0], [0.0, 1 / 3]]))
        torch.testing.assert_close(completed[2], self.probabilities[2])

    def test_a_teacher_without_an_opinion_counts_evenly(self):
        sure_of_liver = torch.tensor([[[0.0], [1.0], [0.0]]])
        completed = complete(sure_of_liver, torch.tensor([[0]]), self.annotated[1:2])
        torch.testing.assert_close(completed, torch.tensor([[[0.5], [0.0], [0.5]]]))

    def test_no_gradient_reaches_the_teacher(self):
        probabilities = self.probabilities.clone().requires_grad_()
        assert not complete(probabilities, self.labels, self.annotated).requires_grad
