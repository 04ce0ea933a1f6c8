"""Boxes that toggle: for CutMix with several pieces."""

from __future__ import annotations

import pytest
import torch

from labelwise.methods.cps import toggled_boxes


@pytest.mark.parametrize("shape", [(40, 30), (20, 24, 16)])
def test_one_box_covers_a_part_of_the_image_within_the_bounds(shape):
    torch.manual_seed(0)
    keep = toggled_boxes(200, shape, boxes=1, area=(0.25, 0.5))
    assert keep.shape == (200, *shape)
    part = (~keep).flatten(1).float().mean(dim=1)
    assert part.min() > 0.2
    assert part.max() < 0.56
    assert part.mean() == pytest.approx(0.375, abs=0.02)


def test_where_two_boxes_lie_a_case_keeps_its_own_voxels():
    torch.manual_seed(0)
    # Two boxes of nearly the whole image: what one takes away the other one gives back, but for thin rims.
    keep = toggled_boxes(50, (32, 32), boxes=2, area=(1.9, 1.98))
    assert keep.float().mean() > 0.8


def test_every_voxel_can_be_cut_and_can_be_kept():
    torch.manual_seed(0)
    keep = toggled_boxes(300, (16, 16))
    assert not keep.all(dim=0).any()
    assert keep.any(dim=0).all()
    assert 0.6 < keep.float().mean() < 0.75


def test_the_seed_decides_the_boxes():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(toggled_boxes(2, (16, 16, 16)))
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])
