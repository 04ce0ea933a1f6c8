"""Averages, ramps, views and completed teachers."""

from __future__ import annotations

import pytest
import torch

from conftest import make_batch
from labelwise.components.batches import add_noise, select_rows, strong_view
from labelwise.losses.partial import complete
from labelwise.types import IGNORE, Progress


def test_the_ramp_agrees_with_the_official_code(golden):
    arrays = golden("mean_teacher")
    for step, expected in zip(arrays["ramp_t"], arrays["ramp_sigmoid_len40"], strict=True):
        assert Progress(float(step), 40).ramp(1.0) == pytest.approx(float(expected), rel=1e-6)
    assert Progress(3, 40).ramp(0.0) == 1.0
    assert Progress(9, 40).ramp(0.5, after=0.25) == 0.0
    assert Progress(20, 40).ramp(0.5, after=0.25) == Progress(20, 40).ramp(1.0)


def test_chosen_rows_are_those_of_an_index_and_pass_the_gradient_on():
    values = torch.arange(12.0).reshape(4, 3).requires_grad_()
    assert torch.equal(select_rows(values, [3, 1]), values[[3, 1]])
    select_rows(values, [3, 1]).sum().backward()
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
