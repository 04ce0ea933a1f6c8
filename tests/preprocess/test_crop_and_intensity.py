"""Which box of a scan is kept, and what becomes of its intensities."""

from __future__ import annotations

import numpy as np
import pytest

from labelwise.errors import ConfigError, DataError
from labelwise.preprocess.crop import Box, find_box
from labelwise.preprocess.intensity import IntensityRule, is_mask, normalise
from labelwise.types import Volume

MR = IntensityRule("mr")
CT = IntensityRule("ct", clip=(-100, 200), mean=50, std=25)


def ct_volume(spacing=2.0) -> Volume:
    """A trunk, an arm, a table and a speck in air."""
    data = np.full((1, 60, 50, 30), -1000, np.float32)
    data[0, 20:40, 15:35, 3:27] = 40
    data[0, 8:14, 20:30, 3:27] = 30
    data[0, 15:45, 40:41, 10:20] = 200  # table: a thin slab
    data[0, 55, 5, 5] = 3000
    return Volume(data, np.diag((spacing, spacing, spacing, 1.0)))


def test_nothing_is_cropped_when_nothing_is_asked():
    assert find_box(ct_volume(), "none") == Box((0, 0, 0), (60, 50, 30))


def test_nonzero_keeps_what_differs_from_zero_and_from_the_minimum_in_any_channel():
    image = np.zeros((2, 10, 11, 12), np.float32)
    image[0, 2:5, 3, 4] = 7
    image[1, 4, 3:8, 4] = -3
    image[1, 4, 4, 4] = -4
    assert find_box(Volume(image, np.eye(4)), "nonzero") == Box((2, 3, 4), (5, 8, 5))
    assert find_box(ct_volume(), "nonzero") == Box((8, 5, 3), (56, 41, 27))


@pytest.mark.parametrize("value", [0, 5, -1000])
def test_an_empty_scan_is_refused(value):
    with pytest.raises(DataError, match="empty"):
        find_box(Volume(np.full((1, 4, 4, 4), value, np.float32), np.eye(4)), "nonzero")


def test_body_keeps_trunk_and_arm_but_not_the_table():
    box = find_box(ct_volume(), "body")
    assert all(start <= known for start, known in zip(box.start, (8, 15, 3), strict=True))
    assert all(stop >= known for stop, known in zip(box.stop, (40, 35, 27), strict=True))
    assert box.stop[1] <= 40, "the table is gone"
    assert box.stop[0] <= 44, "and so is the speck"


@pytest.mark.parametrize("spacing", [0.5, 0.9, 2, 7])
def test_body_is_found_at_any_voxel_size(spacing):
    box = find_box(ct_volume(spacing), "body")
    assert all(start <= known for start, known in zip(box.start, (20, 15, 3), strict=True))
    assert all(stop >= known for stop, known in zip(box.stop, (40, 35, 27), strict=True))


def test_a_scan_without_a_body_is_refused():
    with pytest.raises(DataError, match=r"(?s)no body.*Hounsfield"):
        find_box(Volume(np.full((1, 9, 9, 9), -1000, np.float32), np.eye(4)), "body")


def test_convention_a_crop_keeps_every_voxel_at_its_place_in_the_world():
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0.1, 6], [0, 0.1, 3, 7], [0, 0, 0, 1]])
    volume = Volume(np.random.default_rng(0).random((1, 9, 9, 9)), affine)
    box = Box((1, 2, 3), (5, 7, 9))
    cut = box.cut(volume)
    assert cut.data.shape == (1, *box.shape) == (1, 4, 5, 6)
    assert cut.data[0, 2, 2, 2] == volume.data[0, 3, 4, 5]
    assert np.allclose(cut.affine @ (2, 2, 2, 1), affine @ (3, 4, 5, 1))
    assert Box((1, 2, 3), (5, 7, 9)).cut(Volume(volume.data[0], affine)).data.shape == (4, 5, 6)


def test_ct_is_clipped_and_standardised_by_the_numbers_of_the_rule():
    image = np.array([-1000, -100, 0, 50, 75, 200, 3000], np.float32).reshape(1, 7, 1, 1)
    assert normalise(image, CT).ravel().tolist() == [-6, -6, -2, 0, 1, 6, 6]


def test_mr_is_standardised_over_its_nonzero_voxels():
    rng = np.random.default_rng(0)
    image = np.zeros((2, 20, 20, 20), np.float32)
    image[:, 5:15] = rng.gamma(4, 100, (2, 10, 20, 20))
    image[1] *= 1000
    normalised = normalise(image, MR)
    for channel in range(2):
        tissue = normalised[channel][image[channel] != 0]
        assert tissue.mean() == pytest.approx(0, abs=1e-4)
        assert tissue.std() == pytest.approx(1, abs=1e-4)
    assert np.allclose(normalised[0][image[0] == 0], normalised[0].min()), (
        "background is as dark as the darkest tissue"
    )


