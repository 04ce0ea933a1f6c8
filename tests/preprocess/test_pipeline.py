"""Scan -> prepared scan -> labels on the scan's grid, and the plan that rules it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise.errors import ConfigError, DataError
from labelwise.formats import read_image, read_labels
from labelwise.preprocess.fingerprint import NUM_QUANTILES, ScanStatistics, make_plan, scan_statistics
from labelwise.preprocess.pipeline import IntensityRule, Plan, Undo, apply, undo
from labelwise.types import IGNORE, Volume

NONE = {"normalised": IntensityRule("none")}
CT_RULE = IntensityRule("ct", clip=(-160.5, 240.1), mean=1 / 3, std=77.7)


def scan(shape=(80, 72, 24), spacing=(0.8, 0.9, 3.0), value=100.0) -> tuple[Volume, Volume]:
    """A bright ellipsoid with a structure inside, in an empty surrounding."""
    grid = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = (-20, 30, 1 / 3)
    labels = (radius < 0.37).astype(np.uint8)
    labels[(radius < 0.37) & (grid[0] > 0)] = 2
    image = np.where(radius < 0.42, value + 20 * labels, 0).astype(np.float32)
    return Volume(image[None], affine), Volume(labels, affine)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_an_empty_plan_returns_the_scan_itself():
    image, labels = scan()
    prepared = apply(image, Plan(intensity=NONE), intensity="normalised", labels=labels)
    assert np.array_equal(prepared.image.data, image.data)
    assert np.array_equal(prepared.labels.data, labels.data)
    assert np.array_equal(prepared.image.affine, image.affine)


@pytest.mark.parametrize("crop", ["none", "nonzero"])
def test_without_resampling_the_way_back_is_exact(crop):
    image, labels = scan()
    prepared = apply(image, Plan(crop=crop, intensity=NONE), intensity="normalised", labels=labels)
    back = undo(prepared.labels.data, prepared.undo)
    assert np.array_equal(back.data, labels.data)
    assert np.array_equal(back.affine, image.affine)
    assert back.data.dtype == np.uint8


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.5, 1.5, 3), (0.5, 0.7, 2.9), (2, 2, 2)])
@pytest.mark.parametrize("crop", ["none", "nonzero"])
def test_structures_come_back_after_resampling(spacing, crop):
    image, labels = scan()
    prepared = apply(
        image, Plan(spacing_mm=spacing, crop=crop, intensity=NONE), intensity="normalised", labels=labels
    )
    assert prepared.image.shape == prepared.labels.shape == prepared.undo.prepared_shape
    assert np.allclose(prepared.image.spacing_mm, spacing, rtol=0.06)
    assert np.array_equal(prepared.image.affine, prepared.labels.affine)
    back = undo(prepared.labels.data, prepared.undo)
    assert back.shape == image.shape
    for structure in (1, 2):
        assert overlap(back.data == structure, labels.data == structure) > 0.9


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    wanted=st.tuples(*[st.floats(0.3, 6)] * 3),
)
def test_labels_always_come_back_on_the_grid_of_the_scan(shape, spacing, wanted):
    image = Volume(
        np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape), np.diag((*spacing, 1))
    )
    prepared = apply(image, Plan(spacing_mm=wanted, intensity=NONE), intensity="normalised")
    back = undo(np.ones(prepared.image.shape, np.uint8), prepared.undo)
    assert back.shape == shape
    assert back.data.all()
    assert np.array_equal(back.affine, image.affine)
    assert np.isfinite(prepared.image.data).all()


def test_outside_of_the_crop_everything_is_background():
    image, _ = scan()
    prepared = apply(image, Plan(crop="nonzero", intensity=NONE), intensity="normalised")
    back = undo(np.ones(prepared.image.shape, np.uint8), prepared.undo).data
    assert back[0].max() == 0
    assert back[:, :, -1].max() == 0
    assert back.sum() == np.prod(prepared.image.shape)


def test_a_fixed_shape_overrides_the_spacing_axis_by_axis():
    image, labels = scan()
    plan = Plan(shape=(96, 64, None), intensity=NONE)
    assert apply(image, plan, intensity="normalised", labels=labels).labels.shape == (96, 64, 24)
    plan = Plan(shape=(64, None, None), spacing_mm=(1, 0.45, 3), intensity=NONE)
    assert apply(image, plan, intensity="normalised").image.shape == (64, 144, 24)


def test_intensities_are_normalised_before_they_are_resampled():
    """The nonzero voxels of MR are those of the scan: resampling would smear tissue into the zeros."""
    image, _ = scan()
    rules = {"mr": IntensityRule("mr")}
    plain = apply(image, Plan(intensity=rules), intensity="mr").image.data
    finer = apply(image, Plan(shape=(100, 90, 48), intensity=rules), intensity="mr").image.data
    assert (finer.min(), finer.max()) == pytest.approx((plain.min(), plain.max()))


def test_the_scan_of_the_caller_is_not_changed():
    image, labels = scan()
    copies = image.data.copy(), labels.data.copy()
    apply(
        image,
        Plan(spacing_mm=(1, 1, 1), crop="nonzero", intensity={"mr": IntensityRule("mr")}),
        intensity="mr",
        labels=labels,
    )
    assert np.array_equal(image.data, copies[0])
    assert np.array_equal(labels.data, copies[1])


def test_unknown_voxels_stay_unknown():
    image, labels = scan()
    unknown = Volume(np.full_like(labels.data, IGNORE), labels.affine)
    prepared = apply(
        image, Plan(spacing_mm=(2, 2, 2), intensity=NONE), intensity="normalised", labels=unknown
    )
    assert (prepared.labels.data == IGNORE).all()


def test_wrong_use_is_refused():
    image, labels = scan()
    with pytest.raises(ConfigError, match="the kind 'mr'"):
        apply(image, Plan(intensity=NONE), intensity="mr")
    with pytest.raises(ConfigError, match="Hounsfield"):
        apply(image, Plan(crop="body", intensity=NONE), intensity="normalised")
    with pytest.raises(DataError, match="different shapes"):
        apply(
            image, Plan(intensity=NONE), intensity="normalised", labels=Volume(labels.data[1:], labels.affine)
        )
    prepared = apply(image, Plan(intensity=NONE), intensity="normalised")
    with pytest.raises(DataError, match="another scan"):
        undo(np.zeros((2, 2, 2), np.uint8), prepared.undo)


def test_an_absurd_voxel_size_is_refused_before_anything_is_allocated():
    image, _ = scan(spacing=(800, 900, 3000))
    with pytest.raises(DataError, match=r"(?s)too large.*header"):
        apply(image, Plan(spacing_mm=(1, 1, 1), intensity=NONE), intensity="normalised")


@pytest.mark.parametrize("wrong", [{"spacing_mm": (1, 0, 1)}, {"shape": (0, 1, 1)}])
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(ConfigError):
        Plan(**wrong)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan((0.1 + 0.2, 1 / 3, 5), (None, 256, None), "body", {"ct": CT_RULE, "mr": IntensityRule("mr")}),
    ],
)
def test_a_plan_survives_json(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=16, max_size=16))
def test_an_undo_survives_json_bit_by_bit(numbers):
    rows = tuple(tuple(numbers[4 * row : 4 * row + 4]) for row in range(4))
    kept = Undo((3, 4, 5), rows, (0, 1, 2), (3, 3, 3), (7, 7, 7))
    assert Undo.from_json(json.loads(json.dumps(kept.to_json()))) == kept


def test_damaged_plans_and_undos_are_refused():
    with pytest.raises(ConfigError, match=r"unknown setting 'spacing_m'; did you mean 'spacing_mm'"):
        Plan.from_json({"spacing_m": [1, 1, 1]})
    with pytest.raises(ConfigError):
        Undo.from_json({"shape": [1, 2, 3]})


def ct(value: float, spacing=(1.0, 1.0, 1.0)) -> tuple[Volume, Volume]:
    """A body of 0 HU in air, with a structure of the given HU."""
    data = np.full((1, 30, 30, 30), -1000, np.float32)
    data[0, 5:25, 5:25, 5:25] = 0
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[10:20, 10:20, 10:20] = 1
    data[0][labels == 1] = value
    affine = np.diag((*spacing, 1.0))
    return Volume(data, affine), Volume(labels, affine)


def test_annotated_structures_decide_about_ct_and_unlabelled_scans_count_by_their_body():
    labelled = scan_statistics(ct(100)[0], "ct", ct(100)[1])
    assert set(labelled.quantiles) == {100}
    assert len(labelled.quantiles) == NUM_QUANTILES
    unknown = Volume(np.full((30, 30, 30), IGNORE, np.uint8), np.eye(4))
    for labels in (None, unknown, Volume(unknown.data * 0, np.eye(4))):
        body = scan_statistics(ct(100)[0], "ct", labels)
        assert {0, 100} <= set(body.quantiles)
    rule = make_plan([labelled, body]).intensity["ct"]
    assert rule.clip == (0, 100)
    assert rule.mean == pytest.approx((100 + np.mean(body.quantiles)) / 2)
    assert make_plan([labelled]).intensity["ct"] == IntensityRule("ct", (100, 100), 100, 1)


def test_every_scan_has_the_same_weight_whatever_its_size():
    small, large = ct(0), ct(100)
    large = tuple(Volume(v.data.repeat(2, -1), v.affine) for v in large)
    rule = make_plan([scan_statistics(*pair[:1], "ct", pair[1]) for pair in (small, large)]).intensity["ct"]
    assert rule.mean == pytest.approx(50)
    assert rule.std == pytest.approx(50)


def test_a_fingerprint_is_the_same_every_time_and_survives_json():
    image = Volume(np.random.default_rng(0).normal(0, 90, (1, 30, 30, 30)).astype(np.float32), np.eye(4))
    first, second = scan_statistics(image, "ct", None), scan_statistics(image, "ct", None)
    assert first == second
    assert first.quantiles[500] == pytest.approx(np.quantile(image.data[image.data > -300], 0.5), abs=10)


def test_the_plan_follows_the_scans():
    def statistics(modality, *spacings, shape=(100, 100, 100)):
        return [ScanStatistics(modality, shape, spacing, (1.0, 2.0)) for spacing in spacings]

    plan = make_plan(statistics("ct", (0.7, 0.7, 1), (0.8, 0.8, 1.5), (0.9, 0.9, 2)))
    assert (plan.spacing_mm, plan.crop, set(plan.intensity)) == ((0.8, 0.8, 1.5), "body", {"ct"})
    plan = make_plan(statistics("mr", *[(1, 1, z) for z in (4, 8, 10, 10, 10)]))
    assert plan.spacing_mm == pytest.approx((1, 1, 5.6))  # 10th percentile of the coarse axis
    assert plan.crop == "nonzero"
    plan = make_plan(statistics("normalised", (0.625, 0.625, 0.625)))
    assert (plan.spacing_mm, plan.crop) == ((0.625, 0.625, 0.625), "none")
    assert plan.intensity == {"normalised": IntensityRule("none")}
    mixed = make_plan(statistics("ct", (1, 1, 1)) + statistics("mr", (1, 1, 1)))
    assert mixed.crop == "nonzero"
    assert set(mixed.intensity) == {"ct", "mr"}


def test_what_is_given_to_the_plan_is_taken():
    statistics = [ScanStatistics("mr", (10, 10, 10), (1, 1, 1))]
    plan = make_plan(statistics, spacing_mm=(2, 2, 2), crop="none")
    assert (plan.spacing_mm, plan.crop) == ((2, 2, 2), "none")
    plan = make_plan(statistics, shape=(256, 256, None))
    assert (plan.spacing_mm, plan.shape) == (None, (256, 256, None))


def test_impossible_fingerprints_are_refused():
    with pytest.raises(DataError, match="at least one"):
        make_plan([])


@pytest.mark.real_data
def test_a_real_ct_and_its_structures_survive_the_way_through(real_data):
    if not (real_data / "ct_sample").is_dir():
        pytest.skip("LABELWISE_TEST_DATA has no ct_sample/")
    image = read_image([real_data / "ct_sample" / "abdomen_ct_3mm.nii.gz"])
    labels = read_labels(real_data / "ct_sample" / "abdomen_seg_3mm.nii.gz")
    plan = make_plan([scan_statistics(image, "ct", labels)], spacing_mm=(2, 2, 2))
    prepared = apply(image, plan, intensity="ct", labels=labels)
    back = undo(prepared.labels.data, prepared.undo)
    assert np.array_equal(back.data, labels.data), "through smaller voxels the way is exact"
    low, high = plan.intensity["ct"].clip
    assert -1024 <= low < high < 1000  # lungs to bone
