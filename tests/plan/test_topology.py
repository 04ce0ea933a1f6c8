"""Patches and scales: the rules of nnU-Net's experiment planning, by hand."""

from __future__ import annotations

from math import prod

import pytest

from labelwise.plan.topology import LEAST_FEATURES, find_patch, find_topology

SCANS = [
    ((512, 512, 120), (0.78, 0.78, 3.0)),
    ((240, 240, 155), (1.0, 1.0, 1.0)),
    ((130, 96, 60), (0.9, 0.9, 0.9)),
    ((256, 216, 10), (1.4, 1.4, 10.0)),
    ((12, 300, 300), (8.0, 0.9, 0.9)),
    ((33, 47, 51), (1.0, 1.1, 1.2)),
    ((256, 216), (1.4, 1.4)),
]


def test_an_isotropic_cube_is_halved_down_to_four_voxels_along_all_axes():
    found = find_topology((64, 64, 64), (1.0, 1.0, 1.0))
    assert found.strides == ((1, 1, 1), *((2, 2, 2),) * 4)
    assert found.kernels == ((3, 3, 3),) * 5
    assert (found.patch, found.divisor, found.isotropic_depth) == ((64, 64, 64), (16, 16, 16), 5)


def test_thick_slices_are_halved_and_mixed_only_when_the_plane_has_become_as_coarse():
    # 1 mm: halved to 2 and 4 mm, which is no longer less than half of 5 mm; then all three together.
    found = find_topology((64, 64, 16), (1.0, 1.0, 5.0))
    assert found.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_an_axis_alone_is_halved_only_while_three_times_the_coarsest_length_is_left():
    assert find_topology((8, 4, 4), (1.0, 1.0, 1.0)).strides == ((1, 1, 1),)
    assert find_topology((12, 4, 4), (1.0, 1.0, 1.0)).strides == ((1, 1, 1), (2, 1, 1))


def test_a_patch_is_enlarged_until_it_can_be_halved():
    found = find_topology((100, 60, 33), (1.0, 1.0, 1.0))
    assert all(size % part == 0 for size, part in zip(found.patch, found.divisor, strict=True))
    assert all(
        0 <= a - b < part for a, b, part in zip(found.patch, (100, 60, 33), found.divisor, strict=True)
    )


@pytest.mark.parametrize(("shape", "spacing"), SCANS)
@pytest.mark.parametrize("most", [32 * 32 * 32, 64 * 64 * 48, 128**3])
def test_a_patch_fits_its_limit_its_scan_and_its_network(shape, spacing, most):
    found = find_patch(shape, spacing, most)
    assert prod(found.patch) <= most
    for size, length, divisor in zip(found.patch, shape, found.divisor, strict=True):
        assert size % divisor == 0
        assert size < length + divisor  # no longer than the scan, but for rounding
        assert size // divisor >= min(LEAST_FEATURES, length) / 2
    assert len(found.strides) == len(found.kernels)
    assert found.strides[0] == (1,) * len(shape)


def test_the_axis_of_which_most_is_seen_is_shortened_first():
    wide = find_patch((400, 100, 100), (1.0, 1.0, 1.0), 64**3)
    assert wide.patch[0] >= 2 * wide.patch[1]


def test_a_small_scan_is_seen_as_a_whole():
    assert find_patch((48, 48, 32), (1.0, 1.0, 1.0), 128**3).patch == (48, 48, 32)


def test_a_patch_that_is_given_keeps_its_size():
    found = find_topology((48, 40, 31), (1.0, 1.0, 1.0), exact=True)
    assert found.patch == (48, 40, 31)
    assert found.divisor == (8, 8, 1)
