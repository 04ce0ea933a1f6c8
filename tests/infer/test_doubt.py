"""What scores say of themselves: values by hand, and the same sums however the scan is swept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from labelwise.infer import doubt as module
from labelwise.infer.doubt import Doubt, as_chances
from labelwise.infer.sliding_window import InferenceConfig, predict_labels, predict_scores


def test_the_expected_dice_is_the_overlap_that_the_scores_promise():
    # Three voxels: liver with 0.8, liver with 0.6, background with 0.9.
    scores = torch.tensor([[0.2, 0.4, 0.9], [0.8, 0.6, 0.1]])[:, :, None, None]
    doubt = Doubt()
    doubt.add(scores)
    _, liver = doubt.certainties()
    assert liver.voxels == 2
    assert liver.expected_dice == pytest.approx(2 * (0.8 + 0.6) / (2 + 0.8 + 0.6 + 0.1))
    entropies = [-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in (0.8, 0.6)]
    assert liver.entropy == pytest.approx(sum(entropies) / 2)


def test_a_class_that_is_nowhere_noticed_is_surely_absent():
    doubt = Doubt()
    doubt.add(torch.tensor([1 - 1e-4, 1e-4])[:, None, None, None].expand(2, 50, 50, 50))
    assert doubt.certainties()[1].expected_dice is None


def test_a_certain_answer_is_expected_to_be_right():
    doubt = Doubt()
    doubt.add(nn.functional.one_hot(torch.arange(8) % 2, 2).T.float().reshape(2, 2, 2, 2))
    assert [each.expected_dice for each in doubt.certainties()] == [1, 1]
    assert [each.entropy for each in doubt.certainties()] == [pytest.approx(0), pytest.approx(0)]


def test_scores_are_summed_in_pieces_as_at_once(monkeypatch):
    scores = torch.rand(3, 9, 5, 4, generator=torch.Generator().manual_seed(0))
    at_once, in_pieces = Doubt(), Doubt()
    at_once.add(scores)
    monkeypatch.setattr(module, "_PIECE", 100)
    in_pieces.add(scores)
    for one, other in zip(at_once.certainties(), in_pieces.certainties(), strict=True):
        assert one.expected_dice == pytest.approx(other.expected_dice, rel=1e-5)
        assert one.entropy == pytest.approx(other.entropy, rel=1e-5)


def test_a_temperature_changes_how_sure_but_not_what():
    scores = torch.tensor([0.7, 0.2, 0.1])
    for temperature in (0.5, 2.0):
        expected = scores.double() ** (1 / temperature)
        chances = as_chances(scores[:, None], temperature)[:, 0]
        assert torch.allclose(chances.double(), expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 9, 7), (5, 6, 21), (4, 4, 4)])
def test_the_sliding_window_tells_every_voxel_of_the_scan_once(shape):
    """Also where the scan is padded, and whichever axis it is swept along."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Softmax(1))
    image, patch = torch.randn(1, *shape), (8, 8, 8)
    config = InferenceConfig(precision="float32")
    options = {"num_classes": 3, "config": config, "device": "cpu"}
    swept, whole = Doubt(), Doubt()
    labels = predict_labels(network, image, patch, doubt=swept, **options)
    whole.add(predict_scores(network, image, patch, **options))
    assert [each.voxels for each in swept.certainties()] == np.bincount(labels.ravel(), minlength=3).tolist()
    for one, other in zip(swept.certainties(), whole.certainties(), strict=True):
        assert one.expected_dice == pytest.approx(other.expected_dice, rel=1e-4)
