"""Surface metrics against hand values, SciPy's distance transform, the golden arrays, MedPy and MONAI."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from labelwise.evaluate import surface
from labelwise.evaluate.surface import SurfaceDistances, asd, assd, hd95, nsd, surface_distances

SPACINGS = [None, (1.0, 1.0, 1.0), (0.8, 0.7, 3.0)]


def blobs(seed: int, shape: tuple[int, ...] = (26, 22, 18), num_classes: int = 4) -> np.ndarray:
    """Smooth random structures of all shapes; some touch each other or the edge of the image."""
    generator = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(generator.normal(size=shape), 2.5) for _ in range(num_classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def binary_surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def by_distance_transform(source: np.ndarray, target: np.ndarray, spacing) -> np.ndarray:
    far = ndimage.distance_transform_edt(~binary_surface(target), sampling=spacing)
    return far[binary_surface(source)]


@pytest.fixture(scope="module")
def medpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old syntax in its docstrings
        return pytest.importorskip("medpy.metric.binary", reason="MedPy is not installed")


@pytest.fixture(scope="module")
def monai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optional libraries that it looks for
        return pytest.importorskip("monai.metrics", reason="MONAI is not installed")


def test_values_worked_out_by_hand():
    """Two columns of 2 and 4 voxels: the lower two coincide, the upper two are 1 and 2 voxels away."""
    reference, prediction = np.zeros((3, 8), np.uint8), np.zeros((3, 8), np.uint8)
    prediction[1, 2:4] = 1
    reference[1, 2:6] = 1
    found = surface_distances(reference, prediction)[1]
    assert sorted(found.to_reference) == [0, 0]
    assert sorted(found.to_prediction) == [0, 0, 1, 2]
    assert asd(found) == 0
    assert assd(found) == pytest.approx(3 / 6)
    assert nsd(found, 1) == pytest.approx(5 / 6)
    assert hd95(found) == pytest.approx(1.75)  # place 4.75 of 0, 0, 0, 0, 1, 2


def test_convention_surface_distances_are_in_millimetres_along_their_axis():
    reference, prediction = np.zeros((12, 5, 5), np.uint8), np.zeros((12, 5, 5), np.uint8)
    reference[2, 2, 2] = prediction[6, 2, 2] = 1
    assert hd95(surface_distances(reference, prediction, spacing=(0.5, 1.0, 1.0))[1]) == 2.0
    assert hd95(surface_distances(reference, prediction)[1]) == 4.0


def test_convention_voxels_at_the_edge_of_the_image_are_surface():
    full = np.ones((5, 5, 5), np.uint8)
    assert len(surface_distances(full, full)[1].to_reference) == 125 - 27


def test_convention_hd95_pools_both_directions():
    distances = SurfaceDistances(np.zeros(90), np.full(10, 7.0))
    assert hd95(distances) == 7.0
    assert hd95(SurfaceDistances(np.zeros(97), np.full(3, 7.0))) == 0.0


def test_convention_asd_goes_from_the_prediction_to_the_reference():
    assert asd(SurfaceDistances(to_reference=np.array([2.0, 4.0]), to_prediction=np.array([9.0]))) == 3.0


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("reach", [1, 4])
def test_equals_a_distance_transform_per_class(spacing, reach, monkeypatch):
    monkeypatch.setattr(surface, "REACH", reach)  # 1: the tree answers most voxels
    reference, prediction = blobs(0), np.roll(blobs(1), 2, axis=0)
    found = surface_distances(reference, prediction, range(1, 4), spacing)
    assert sorted(found) == [1, 2, 3]
    for c, distances in found.items():
        a, b = reference == c, prediction == c
        np.testing.assert_allclose(distances.to_reference, by_distance_transform(b, a, spacing), rtol=1e-12)
        np.testing.assert_allclose(distances.to_prediction, by_distance_transform(a, b, spacing), rtol=1e-12)


def test_surfaces_far_from_each_other_are_exact():
    reference, prediction = np.zeros((60, 40, 9), np.uint8), np.zeros((60, 40, 9), np.uint8)
    reference[2:9, 3:8, 1:5], prediction[40:58, 20:39, 4:9] = 1, 1
    reference[30:35, 30:35, 2:4], prediction[30:35, 31:36, 2:4] = 2, 2
    spacing = (0.9, 0.9, 4.0)
    for c, distances in surface_distances(reference, prediction, (1, 2), spacing).items():
        expected = by_distance_transform(prediction == c, reference == c, spacing)
        np.testing.assert_allclose(distances.to_reference, expected, rtol=1e-12)


def test_two_dimensional_maps_are_served_too():
    reference, prediction = blobs(2, (40, 33)), blobs(3, (40, 33))
    for c, distances in surface_distances(reference, prediction, range(4), (0.5, 2.0)).items():
        expected = by_distance_transform(prediction == c, reference == c, (0.5, 2.0))
        np.testing.assert_allclose(distances.to_reference, expected, rtol=1e-12)


def test_swapping_the_maps_swaps_the_directions():
    there = surface_distances(blobs(4), blobs(5), [1])[1]
    back = surface_distances(blobs(5), blobs(4), [1])[1]
    np.testing.assert_array_equal(there.to_reference, back.to_prediction)
    np.testing.assert_array_equal(there.to_prediction, back.to_reference)


def test_an_empty_margin_and_other_classes_change_nothing():
    reference, prediction = blobs(6), blobs(7)
    inner = surface_distances(reference * (reference == 2), prediction * (prediction == 2), [2])[2]
    among_others = surface_distances(reference, prediction, [2])[2]
    wide = surface_distances(*(np.pad(m * (m == 2), 5) for m in (reference, prediction)), [2])[2]
    for found in (among_others, wide):
        np.testing.assert_array_equal(found.to_reference, inner.to_reference)


def test_scaling_the_voxels_scales_the_distances():
    small = surface_distances(blobs(8), blobs(9), [1], (1.0, 0.5, 2.0))[1]
    large = surface_distances(blobs(8), blobs(9), [1], (3.0, 1.5, 6.0))[1]
    np.testing.assert_allclose(large.to_reference, 3 * small.to_reference)


def test_equal_maps_have_distance_zero_and_full_surface_dice():
    for distances in surface_distances(blobs(10), blobs(10), range(1, 4)).values():
        assert hd95(distances) == asd(distances) == assd(distances) == 0
        assert nsd(distances, 0) == 1


def test_only_classes_of_both_maps_have_distances():
    reference, prediction = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    assert surface_distances(reference, prediction, [1, 2]) == {}
    reference[1, 1, 1], prediction[1, 1, 1] = 1, 2
    assert surface_distances(reference, prediction, [1, 2]) == {}


def test_a_distance_equal_to_the_tolerance_is_within_it_despite_rounding():
    reference, prediction = np.zeros((9, 3), np.uint8), np.zeros((9, 3), np.uint8)
    reference[2, 1] = prediction[5, 1] = 1  # 3 * 0.7 = 2.0999999999999996 and 2.1 are one length
    assert nsd(surface_distances(reference, prediction, spacing=(0.7, 1.0))[1], 2.1) == 1
    assert nsd(surface_distances(reference, prediction, spacing=(0.7, 1.0))[1], 2.09) == 0


def test_agrees_with_the_golden_arrays_of_the_left_atrium_benchmark(golden):
    vector = golden("mean_teacher")
    found = surface_distances(vector["la_metric_gt"], vector["la_metric_pred"])[1]
    _, _, expected_hd95, expected_asd = vector["la_metric_dice_jac_hd95_asd_f64"]
    assert hd95(found) == pytest.approx(expected_hd95, rel=1e-12)
    assert asd(found) == pytest.approx(expected_asd, rel=1e-12)
    assert assd(found) == pytest.approx(float(vector["la_metric_assd"]), rel=1e-12)
    assert found.to_prediction.mean() == pytest.approx(float(vector["la_metric_asd_reverse"]), rel=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_medpy(medpy, spacing):
    reference, prediction = blobs(11), blobs(12)
    for c, found in surface_distances(reference, prediction, range(1, 4), spacing).items():
        masks = (prediction == c, reference == c, spacing)
        assert hd95(found) == pytest.approx(medpy.hd95(*masks), abs=1e-9)
        assert asd(found) == pytest.approx(medpy.asd(*masks), abs=1e-9)
        assert assd(found) == pytest.approx(medpy.assd(*masks), abs=1e-9)


# MONAI 1.6 calls itself with an argument that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_monai_where_the_definitions_agree(monai, spacing):
    """MONAI's HD95 is the larger directed percentile; mean distances and surface Dice are defined alike."""
    reference, prediction = blobs(13), blobs(14)
    one_hot = [torch.from_numpy(np.stack([m == c for c in range(4)])[None]) for m in (prediction, reference)]
    settings = {"include_background": False, "spacing": spacing}
    their_hd95 = monai.compute_hausdorff_distance(*one_hot, percentile=95, **settings)[0]
    their_assd = monai.compute_average_surface_distance(*one_hot, symmetric=True, **settings)[0]
    their_nsd = monai.compute_surface_dice(*one_hot, class_thresholds=[1.25] * 3, **settings)[0]
    for c, found in surface_distances(reference, prediction, range(1, 4), spacing).items():
        larger = max(np.percentile(directed, 95) for directed in found)
        assert larger == pytest.approx(their_hd95[c - 1].item(), rel=1e-5)
        assert assd(found) == pytest.approx(their_assd[c - 1].item(), rel=1e-5)
        assert nsd(found, 1.25) == pytest.approx(their_nsd[c - 1].item(), rel=1e-5)
