"""A temperature that was put in is found again; partly annotated cases count; what is kept belongs to its model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from labelwise.errors import CheckpointError, DataError
from labelwise.infer.calibration import (
    Calibration,
    ClassCheck,
    Sample,
    check_class,
    fit_temperature,
    read_calibration,
    sample_voxels,
    write_calibration,
)
from labelwise.infer.doubt import as_chances
from labelwise.types import IGNORE

ALL = np.array([True, True, True])


def drawn_from(chances: torch.Tensor, seed: int) -> torch.Tensor:
    """A class for each voxel, as often as its chance says."""
    torch.manual_seed(seed)
    return torch.multinomial(chances.T, 1)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("annotated", [ALL, np.array([False, True, False])], ids=["all classes", "one class"])
def test_the_temperature_that_was_put_in_is_found(temperature, annotated):
    """Also where the annotation says of most voxels only that they are not the one annotated class."""
    torch.manual_seed(0)
    chances = (2 * torch.randn(3, 40_000)).softmax(dim=0)
    classes = drawn_from(chances, 1)
    labels = torch.where(torch.from_numpy(annotated)[classes], classes, 0).numpy()
    scores = as_chances(chances, 1 / temperature)  # sharper than the truth, if the temperature is above 1
    sample = sample_voxels(
        scores.reshape(3, 40, 50, 20), labels.reshape(40, 50, 20), annotated, limit=10**6, seed=0
    )
    found, before, after = fit_temperature([sample])
    # The standard error of the fit is below 2 % for 40,000 voxels; 1 is kept if nothing is better.
    assert found == pytest.approx(temperature, rel=0.08)
    assert after <= before


def test_a_voxel_without_knowledge_is_not_looked_at():
    labels = np.array([0, 1, IGNORE, 2])[:, None, None]
    sample = sample_voxels(torch.full((3, 4, 1, 1), 1 / 3), labels, ALL, limit=10, seed=0)
    assert sample.allowed.T.tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    partly = sample_voxels(
        torch.full((3, 4, 1, 1), 1 / 3), labels % 2, np.array([False, True, False]), limit=10, seed=0
    )
    assert partly.allowed[:, 0].tolist() == [True, False, True]


def test_no_annotated_voxel_is_refused():
    with pytest.raises(DataError, match="no voxel of the cases is annotated"):
        fit_temperature([Sample(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool))])


def test_expected_and_true_dice_are_compared_by_hand():
    check = check_class([0.9, 0.8, 0.5], [0.8, 0.9, 0.3])
    assert check.cases == 3
    assert check.mean_error == pytest.approx((0.1 - 0.1 + 0.2) / 3)
    assert check.mean_absolute_error == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert check.rank_correlation == pytest.approx(0.5)  # 1 - 6 * (1 + 1 + 0) / (3 * 8)
    assert check_class([0.9, 0.8], [0.9, 0.8]).rank_correlation is None
    assert check_class([], []) == ClassCheck(0, None, None, None)


def test_a_calibration_is_kept_and_belongs_to_its_model(tmp_path):
    kept = Calibration("ab", 1.5, 2, 100, 0.3, 0.2, {"liver": ClassCheck(2, None, 0.1, 0.1)})
    assert read_calibration(tmp_path, "ab") is None
    write_calibration(tmp_path, kept)
    assert read_calibration(tmp_path, "ab") == kept
    with pytest.raises(CheckpointError, match="belongs to another model"):
        read_calibration(tmp_path, "cd")
    values = json.loads((tmp_path / "calibration.json").read_text())
    (tmp_path / "calibration.json").write_text(json.dumps({**values, "temperature": "warm"}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_calibration(tmp_path, "ab")
