"""Metrics on request: lesions one by one, borders, agreement of volumes, calibration, and those of other packages."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from labelwise import metrics
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate import boundary, further
from labelwise.evaluate.cases import evaluate_case
from labelwise.evaluate.slices import slice_hd
from labelwise.types import IGNORE, LabelSpace

SPACE = LabelSpace(("background", "liver", "tumour"))


def line(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


# lesions


def test_lesions_are_found_missed_and_invented():
    reference = line(1, 1, 1, 0, 1, 1, 0, 1, 0, 0)
    prediction = line(1, 1, 0, 0, 0, 1, 0, 0, 0, 1)
    found = metrics.detect_lesions(prediction, reference)
    assert (found.found, found.missed, found.false) == (2, 1, 1)
    assert (found.recall, found.precision) == (2 / 3, 2 / 3)
    assert found.f1 == 2 * 2 / (2 * 2 + 1 + 1)
    assert found.quality == pytest.approx((2 / 3) / (1 + (2 + 2) / 2))  # an IoU of one half is no match there


def test_one_large_prediction_does_not_find_several_lesions():
    reference = line(1, 1, 1, 0, 1, 1, 1)
    found = metrics.detect_lesions(line(1, 1, 1, 1, 1, 1, 1), reference)
    assert (found.found, found.missed, found.false) == (1, 1, 0)
    assert found.quality == 0


def test_lesions_are_matched_so_that_most_are_found():
    # The first prediction fits both lesions, better the second; the second prediction fits the second only.
    reference = line(1, 1, 0, 1, 1, 1, 1, 1, 1)
    prediction = line(0, 1, 1, 1, 1, 0, 0, 1, 1)
    assert metrics.detect_lesions(prediction, reference).found == 2


def test_the_overlap_that_a_match_needs_can_be_chosen_and_must_be_one():
    reference, prediction = line(1, 1, 1, 1), line(1, 0, 0, 0)
    assert metrics.detect_lesions(prediction, reference).found == 1
    assert metrics.detect_lesions(prediction, reference, least_iou=0.26).found == 0
    for wrong in (0.0, 1.1, math.nan):
        with pytest.raises(ConfigError, match="least_iou"):
            metrics.detect_lesions(prediction, reference, least_iou=wrong)


def test_lesions_that_touch_by_a_corner_are_one():
    eye = np.eye(3, dtype=np.uint8)
    assert metrics.detect_lesions(eye, eye).found == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (line(0, 0), line(0, 0), (math.nan, math.nan, math.nan, math.nan)),
        (line(1, 0), line(0, 0), (math.nan, 0, 0, 0)),
        (line(0, 0), line(1, 0), (0, math.nan, 0, 0)),
        (line(1, 0), line(1, 0), (1, 1, 1, 1)),
    ],
)
def test_empty_masks_have_the_values_that_are_defined(prediction, reference, expected):
    found = metrics.detect_lesions(prediction, reference)
    np.testing.assert_array_equal((found.recall, found.precision, found.f1, found.quality), expected)
    np.testing.assert_array_equal(metrics.panoptic_quality(prediction, reference), expected[3])


def test_panoptic_quality_is_that_of_the_paper():
    reference = line(1, 1, 1, 1, 0, 1, 1, 0, 1)
    prediction = line(1, 1, 1, 0, 0, 1, 1, 0, 0)
    assert metrics.panoptic_quality(prediction, reference) == pytest.approx((3 / 4 + 1) / (2 + 1 / 2))


# borders


def test_the_border_is_as_wide_as_it_is_said_to_be_in_mm():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    assert boundary.band(mask, (1.0, 1.0), 1.0).sum() == 49 - 25
    assert boundary.band(mask, (1.0, 1.0), 2.0).sum() == 49 - 9
    assert (
        boundary.band(mask, (2.0, 1.0), 2.0).sum() == 49 - 5 * 3
    )  # one voxel along the first axis, two along the other
    assert boundary.band(mask, (5.0, 5.0), 2.0).sum() == 49 - 25, (
        "voxels that touch the outside always belong"
    )
    assert boundary.band(np.ones((3, 3), bool), (1.0, 1.0), 1.0).sum() == 8, "beyond the edge is outside"
    assert not boundary.band(np.zeros((3, 3), bool), (1.0, 1.0), 1.0).any()


def test_boundary_iou_sees_what_the_overlap_of_a_large_structure_hides():
    reference = np.zeros((40, 40), bool)
    reference[4:36, 4:36] = True
    prediction = np.roll(reference, 1, axis=0)
    assert metrics.jaccard(prediction, reference) == pytest.approx(31 / 33)
    # Rings of 124 voxels; shifted, they share two columns of 31, the corners of the rows apart, and no row.
    assert metrics.boundary_iou(prediction, reference, width=1.0) == pytest.approx(62 / (2 * 124 - 62))
    assert metrics.boundary_iou(reference, reference, (0.5, 0.5)) == 1
    assert metrics.boundary_iou(reference, ~reference & False) == 0
    assert math.isnan(metrics.boundary_iou(reference & False, reference & False))
    with pytest.raises(DataError, match="different shapes"):
        metrics.boundary_iou(reference, reference[:3])


# agreement and calibration


def test_limits_of_agreement_are_those_of_bland_and_altman():
    found = metrics.limits_of_agreement(np.array([11.0, 12, 13, np.nan]), np.array([10.0, 10, 10, 1]))
    assert (found.bias, found.n) == (2.0, 3)
    assert (found.low, found.high) == (pytest.approx(2 - 1.96), pytest.approx(2 + 1.96))
    assert math.isnan(metrics.limits_of_agreement(np.array([1.0]), np.array([2.0])).low)
    assert metrics.limits_of_agreement(np.array([]), np.array([])).n == 0


def test_the_calibration_error_is_the_mean_gap_between_chance_and_frequency():
    chances = np.repeat([0.25, 0.85], (4, 10))
    happened = np.r_[True, False, False, False, np.ones(5, bool), np.zeros(5, bool)]
    assert metrics.calibration_error(chances, happened) == pytest.approx(10 / 14 * 0.35)
    assert metrics.calibration_error(np.ones(3), np.ones(3, bool)) == 0, (
        "a chance of one lies in the last bin"
    )
    assert math.isnan(metrics.calibration_error(np.array([]), np.array([], bool)))


# in a case


def test_slice_hd_is_that_of_the_code_of_ltuda(golden):
    arrays = golden("ltuda")  # (Z, Y, X)
    reference, prediction = arrays["post_gt"].T, arrays["post_pred_out"].T
    found = [
        slice_hd(prediction == index, reference == index, spacing=(1.0, 1.0, 5.0)) for index in range(1, 5)
    ]
    np.testing.assert_allclose(found, arrays["post_hd_slice"], rtol=1e-12)


def test_slice_hd_knows_spacing_and_slices_that_do_not_count():
    reference = np.zeros((9, 9, 4), bool)
    reference[2:4, 2, :3] = True
    prediction = np.zeros_like(reference)
    prediction[2:7, 2, 1:] = True  # three voxels too long in two slices, and a slice beyond the reference
    assert slice_hd(prediction, reference, spacing=(0.5, 1.0, 9.0)) == 1.5
    assert slice_hd(prediction[..., 1], reference[..., 1], spacing=(2.0, 1.0)) == 6
    assert math.isnan(slice_hd(prediction & False, reference, spacing=(1.0, 1.0, 1.0)))


def of_case(reference, prediction, annotated=("liver", "tumour"), further=("lesions", "boundary_iou")):
    scores = evaluate_case(
        "a", reference, prediction, label_space=SPACE, annotated=annotated, spacing_mm=(1, 1), further=further
    )
    return {(score.class_name, score.metric): score for score in scores}


def test_metrics_on_request_stand_beside_the_others_with_their_status():
    found = of_case(line(1, 1, 0, 2, 0, 2), line(1, 1, 0, 2, 0, 0))
    assert found["tumour", "lesion_recall"].value == 0.5
    assert found["tumour", "false_lesions"].value == 0
    assert found["liver", "boundary_iou"].value == 1
    assert found["liver", "dice"].value == 1
    assert ("liver", "lesion_f1") not in of_case(line(1, 0), line(1, 0), further=())


def test_the_distance_within_slices_has_the_unit_of_a_length():
    found = of_case(line(1, 1, 0, 2), line(1, 0, 0, 2), further=("slice_hd", "boundary_iou"))
    assert [found["liver", name].unit for name in ("slice_hd", "hd95", "boundary_iou")] == ["mm", "mm", ""]


def test_what_is_not_annotated_or_not_known_has_no_value_on_request_either():
    part = of_case(line(1, 1, 0, 0), line(1, 1, 0, 2), annotated=("liver",))
    assert part["tumour", "lesion_f1"].status == "not_annotated"
    assert math.isnan(part["tumour", "lesion_f1"].value)
    nobody = of_case(line(0, 0), line(1, 2), annotated=())
    assert nobody["liver", "panoptic_quality"].status == "not_annotated"
    sparse = of_case(line(1, IGNORE, 0, 0), line(1, 1, 0, 0))
    assert sparse["liver", "boundary_iou"].status == "reference_incomplete"


def test_a_metric_of_another_package_is_found_by_its_name(monkeypatch):
    point = EntryPoint("half_dice", f"{__name__}:half_dice", "labelwise.metrics")
    monkeypatch.setattr(
        "labelwise.plugins.entry_points", lambda group: [point] if group == "labelwise.metrics" else []
    )
    assert further.parts.names() == ("boundary_iou", "lesions", "slice_hd", "half_dice")
    found = of_case(line(1, 1), line(1, 1), further=("half_dice",))
    assert found["liver", "half_dice"].value == 0.5


def half_dice(prediction, reference, *, spacing):
    assert prediction.dtype == reference.dtype == bool
    return metrics.dice(prediction, reference) / 2
