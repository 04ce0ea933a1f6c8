"""The ring memory, representations and percentiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from labelwise.methods.arco.method import percentiles
from labelwise.methods.arco.representation import RepresentationHead, class_means, rows_at
from labelwise.methods.arco.ring_memory import RingMemory


def put(memory, values, wanted):
    values = torch.tensor(values, dtype=torch.float32).unsqueeze(2)
    memory.put(values, torch.tensor(wanted, dtype=torch.bool))


def test_the_oldest_rows_give_way_in_each_group():
    memory = RingMemory([3, 2], 1)
    put(memory, [[1, 2], [1, 2]], [[1, 1], [0, 1]])
    assert memory.filled.tolist() == [2, 1]
    assert memory.is_filled.tolist() == [[True, True, False], [True, False, False]]
    put(memory, [[3, 4], [3, 4]], [[1, 1], [1, 0]])
    assert memory.rows[0].flatten().tolist() == [4, 2, 3]
    assert memory.rows[1].flatten().tolist()[:2] == [2, 3]
    put(memory, [[9, 9], [9, 9]], [[0, 0], [0, 0]])
    assert memory.rows[0].flatten().tolist() == [4, 2, 3]
    assert memory.filled.tolist() == [3, 2]


def test_of_more_rows_than_fit_the_last_ones_stay():
    memory = RingMemory([3], 1)
    put(memory, [[1, 2, 3, 4, 5, 6]], [[1, 1, 0, 1, 1, 0]])
    assert sorted(memory.rows.flatten().tolist()) == [2, 4, 5]


def test_rows_are_read_by_their_numbers():
    memory = RingMemory([2, 2], 1)
    put(memory, [[1, 2], [3, 4]], [[1, 1], [1, 1]])
    assert memory.read(torch.tensor([[[1, 0]], [[0, 7]]])).squeeze(3).tolist() == [[[2, 1]], [[3, 4]]]


def test_percentiles_of_masked_values_are_those_of_numpy():
    generator = torch.Generator().manual_seed(0)
    values, where = torch.rand(2, 50, generator=generator), torch.rand(2, 50, generator=generator) < 0.7
    found = percentiles(values, where, (0, 12.5, 80, 100))
    expected = np.percentile(values[where].numpy(), (0, 12.5, 80, 100))
    assert [value.item() for value in found] == pytest.approx(expected.tolist(), rel=1e-5)
    assert all(value.isinf() for value in percentiles(values, torch.zeros_like(where), (20, 80)))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_short_way_through_the_linear_head_gives_what_the_long_way_gives(dims):
    torch.manual_seed(0)
    channels, mode = (6, 4, 3), {2: "bilinear", 3: "trilinear"}[dims]
    head = RepresentationHead(channels, 5)
    scales = [torch.randn(2, width, *[4 * 2**level] * dims) for level, width in enumerate(channels)]

    def apply(linear, maps):
        return linear(maps.movedim(1, -1)).movedim(-1, 1)

    x = scales[0]
    for mixer, finer in zip(head.mixers, scales[1:], strict=True):
        x = F.interpolate(x + apply(mixer, x), size=finer.shape[2:], mode=mode, align_corners=True)
        x = torch.cat([x, finer], dim=1)
    torch.testing.assert_close(head(scales), apply(head.last, x), rtol=1e-4, atol=1e-5)


def test_voxels_are_numbered_case_by_case():
    maps = torch.arange(2 * 3 * 4).view(2, 3, 2, 2).float()
    assert rows_at(maps, torch.tensor([[0, 5]])).tolist() == [[[0, 4, 8], [13, 17, 21]]]


def test_a_class_without_voxels_has_no_mean():
    masks = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = True
    mean, present = class_means(torch.arange(4).view(1, 1, 2, 2).float(), masks)
    assert mean.flatten().tolist() == [0.5, 0]
    assert present.tolist() == [True, False]
