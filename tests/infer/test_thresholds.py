"""A threshold that was put in is found again, is kept with the model, and decides what is predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.infer.thresholds import HALF, ThresholdSearch, in_order
from labelwise.methods.base import Sigmoid, threshold_scores
from labelwise.types import IGNORE

BOTH = np.array([True, True, True])


def scores_of(*structures: torch.Tensor) -> torch.Tensor:
    """(C, N, 1, 1) with one half for the background."""
    maps = torch.stack([torch.full_like(structures[0], 0.5), *structures])
    return maps.view(len(maps), -1, 1, 1)


def as_labels(*values: int) -> np.ndarray:
    return np.array(values).reshape(-1, 1, 1)


def test_a_structure_that_is_found_from_a_tenth_on_gets_a_threshold_of_a_tenth():
    """Of a thousand voxels the structure's have 0.105 to 0.4, the others up to 0.095; the other structure needs 0.7."""
    labels = np.repeat([0, 1, 2], [800, 100, 100])
    faint = torch.zeros(1000)
    faint[:800], faint[800:900] = torch.linspace(0, 0.095, 800), torch.linspace(0.105, 0.4, 100)
    loud = torch.zeros(1000)
    loud[:900], loud[900:] = torch.linspace(0, 0.695, 900), torch.linspace(0.705, 1, 100)
    search = ThresholdSearch(2)
    search.add(scores_of(faint, loud), labels.reshape(-1, 1, 1), BOTH)
    found = search.chosen()
    assert found[1].threshold == pytest.approx(0.1)
    assert (found[1].dice, found[1].dice_at_half) == (1, 0)
    assert found[2].threshold == pytest.approx(0.7)
    assert found[2].dice == 1


def test_all_cases_count_together_but_only_where_they_annotate_the_structure():
    search = ThresholdSearch(2)
    search.add(scores_of(torch.tensor([0.35, 0.25]), torch.tensor([0.9, 0.9])), as_labels(1, 0), BOTH)
    liver_only = np.array([False, True, False])
    search.add(
        scores_of(torch.tensor([0.35, 0.25]), torch.tensor([0.9, 0.1])), as_labels(1, IGNORE), liver_only
    )
    found = search.chosen()
    assert found[1].threshold == pytest.approx(0.3, abs=0.05)
    assert found[1].cases == 2
    assert 2 not in found, "no voxel of the spleen is annotated"


def test_the_middle_of_equally_good_thresholds_is_taken():
    search = ThresholdSearch(1)
    search.add(scores_of(torch.tensor([0.805, 0.205])), as_labels(1, 0), np.array([True, True]))
    assert search.chosen()[1].threshold == pytest.approx(0.5, abs=0.02)


def test_a_structure_without_a_choice_keeps_one_half():
    assert in_order({"spleen": 0.1}, ("liver", "spleen")) == (HALF, 0.1)
    assert in_order({}, ("liver", "spleen")) == ()


def test_a_threshold_turns_a_faint_structure_into_the_label():
    network = torch.nn.Identity()
    images = torch.logit(torch.tensor([[[0.2, 0.05], [0.3, 0.3]]]))
    assert Sigmoid(network)(images).argmax(dim=1).tolist() == [[0, 0]]
    assert Sigmoid(network, (0.1, 0.5))(images).argmax(dim=1).tolist() == [[1, 0]]
    torch.testing.assert_close(threshold_scores(images), threshold_scores(images, (0.5, 0.5)))
