"""The rules of one case: what is counted, excluded, undefined or penalised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.cases import LA_METRICS, METRICS, VOLUME_METRICS, Score, evaluate_case, summarise
from labelwise.types import IGNORE, LabelSpace

SPACE = LabelSpace(("background", "liver", "spleen", "pancreas"))
SHAPE, SPACING = (12, 10, 8), (1.0, 2.0, 3.0)
DIAGONAL_MM = math.sqrt(12**2 + 20**2 + 24**2)


def label_map(**structures: int) -> np.ndarray:
    """A cube of four voxels for each named structure, at the given place along the first axis."""
    labels = np.zeros(SHAPE, np.uint8)
    for row, name in enumerate(SPACE.structures):
        if name in structures:
            labels[structures[name] : structures[name] + 4, 3 * row : 3 * row + 3, 2:6] = SPACE.index(name)
    return labels


def scored(
    reference, prediction, annotated=SPACE.structures, spacing_mm=SPACING, **options
) -> dict[tuple[str, str], Score]:
    scores = evaluate_case(
        "case_1",
        reference,
        prediction,
        label_space=SPACE,
        annotated=annotated,
        spacing_mm=spacing_mm,
        **options,
    )
    return {(score.class_name, score.metric): score for score in scores}


def test_every_structure_and_metric_has_one_row_in_order():
    scores = evaluate_case(
        "case_1",
        label_map(liver=2),
        label_map(liver=3),
        label_space=SPACE,
        annotated=["liver"],
        spacing_mm=SPACING,
    )
    assert [(s.class_name, s.metric) for s in scores] == [(c, m) for c in SPACE.structures for m in METRICS]


def test_values_and_units_worked_out_by_hand():
    """A block of 4 x 3 x 4 voxels moved by one voxel of 1 mm: a quarter of it does not overlap."""
    found = scored(label_map(liver=2), label_map(liver=3))
    assert found["liver", "dice"].value == pytest.approx(0.75)
    assert found["liver", "jaccard"].value == pytest.approx(36 / 60)
    assert found["liver", "hd95"].value == 1.0
    assert found["liver", "hd95_penalised"].value == 1.0
    assert found["liver", "nsd"].value == 1.0
    assert found["liver", "volume_difference"].value == 0
    units = {metric: found["liver", metric].unit for metric in METRICS}
    assert units == {
        "dice": "", "jaccard": "", "volume_difference": "ml", "reference_volume": "ml",
        "prediction_volume": "ml", "nsd": "at 1 mm",
        "hd95": "mm", "assd": "mm", "asd": "mm", "hd95_penalised": "mm", "assd_penalised": "mm",
    }  # fmt: skip
    assert {score.status for key, score in found.items() if key[0] == "liver"} == {"ok"}


def test_volume_difference_is_prediction_minus_reference_in_millilitres():
    prediction = label_map(liver=2)
    prediction[6:8, 0:3, 2:6] = 1  # 24 voxels of 6 mm3 more
    found = scored(label_map(liver=2), prediction)["liver", "volume_difference"]
    assert (found.value, found.unit) == (pytest.approx(0.144), "ml")


def test_without_spacing_everything_is_counted_in_voxels():
    found = scored(label_map(spleen=2), label_map(spleen=4), spacing_mm=None)
    assert (found["spleen", "hd95"].value, found["spleen", "hd95"].unit) == (2.0, "voxels")
    assert found["spleen", "nsd"].unit == "at 1 voxels"
    assert found["spleen", "volume_difference"].unit == "voxels"


def test_a_class_that_is_not_annotated_is_excluded_and_counted():
    found = scored(label_map(liver=2), label_map(liver=2, spleen=5), annotated=["liver"])
    for metric in METRICS:
        assert math.isnan(found["spleen", metric].value) == (metric != "prediction_volume")
        assert found["spleen", metric].status == "not_annotated"
        assert found["liver", metric].status == "ok"
    assert found["liver", "dice"].value == 1
    assert found["spleen", "prediction_volume"].value > 0, "nobody would see that a structure vanished"
    (row,) = [
        r
        for r in summarise(found.values()).classes
        if (r.class_name, r.metric) == ("spleen", "prediction_volume")
    ]
    assert math.isnan(row.mean)
    assert row.excluded == {"not_annotated": 1}


def test_a_structure_in_neither_map_is_a_correct_absence_without_value():
    found = scored(label_map(liver=2), label_map(liver=2))
    undefined = [m for m in METRICS if math.isnan(found["pancreas", m].value)]
    assert undefined == [m for m in METRICS if m not in VOLUME_METRICS]
    assert {found["pancreas", m].status for m in METRICS} == {"both_empty"}


@pytest.mark.parametrize(
    ("reference", "prediction", "status"),
    [
        (label_map(liver=2), label_map(), "prediction_empty"),
        (label_map(), label_map(liver=2), "reference_empty"),
    ],
)
def test_a_structure_in_one_map_only_scores_zero_and_the_diagonal(reference, prediction, status):
    found = scored(reference, prediction)
    for metric in ("dice", "jaccard", "nsd"):
        assert found["liver", metric].value == 0
    for metric in ("hd95", "assd", "asd"):
        assert math.isnan(found["liver", metric].value)
    for metric in ("hd95_penalised", "assd_penalised"):
        assert found["liver", metric].value == pytest.approx(DIAGONAL_MM)
    assert {found["liver", m].status for m in METRICS} == {status}


def test_scribbles_give_overlap_over_known_voxels_and_no_surface_metric():
    reference, prediction = label_map(liver=2), label_map(liver=3)
    hidden = np.random.default_rng(0).random(SHAPE) < 0.7
    scribbles = np.where(hidden, IGNORE, reference)
    found = scored(scribbles, prediction)
    a, b = reference[~hidden] == 1, prediction[~hidden] == 1
    assert found["liver", "dice"].value == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found["liver", "dice"].status == "ok"
    for metric in METRICS[METRICS.index("nsd") :]:
        assert math.isnan(found["liver", metric].value)
        assert found["liver", metric].status == "reference_incomplete"


def test_predicting_an_unannotated_structure_on_an_annotated_one_costs_only_the_annotated_one():
    prediction = label_map(liver=2)
    prediction[2:4] = np.where(prediction[2:4] == 1, 2, 0)  # half of the liver is called spleen
    found = scored(label_map(liver=2), prediction, annotated=["liver"])
    assert found["liver", "dice"].value == pytest.approx(2 / 3)
    assert found["spleen", "dice"].status == "not_annotated"


def test_convention_la_official_repeats_the_published_codes(golden):
    vector = golden("mean_teacher")
    space = LabelSpace(("background", "left atrium"))
    scores = evaluate_case(
        "a", vector["la_metric_gt"], vector["la_metric_pred"], label_space=space, annotated=space.structures,
        spacing_mm=(0.625, 0.625, 0.625), variant="la_official",
    )  # fmt: skip
    assert [score.metric for score in scores] == list(LA_METRICS)
    assert {score.variant for score in scores} == {"la_official"}
    assert [score.unit for score in scores] == ["", "", "voxels", "voxels"]
    values = [score.value for score in scores]
    np.testing.assert_allclose(values, vector["la_metric_dice_jac_hd95_asd_f64"], rtol=1e-12)


def test_convention_la_official_scores_an_empty_prediction_with_four_zeros():
    found = scored(label_map(liver=2), label_map(), variant="la_official")
    assert [found["liver", metric].value for metric in LA_METRICS] == [0, 0, 0, 0]
    assert found["liver", "hd95"].status == "prediction_empty"


def test_only_the_metrics_asked_for_are_computed():
    found = scored(label_map(liver=2), label_map(liver=3), metrics=("hd95", "dice"))
    assert [metric for structure, metric in found if structure == "liver"] == ["hd95", "dice"]


def test_tolerances_may_differ_between_structures():
    found = scored(
        label_map(liver=2, spleen=2),
        label_map(liver=4, spleen=4),
        nsd_tolerance={"liver": 1.0, "spleen": 2.0, "pancreas": 5.0},
    )
    assert found["liver", "nsd"].value < found["spleen", "nsd"].value == 1
    assert (found["liver", "nsd"].unit, found["spleen", "nsd"].unit) == ("at 1 mm", "at 2 mm")


def test_turning_the_image_changes_nothing():
    reference, prediction = label_map(liver=2, spleen=4), label_map(liver=3, spleen=4, pancreas=1)
    upright = scored(reference, prediction)
    turned = scored(reference.transpose(2, 0, 1), prediction.transpose(2, 0, 1), spacing_mm=(3.0, 1.0, 2.0))
    for key, score in upright.items():
        assert turned[key].value == pytest.approx(score.value, nan_ok=True)
        assert turned[key].status == score.status


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("dise",)}, "unknown metric 'dise'; did you mean 'dice'"),
        ({"variant": "la_oficial"}, "unknown variant 'la_oficial'; did you mean 'la_official'"),
        ({"annotated": ("livr",)}, "unknown class 'livr'; did you mean 'liver'"),
        ({"nsd_tolerance": {"liver": 1.0}}, "no tolerance of the NSD for spleen, pancreas"),
        ({"nsd_tolerance": dict.fromkeys((*SPACE.structures, "lung"), 1.0)}, "unknown class 'lung'"),
        ({"nsd_tolerance": -1.0}, "a tolerance of the NSD is a length"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        scored(label_map(), label_map(), **options)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, math.nan, 1.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(DataError, match="case 'case_1': the spacing does not fit the image"):
        scored(label_map(), label_map(), spacing_mm=spacing)


def test_an_annotated_case_of_which_nothing_is_known_is_refused():
    nothing = np.full(SHAPE, IGNORE, np.uint8)
    with pytest.raises(DataError, match="IGNORE everywhere"):
        scored(nothing, label_map(liver=2), annotated=["liver"])
    assert {score.status for score in scored(nothing, label_map(), annotated=()).values()} == {
        "not_annotated"
    }
