"""Resampling: what must not move, what must not alias, and how close it is to the references."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
import torch
import torch.nn.functional as F
from scipy import ndimage

from labelwise.preprocess.resample import (
    resample_image,
    resample_labels,
    resized_affine,
    restore_labels,
    restore_scores,
    shape_at_spacing,
)
from labelwise.types import Volume

AFFINE = np.array([[0.8, 0.1, 0, -40], [-0.1, 0.8, 0.2, 12], [0, -0.2, 2.5, 100], [0, 0, 0, 1]])
SHAPES = [(60, 50, 40), (33, 27, 19), (40, 40, 20), (40, 30, 90)]


def blob(shape=(40, 40, 20), centre=(0.55, 0.45, 0.5), width=0.12) -> np.ndarray:
    """A smooth bump; centre and width as parts of each axis."""
    axes = [
        np.exp(-((((np.arange(n) + 0.5) / n - c) / width) ** 2)) for n, c in zip(shape, centre, strict=True)
    ]
    return np.einsum("i,j,k", *axes).astype(np.float32)


def smooth(shape=(40, 40, 20), width=3.0, seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    field = ndimage.gaussian_filter(noise, width)
    return (field / field.std()).astype(np.float32)


def centroid_mm(volume: Volume) -> np.ndarray:
    weights = volume.data.reshape(volume.shape)
    index = [
        np.tensordot(np.arange(n), weights.sum(axis=tuple({0, 1, 2} - {a})), 1)
        for a, n in enumerate(weights.shape)
    ]
    return (volume.affine @ (*(np.array(index) / weights.sum()), 1))[:3]


@pytest.mark.parametrize("shape", SHAPES)
def test_convention_a_resampled_structure_stays_where_it_is_in_the_world(shape):
    volume = Volume(blob()[None], AFFINE)
    moved_mm = centroid_mm(resample_image(volume, shape)) - centroid_mm(volume)
    assert np.abs(moved_mm).max() < 0.02
    labels = Volume(
        resample_labels((blob() > 0.3).astype(np.uint8), shape), resized_affine(AFFINE, (40, 40, 20), shape)
    )
    moved_voxels = np.linalg.solve(labels.affine[:3, :3], centroid_mm(labels) - centroid_mm(volume))
    assert np.abs(moved_voxels).max() < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_convention_the_field_of_view_stays(shape):
    """The outer corners of the first and last voxel are where they were."""
    affine = resized_affine(AFFINE, (40, 40, 20), shape)
    for old, new in (((-0.5,) * 3, (-0.5,) * 3), ((39.5, 39.5, 19.5), tuple(n - 0.5 for n in shape))):
        assert np.allclose(affine @ (*new, 1), AFFINE @ (*old, 1))


@pytest.mark.parametrize("shape", [(60, 50, 40), (47, 53, 31), (40, 40, 50)])
def test_enlarging_is_close_to_a_cubic_spline_and_closer_than_linear(shape):
    volume = smooth()
    zoom = np.divide(shape, volume.shape)
    spline = ndimage.zoom(volume, zoom, order=3, mode="nearest", grid_mode=True)
    linear = ndimage.zoom(volume, zoom, order=1, mode="nearest", grid_mode=True)
    ours = resample_image(Volume(volume[None], np.eye(4)), shape).data[0]
    error, linear_error = np.sqrt(((ours - spline) ** 2).mean()), np.sqrt(((linear - spline) ** 2).mean())
    assert error < 0.005
    assert error < linear_error / 4


def test_enlarging_agrees_with_simpleitk_about_the_place_of_voxels():
    volume, shape = smooth(), (60, 50, 30)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize(shape)
    ratio = np.divide(volume.shape, shape)
    resampler.SetOutputSpacing(ratio.tolist())
    resampler.SetOutputOrigin((ratio / 2 - 0.5).tolist())
    resampler.SetInterpolator(SimpleITK.sitkBSpline)
    theirs = SimpleITK.GetArrayFromImage(resampler.Execute(SimpleITK.GetImageFromArray(volume.T))).T
    ours = resample_image(Volume(volume[None], np.eye(4)), shape).data[0]
    inside = (slice(3, -3),) * 3
    assert np.abs(ours - theirs)[inside].max() < 0.03


def test_shrinking_keeps_smooth_content_and_means():
    volume = smooth((60, 60, 40), width=5)
    ours = resample_image(Volume(volume[None], np.eye(4)), (30, 30, 20)).data[0]
    blurred = ndimage.zoom(volume, 0.5, order=3, mode="nearest", grid_mode=True)
    assert np.abs(ours - blurred).max() < 0.1
    assert ours.mean() == pytest.approx(volume.mean(), abs=1e-3)


def test_shrinking_does_not_alias():
    """Stripes finer than the new voxels become grey; picked without a filter they become wide stripes."""
    stripes = np.broadcast_to(np.cos(np.pi * 0.9 * np.arange(60))[:, None, None], (60, 8, 8)).astype(
        np.float32
    )
    ours = resample_image(Volume(stripes[None], np.eye(4)), (20, 8, 8)).data
    assert np.abs(ours[:, 2:-2]).max() < 0.05
    assert np.abs(ndimage.zoom(stripes, (1 / 3, 1, 1), order=1, grid_mode=True, mode="nearest")).max() > 0.5


def test_no_value_leaves_the_range_of_its_channel():
    edges = np.stack(
        [np.indices((12, 12, 12)).sum(0) % 2 * 100, -(np.indices((12, 12, 12))[0] > 5).astype(float)]
    )
    ours = resample_image(Volume(edges.astype(np.float32), np.eye(4)), (19, 31, 17)).data
    assert (ours[0].min(), ours[0].max()) == (0, 100)
    assert (ours[1].min(), ours[1].max()) == (-1, 0)


def test_channels_do_not_mix():
    both = np.stack([smooth(seed=0), smooth(seed=1)])
    ours = resample_image(Volume(both, np.eye(4)), (33, 50, 20))
    for channel in range(2):
        alone = resample_image(Volume(both[channel : channel + 1], np.eye(4)), (33, 50, 20))
        assert np.allclose(ours.data[channel], alone.data[0], atol=1e-6)


def test_the_same_shape_is_the_same_volume():
    volume = Volume(smooth()[None], AFFINE)
    assert resample_image(volume, volume.shape) is volume


def test_a_constant_stays_constant_and_one_voxel_can_grow():
    volume = Volume(np.full((1, 1, 7, 3), 4, np.float32), np.eye(4))
    assert np.array_equal(resample_image(volume, (5, 2, 9)).data, np.full((1, 5, 2, 9), 4))


def test_read_only_and_turned_arrays_are_accepted_and_not_changed():
    data = smooth()[None].transpose(0, 3, 2, 1)
    copy = data.copy()
    data.setflags(write=False)
    ours = resample_image(Volume(data, np.eye(4)), (30, 50, 40))
    assert np.array_equal(ours.data, resample_image(Volume(copy, np.eye(4)), (30, 50, 40)).data)
    assert np.array_equal(data, copy)


def test_labels_take_the_voxel_in_which_their_centre_lies():
    labels = np.array([1, 2, 3], np.uint8).reshape(3, 1, 1)
    assert resample_labels(labels, (6, 1, 1)).ravel().tolist() == [1, 1, 2, 2, 3, 3]
    # Centres at 0.375, 1.125, 1.875 and 2.625 old voxels.
    assert resample_labels(labels, (4, 1, 1)).ravel().tolist() == [1, 2, 2, 3]
    assert resample_labels(labels, (1, 1, 1)).ravel().tolist() == [2]
    assert resample_labels(labels, (4, 2, 2)).dtype == np.uint8


@pytest.mark.parametrize("shape", [(37, 53, 20), (61, 41, 33), (91, 40, 20)])
def test_labels_of_a_finer_grid_come_back_exactly(shape):
    labels = np.random.default_rng(0).integers(0, 5, (37, 40, 20)).astype(np.uint8)
    assert np.array_equal(resample_labels(resample_labels(labels, shape), labels.shape), labels)


@pytest.mark.parametrize("shape", [(37, 53, 20), (61, 41, 33), (91, 40, 20)])
def test_restored_labels_come_back_exactly_from_a_finer_grid(shape):
    labels = np.random.default_rng(0).integers(0, 5, (37, 40, 20)).astype(np.uint8)
    assert np.array_equal(restore_labels(resample_labels(labels, shape), labels.shape), labels)


@pytest.mark.parametrize("shape", [(17, 30, 9), (24, 31, 10), (80, 35, 14), (12, 9, 1)])
def test_restored_labels_are_the_argmax_of_interpolated_one_hot_maps(shape):
    labels = (smooth((12, 14, 5), width=1.5)).clip(-1, 2).round().astype(np.int16) + 1
    one_hot = np.stack([labels == c for c in range(4)]).astype(np.float32)
    # Axes that shrink take the nearest voxel; the others are interpolated.
    nearest = np.stack(
        [resample_labels(channel, tuple(map(min, labels.shape, shape))) for channel in one_hot]
    )
    support = F.interpolate(
        torch.from_numpy(nearest)[None], size=shape, mode="trilinear", align_corners=False
    )[0]
    restored = restore_labels(labels, shape)
    won, best = support.gather(0, torch.from_numpy(restored.astype(np.int64))[None])[0], support.amax(0)
    assert restored.shape == shape
    assert restored.dtype == np.int16
    assert (best - won).max() < 1e-5


def test_restored_borders_are_nearer_to_the_truth_than_nearest_voxels():
    truth = (blob((60, 60, 60)) > 0.3).astype(np.uint8)
    coarse = resample_labels(truth, (25, 25, 25))
    wrong = [(way(coarse, truth.shape) != truth).sum() for way in (restore_labels, resample_labels)]
    assert wrong[0] < 0.75 * wrong[1]


def test_the_number_of_voxels_follows_from_the_spacing():
    assert shape_at_spacing((100, 100, 20), (0.8, 0.8, 5), (1.6, 0.8, 1)) == (50, 100, 100)
    assert shape_at_spacing((88, 88, 88), (0.625000012,) * 3, (0.625,) * 3) == (88, 88, 88)
    assert shape_at_spacing((2, 2, 2), (1, 1, 1), (50, 1, 1)) == (1, 2, 2)


def test_labels_are_restored_as_the_strongest_of_their_interpolated_maps():
    labels = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    maps = np.stack([labels == value for value in range(3)]).astype(np.float32)
    scores = restore_scores(maps, (13, 9, 8))
    second, first = np.sort(scores, axis=0)[-2:]
    clear = first - second > 1e-5  # ties are decided by rounding
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(scores.argmax(axis=0)[clear], restore_labels(labels, (13, 9, 8))[clear])


@pytest.mark.parametrize("shape", [(6, 5, 4), (3, 2, 9), (12, 5, 1)])
def test_restored_scores_stay_scores(shape):
    maps = np.random.default_rng(0).dirichlet(np.ones(3), (6, 5, 4)).astype(np.float32)
    scores = restore_scores(np.moveaxis(maps, -1, 0), shape)
    assert scores.shape == (3, *shape)
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-5)