def test_mr_does_not_care_about_the_scanners_scale():
    image = np.random.default_rng(0).gamma(4, 100, (1, 9, 9, 9)).astype(np.float32)
    assert np.allclose(normalise(image, MR), normalise(image * 37.5, MR), atol=1e-4)


def test_mr_is_not_ruled_by_one_hot_voxel():
    image = np.random.default_rng(0).gamma(4, 100, (1, 15, 15, 15)).astype(np.float32)
    hot = image.copy()
    hot[0, 0, 0, 0] = 1e7
    others = np.ones(image.shape, bool)
    others[0, 0, 0, 0] = False
    assert np.allclose(normalise(image, MR)[others], normalise(hot, MR)[others], atol=0.15)


def test_the_rule_range_brings_each_channel_from_its_lowest_and_highest_value_to_0_and_1():
    image = np.array([[-1000, -100, 0, 250], [3, 4, 5, 5]], np.float32).reshape(2, 4, 1, 1)
    found = normalise(image, IntensityRule("range"))
    assert found[0].ravel().tolist() == pytest.approx([0, 900 / 1250, 1000 / 1250, 1])
    assert found[1].ravel().tolist() == pytest.approx([0, 0.5, 1, 1])
    assert (normalise(np.full((1, 4, 4, 4), -7.0), IntensityRule("range")) == 0).all()


@pytest.mark.parametrize("value", [0, 1e-7, 3, 1e8, -5])
def test_a_constant_image_becomes_zero_and_not_nan(value):
    assert np.abs(normalise(np.full((1, 5, 5, 5), value, np.float32), MR)).max() <= abs(value) * 1e-6


def test_no_rule_leaves_the_values_as_they_are():
    image = np.random.default_rng(0).random((1, 4, 4, 4)).astype(np.float32)
    assert np.array_equal(normalise(image, IntensityRule("none")), image)


@pytest.mark.parametrize("rule", [MR, CT, IntensityRule("none")])
def test_the_input_is_not_changed_and_the_output_is_float32(rule):
    image = np.arange(64, dtype=np.float64).reshape(1, 4, 4, 4)
    normalised = normalise(image, rule)
    assert normalised.dtype == np.float32
    assert normalised.flags.c_contiguous
    assert np.array_equal(image.ravel(), np.arange(64))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scheme": "ct"},
        {"scheme": "ct", "clip": (0, 1), "mean": 0, "std": 0},
        {"scheme": "ct", "clip": (2, 1), "mean": 0, "std": 1},
        {"scheme": "mr", "mean": 1},
        {"scheme": "range", "clip": (0, 1)},
    ],
)
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(ConfigError):
        IntensityRule(**wrong)


# masks beside or instead of scans

MASKS = {
    "0 and 1": (0, 1), "0 and 255": (0, 255), "structures": (0, 1, 2, 7), "halves": (0, 0.5), "ones and twos": (1, 2),
    "20 structures": tuple(range(21)),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("rule", ["mr", "ct"])
@pytest.mark.parametrize("name", MASKS)
def test_the_values_of_a_mask_stay_apart_alone_and_beside_a_scan(name, rule, share):
    rng, values = np.random.default_rng(5), np.array(MASKS[name], np.float32)
    shape = (24, 20, 16)
    mask = np.where(rng.random(shape) < share, rng.choice(values[1:], shape), values[0]).astype(np.float32)
    scan = rng.normal(300, 100, shape).astype(np.float32)
    chosen = MR if rule == "mr" else CT
    for image, place in ((mask[None], 0), (np.stack([scan, mask]), 1), (np.stack([mask, scan]), 0)):
        prepared = normalise(image, chosen)[place]
        top = mask.max()
        np.testing.assert_allclose(prepared, mask / (top if top > 10 else 1), rtol=1e-6)
    # The same value in another scan, with fewer of its kind, is the same number.
    np.testing.assert_array_equal(
        normalise(scan[None], chosen)[0], normalise(np.stack([scan, mask]), chosen)[0]
    )


@pytest.mark.parametrize("values", [(-1000, 0, 60), (0.1,), range(200)])
def test_what_is_no_mask_is_normalised(values):
    image = np.random.default_rng(1).choice(np.array(list(values), np.float32), (1, 24, 20, 16))
    assert not is_mask(image[0])


@pytest.mark.parametrize("voxels", [1, 8, 500])
@pytest.mark.parametrize("value", [1e30, -1e30, 3e6, -3e38])
def test_normalised_scans_with_absurd_voxels_are_refused(value, voxels):
    image = np.random.default_rng(2).normal(size=(1, 12, 12, 12)).astype(np.float32)
    assert np.array_equal(normalise(image, IntensityRule("none")), image)
    image.reshape(-1)[:voxels] = value
    with pytest.raises(DataError, match="not normalised") as caught:
        normalise(image, IntensityRule("none"))
    assert f"{voxels:,} voxels beyond" in str(caught.value)
    assert np.isfinite(normalise(image, MR)).all(), "this rule clips"
