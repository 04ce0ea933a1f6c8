"""Labels at the sizes of coarser outputs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from labelwise.components.batches import labels_at
from labelwise.types import IGNORE


def test_a_voxel_takes_the_label_at_the_floor_of_its_scaled_index():
    assert labels_at(torch.tensor([[5, 6, 7, 8]]), [2]).tolist() == [[5, 7]]
    assert labels_at(torch.tensor([[5, 6, 7, 8, 9]]), [3]).tolist() == [[5, 6, 8]]
    assert labels_at(torch.tensor([[5, 6, 7]]), [6]).tolist() == [[5, 5, 6, 6, 7, 7]]


@pytest.mark.parametrize(("before", "after"), [((8, 12), (4, 3)), ((8, 12, 6), (4, 6, 6))])
def test_halves_and_quarters_are_strided_slices_in_2d_and_3d(before, after):
    labels = torch.randint(0, 5, (2, *before), generator=torch.Generator().manual_seed(0))
    steps = [slice(None, None, old // new) for old, new in zip(before, after, strict=True)]
    assert labels_at(labels, after).equal(labels[(slice(None), *steps)])


def test_odd_sizes_are_sampled_axis_by_axis():
    labels = torch.arange(7 * 9 * 5).view(1, 7, 9, 5)
    coarse = labels_at(labels, (4, 5, 2))
    for x in range(4):
        for y in range(5):
            for z in range(2):
                assert coarse[0, x, y, z] == labels[0, x * 7 // 4, y * 9 // 5, z * 5 // 2]


def test_it_agrees_with_the_nearest_interpolation_of_torch_where_that_is_exact():
    labels = torch.randint(0, 200, (2, 16, 24, 8), generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(labels.double().unsqueeze(1), (8, 6, 8), mode="nearest").squeeze(1).long()
    assert labels_at(labels, (8, 6, 8)).equal(expected)


def test_a_long_axis_is_indexed_without_rounding():
    # As float32 the product i * (before / after) is a little below the integer for some i.
    before, after = 30_000, 4_999
    labels = torch.arange(before).unsqueeze(0)
    assert labels_at(labels, [after])[0].tolist() == [i * before // after for i in range(after)]


def test_no_value_appears_that_was_not_there():
    labels = torch.full((1, 6, 6), IGNORE)
    labels[:, :3] = 2
    assert set(labels_at(labels, (4, 5)).flatten().tolist()) == {2, IGNORE}


def test_labels_at_their_own_size_come_back_as_they_are():
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    assert labels_at(labels, labels.shape[1:]) is labels


def test_maps_with_channels_keep_them():
    known = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    assert labels_at(known, (4, 4)).equal(known[:, :, ::2, ::2])
