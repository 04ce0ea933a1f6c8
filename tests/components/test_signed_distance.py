"""Signed distance maps: the official values, what is not known, and the way through the augmentation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from labelwise.components.signed_distance import SignedDistance, relative_distance
from labelwise.loading.augment import AugmentConfig, Chance, Views, augment
from labelwise.losses.partial import structure_answers
from labelwise.types import IGNORE


def distances_of(labels, structures=1, unit="voxels", spacing_mm=None, annotated=None):
    annotated = np.ones((len(labels), structures + 1), bool) if annotated is None else annotated
    spacing_mm = np.ones((len(labels), labels.ndim - 1)) if spacing_mm is None else spacing_mm
    return SignedDistance(unit)(labels, annotated, spacing_mm)


def relative_of(labels, structures=1, **settings):
    everything = torch.ones(len(labels), structures + 1, dtype=torch.bool)
    answers = structure_answers(torch.from_numpy(labels).long(), everything)
    return relative_distance(torch.from_numpy(distances_of(labels, structures)), *answers, **settings)


def ball(*shape, radius=6.0, centre=None):
    middle = np.array(shape).reshape(-1, *[1] * len(shape)) / 2 if centre is None else centre
    return (((np.indices(shape) - middle) ** 2).sum(0) < radius**2).astype(np.uint8)[None]


def by_hand(structure, spacing):
    """Every pair of voxels; the surface are structure voxels with a face neighbour outside."""
    places = np.argwhere(np.ones_like(structure)) * spacing
    between = np.linalg.norm(places[:, None] - places[None], axis=2)
    flat = structure.flatten()
    size = np.where(flat, between[:, ~flat].min(axis=1), between[:, flat].min(axis=1)).reshape(
        structure.shape
    )
    padded = np.pad(structure, 1, constant_values=True)
    neighbours = [np.roll(padded, step, axis) for axis in range(structure.ndim) for step in (-1, 1)]
    inner = np.all(neighbours, axis=0)[tuple(slice(1, -1) for _ in structure.shape)]
    return np.where(structure, np.where(inner, -size, 0), size)


@pytest.mark.parametrize(("absent", "key"), [("zero", "sdm_official"), ("far", "sdm_corrected_empty_plus1")])
def test_the_map_is_that_of_the_official_code(golden, absent, key):
    arrays = golden("sassnet")
    target, where = relative_of(arrays["label"], absent=absent)
    np.testing.assert_allclose(target[:, 0], arrays[key], rtol=1e-5, atol=1e-6)
    assert where.all()


def test_an_absent_structure_may_get_no_target(golden):
    labels = golden("sassnet")["label"]
    _, where = relative_of(labels, absent="skip")
    assert where.flatten(1).all(1).tolist() == labels.reshape(4, -1).any(1).tolist()


@pytest.mark.parametrize("unit", ["voxels", "mm"])
@pytest.mark.parametrize("shape", [(9, 7), (6, 5, 4)])
def test_every_structure_has_the_distances_of_a_comparison_of_all_voxels(shape, unit):
    labels = np.random.default_rng(0).integers(0, 3, (2, *shape)).astype(np.uint8)
    labels[0, :4, :4], labels[1, 2:6, 1:4] = 2, 1
    spacing = np.array([[0.7, 1.5, 3.0]])[:, : len(shape)].repeat(2, 0)
    found = distances_of(labels, 2, unit, spacing)
    for case in range(2):
        for structure in (1, 2):
            expected = by_hand(
                labels[case] == structure, spacing[case] if unit == "mm" else np.ones(len(shape))
            )
            np.testing.assert_allclose(found[case, structure - 1], expected, rtol=1e-6)


def test_a_structure_that_fills_the_patch_is_minus_one_everywhere():
    target, where = relative_of(np.ones((1, 6, 6), np.uint8))
    assert (target == -1).all()
    assert where.all()


def test_inside_and_outside_swapped_change_the_sign_except_at_the_surface():
    structure = ball(16, 16, 12, radius=4.5)
    one, other = (distances_of(labels)[0, 0] for labels in (structure, 1 - structure))
    away = (one != 0) & (other != 0)
    np.testing.assert_array_equal(one[away], -other[away])
    assert away.mean() > 0.5


def test_the_surface_can_lie_half_a_voxel_inside():
    labels = np.array([[0, 0, 1, 1, 1, 1, 1]], np.uint8)
    target, _ = relative_of(labels, shift=True)
    np.testing.assert_allclose(target[0, 0], [1, 0.5, -0.1, -0.4, -0.6, -0.8, -1], rtol=1e-6)
    assert relative_of(labels)[0][0, 0, 2] == 0


def test_structures_that_are_not_annotated_get_no_target():
    labels = np.stack([ball(12, 12, radius=4)[0], np.full((12, 12), IGNORE, np.uint8)])
    annotated = np.array([[False, True, False], [False, False, False]])
    distances = distances_of(labels, annotated=annotated)
    assert np.isfinite(distances[0, 0]).all()
    assert np.isnan(distances[0, 1]).all()
    assert np.isnan(distances[1]).all()
    target, where = relative_distance(
        torch.from_numpy(distances),
        *structure_answers(torch.from_numpy(labels).long(), torch.from_numpy(annotated)),
    )
    assert where.flatten(2).all(2).tolist() == [[True, False], [False, False]]
    assert not where[0, 1].any()
    assert target.isfinite().all()


def test_whatever_hides_behind_ignore_cannot_change_a_target():
    random = np.random.default_rng(0)
    labels = ball(20, 20, radius=5)
    hidden = np.zeros_like(labels, bool)
    hidden[0, 11:17, 9:18] = True
    partly = distances_of(np.where(hidden, IGNORE, labels).astype(np.uint8))
    known = ~np.isnan(partly)
    assert 0.1 < known.mean() < 0.9
    assert (partly[known] < 0).any()
    assert not known[:, 0][hidden].any()
    fillings = [0, 1, *(random.integers(0, 2, labels.shape) for _ in range(20))]
    for filling in fillings:
        complete = distances_of(np.where(hidden, filling, labels).astype(np.uint8))
        np.testing.assert_array_equal(partly[known], complete[known])


def test_a_structure_that_may_hide_behind_ignore_is_not_absent():
    labels = np.zeros((1, 8, 8), np.uint8)
    labels[0, 4, 4] = IGNORE
    assert np.isnan(distances_of(labels)).all()


def test_ignore_around_the_scan_is_the_border_of_the_patch():
    labels = ball(10, 10, radius=3)
    padded = np.pad(labels, ((0, 0), (2, 3), (0, 4)), constant_values=IGNORE)
    found = distances_of(padded)
    np.testing.assert_array_equal(found[:, :, 2:-3, :-4], distances_of(labels))
    assert np.isnan(found).sum() == found.size - labels.size
    answers = structure_answers(torch.from_numpy(padded).long(), torch.ones(1, 2, dtype=torch.bool))
    target, where = relative_distance(torch.from_numpy(found), *answers)
    np.testing.assert_array_equal(target[:, :, 2:-3, :-4], relative_of(labels)[0])
    assert where.sum() == labels.size


def test_it_travels_to_worker_processes():
    assert pickle.loads(pickle.dumps(SignedDistance("mm"))) == SignedDistance("mm")


def augmented(labels, config, patch_size):
    distances = distances_of(labels)
    views = Views(
        torch.zeros(len(labels), 1, *labels.shape[1:]),
        torch.from_numpy(labels),
        {"signed_distance": torch.from_numpy(distances)},
    )
    generator = torch.Generator().manual_seed(0)
    spacing_mm = torch.ones(len(labels), 3)
    return augment(views, config, generator, patch_size=patch_size, spacing_mm=spacing_mm)


def test_after_quarter_turns_and_mirrors_it_is_the_map_of_the_turned_labels():
    labels = np.concatenate(
        [ball(16, 16, 8, radius=r, centre=[[[[5]]], [[[9]]], [[[2]]]]) for r in (3, 4, 5)]
    )
    views = augmented(labels, AugmentConfig(preset="la"), (16, 16, 8))
    assert not np.array_equal(views.labels, labels)
    np.testing.assert_array_equal(views.targets["signed_distance"], distances_of(views.labels.numpy()))


def test_after_turning_and_scaling_it_is_close_to_the_map_of_the_new_labels():
    labels = np.concatenate([ball(60, 48, radius=9.0, centre=[[[26.0]], [[28.0]]])] * 4)
    config = AugmentConfig(
        preset="none", rotation_degrees=Chance(1, -25, 25), scale=Chance(1, 1.0, 1.4), margin=0.25
    )
    views = augmented(labels, config, (40, 32, 1))
    answers = structure_answers(views.labels.long(), torch.ones(4, 2, dtype=torch.bool))
    assert answers[0].flatten(1).any(1).all()
    assert answers[1].all(), "the margin fills the corners"
    found, where = relative_distance(views.targets["signed_distance"], *answers)
    expected, _ = relative_of(views.labels.numpy())
    assert where.all()
    assert (found - expected).abs().mean() < 0.03
    assert (found.sign() * expected.sign())[where].min() >= 0, "the sign is that of the labels"


def test_a_structure_that_lies_in_the_margin_only_counts_as_absent_from_the_patch():
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, :2] = 1
    views = augmented(labels, AugmentConfig(preset="none", margin=0.125), (16, 16, 1))
    answers = structure_answers(views.labels.long(), torch.ones(1, 2, dtype=torch.bool))
    target, where = relative_distance(views.targets["signed_distance"], *answers)
    assert (target == 1).all()
    assert where.all()
