"""The running average of the weights that predict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import make_method
from labelwise.methods.base import Softmax
from labelwise.train.average import AveragedWeights
from labelwise.types import Progress


def linear_method() -> nn.Module:
    method = make_method("supervised")
    return method.double()


def test_the_average_after_a_constant_sequence_is_that_constant_whatever_the_start():
    method = linear_method()
    average = AveragedWeights(method, method.predictor(), half_life=0.01)
    for parameter in method.parameters():
        parameter.data.fill_(0.25)
    for step in range(3):
        average.follow(Progress(step, 1000))
    assert all(bool((tensor == 0.25).all()) for tensor in average.average.values() if tensor.dim() > 1)


def test_after_one_half_life_half_of_the_old_value_is_left():
    method = linear_method()
    average = AveragedWeights(method, method.predictor(), half_life=0.01)
    for tensor in average.average.values():
        tensor.fill_(1.0)
    for parameter in method.parameters():
        parameter.data.fill_(0.0)
    for step in range(500, 510):
        average.follow(Progress(step, 1000))
    left = next(iter(average.average.values()))
    assert left.flatten()[0].item() == pytest.approx(0.5, abs=1e-12)


def test_in_place_the_method_computes_with_the_average_and_afterwards_with_its_own_weights():
    method = linear_method()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    average = AveragedWeights(method, method.predictor(), half_life=0.01)
    for tensor in average.average.values():
        tensor.fill_(0.5)
    with average.in_place():
        inside = dict(method.state_dict())
        assert all(bool((inside[name] == 0.5).all()) for name in average.average)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_a_teacher_that_predicts_is_averaged_and_its_student_is_not():
    method = make_method("mean_teacher")
    average = AveragedWeights(method, method.predictor(), half_life=0.01)
    assert average.average
    assert all(name.startswith("teacher.") for name in average.average)


def test_the_average_has_batch_norm_statistics_of_its_own_and_the_trained_weights_keep_theirs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)).double()
    average = AveragedWeights(network, Softmax(network), half_life=0.01)
    for tensor in average.average.values():
        tensor.fill_(2.0)  # weight and bias of the convolution, too
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    average.renew_statistics(lambda: [images])
    features = 2 * images + 2
    assert average.average["1.running_mean"].tolist() == pytest.approx([features.mean().item()] * 3)
    assert average.average["1.running_var"].tolist() == pytest.approx([features.var().item()] * 3)
    assert network[1].running_mean.tolist() == [0.0] * 3
