"""Voxel counts, Dice and Jaccard: hand values, identities, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from labelwise.errors import DataError
from labelwise.evaluate.overlap import count_voxels, dice, dice_per_class, jaccard
from labelwise.types import IGNORE


def random_maps(seed: int, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    reference = generator.integers(0, num_classes, (9, 8, 7)).astype(np.uint8)
    changed = generator.random(reference.shape) < 0.3
    return reference, np.where(changed, generator.integers(0, num_classes, reference.shape), reference)


def test_values_worked_out_by_hand():
    counts = count_voxels(np.array([[1, 1, 0], [2, 2, 2]]), np.array([[1, 0, 0], [2, 2, 1]]), 4)
    assert counts.reference.tolist() == [1, 2, 3, 0]
    assert counts.prediction.tolist() == [2, 2, 2, 0]
    assert counts.shared.tolist() == [1, 1, 2, 0]
    np.testing.assert_allclose(dice(counts), [2 / 3, 1 / 2, 4 / 5, np.nan])
    np.testing.assert_allclose(jaccard(counts), [1 / 2, 1 / 3, 2 / 3, np.nan])


def test_equals_counting_mask_by_mask():
    reference, prediction = random_maps(seed=0)
    counts = count_voxels(reference, prediction, 5)
    for c in range(5):
        a, b = reference == c, prediction == c
        assert (counts.reference[c], counts.prediction[c], counts.shared[c]) == (
            a.sum(),
            b.sum(),
            (a & b).sum(),
        )


def test_jaccard_is_dice_over_two_minus_dice():
    counts = count_voxels(*random_maps(seed=1), 5)
    np.testing.assert_allclose(jaccard(counts), dice(counts) / (2 - dice(counts)))


def test_dice_is_symmetric_and_perfect_for_equal_maps():
    reference, prediction = random_maps(seed=2)
    np.testing.assert_array_equal(
        dice_per_class(reference, prediction, 5), dice_per_class(prediction, reference, 5)
    )
    assert dice_per_class(reference, reference, 5).tolist() == [1] * 5


def test_voxels_of_unknown_label_count_for_nobody():
    reference, prediction = random_maps(seed=3)
    hidden = np.random.default_rng(4).random(reference.shape) < 0.5
    masked = count_voxels(np.where(hidden, IGNORE, reference), prediction, 5)
    kept = count_voxels(reference[~hidden], prediction[~hidden], 5)
    assert masked.ignored == hidden.sum()
    for name in ("reference", "prediction", "shared"):
        np.testing.assert_array_equal(getattr(masked, name), getattr(kept, name))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64])
def test_every_integer_type_counts_alike(dtype):
    reference, prediction = random_maps(seed=5)
    np.testing.assert_array_equal(
        dice_per_class(reference.astype(dtype), prediction.astype(dtype), 5),
        dice_per_class(reference, prediction, 5),
    )


def test_masks_may_be_boolean_and_not_contiguous():
    reference, prediction = random_maps(seed=6, num_classes=2)
    expected = dice_per_class(reference, prediction, 2)
    found = dice_per_class(np.asfortranarray(reference.astype(bool)), prediction.astype(bool), 2)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("reference", "prediction", "message"),
    [
        ([0, 1, 2], [0, 1], "different shapes"),
        ([0, 1, 2], [0, 1, 3], "prediction holds a value outside the label space"),
        ([0, 1, 2], [0, 1, IGNORE], "prediction holds a value outside the label space"),
        ([IGNORE, 1, 2], [7, 1, 2], "prediction holds a value outside the label space"),
        ([0, 1, 254], [0, 1, 2], "reference holds a value outside the label space"),
        ([0, 1, 300], [0, 1, 2], "reference holds a value outside the label space"),
        ([0, 1, 2], [0, 1, -1], "prediction holds a value outside the label space"),
        ([0.0, 1.0, 2.0], [0, 1, 2], "reference is not a label map"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_case(reference, prediction, message):
    with pytest.raises(DataError, match=f"case 'patient_7': .*{message}"):
        count_voxels(np.array(reference), np.array(prediction), 3, case="patient_7")


def test_a_refusal_tells_how_many_voxels_are_wrong():
    with pytest.raises(DataError, match=r"3 \(2 voxels\), 9 \(1 voxels\)"):
        count_voxels(np.zeros(4, np.uint8), np.array([3, 9, 3, 0]), 3)
