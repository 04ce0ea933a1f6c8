"""Each metric as a function on two masks is what the evaluation of a case gives for them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from labelwise import DataError, LabelSpace, metrics

SPACE = LabelSpace(("background", "liver"))
SPACING = (1.5, 0.8, 2.0)
EMPTY = np.zeros((6, 7, 8), bool)
ALONE = {
    "dice": metrics.dice,
    "jaccard": metrics.jaccard,
    "volume_difference": lambda p, r: metrics.volume_difference(p, r, SPACING),
    "hd95": lambda p, r: metrics.hd95(p, r, SPACING),
    "assd": lambda p, r: metrics.assd(p, r, SPACING),
    "asd": lambda p, r: metrics.asd(p, r, SPACING),
    "nsd": lambda p, r: metrics.nsd(p, r, SPACING),
}


def blob(seed):
    return np.random.default_rng(seed).random((6, 7, 8)) < 0.4


PAIRS = {
    "both": (blob(0), blob(1)),
    "equal": (blob(0), blob(0)),
    "only the prediction": (blob(0), EMPTY),
    "only the reference": (EMPTY, blob(1)),
    "neither": (EMPTY, EMPTY),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("metric", ALONE)
def test_a_metric_of_two_masks_is_that_of_the_case(metric, pair):
    prediction, reference = PAIRS[pair]
    scores = metrics.evaluate_case(
        "case", reference.astype(np.uint8), prediction.astype(np.uint8), label_space=SPACE,
        annotated=["liver"], spacing_mm=SPACING,
    )  # fmt: skip
    (expected,) = [score.value for score in scores if score.metric == metric]
    for mask in (bool, np.uint8, np.int64):
        found = ALONE[metric](prediction.astype(mask), reference.astype(mask))
        assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_everything_but_0_belongs_to_the_structure():
    assert metrics.dice(blob(0) * 7, blob(0) * 3) == 1
    assert metrics.hd95(blob(0) * 7, blob(0) * 3) == 0


def test_without_a_spacing_distances_count_voxels():
    line = np.zeros((1, 9), bool)
    line[0, 2] = True
    assert metrics.hd95(line, np.roll(line, 3)) == 3
    assert metrics.assd(line, np.roll(line, 3), (1, 0.5)) == 1.5
    assert metrics.nsd(line, np.roll(line, 3), tolerance=2.9) == 0
    assert metrics.nsd(line, np.roll(line, 3), tolerance=3) == 1


@pytest.mark.parametrize("metric", ALONE)
def test_what_is_no_pair_of_masks_is_refused(metric):
    with pytest.raises(DataError, match="different shapes"):
        ALONE[metric](blob(0), blob(0)[:-1])
    with pytest.raises(DataError, match="not a mask"):
        ALONE[metric](blob(0) * 0.5, blob(0))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, math.nan)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    for metric in (metrics.hd95, metrics.assd, metrics.asd, metrics.nsd, metrics.volume_difference):
        with pytest.raises(DataError, match="3 lengths above 0"):
            metric(blob(0), blob(1), spacing)
