"""CutMix: boxes, pairs and mixing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from labelwise.components.batches import _warn_of_a_single_case, cut_boxes, mix, partners, select_rows


def test_mixing_agrees_with_the_official_code(golden):
    arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in golden("ltuda").items()}
    keep = arrays["mix_mask"][:, 0] == 1
    rows = partners([[False, True]] * 4)
    for name, out in (
        ("mix_image", "mix_image_out"),
        ("mix_label", "mix_label_out"),
        ("pbce_target_partial", "mix_partial_out"),
    ):
        values = arrays[name]
        expected = arrays[out].to(values.dtype)
        torch.testing.assert_close(mix(values, select_rows(values, rows), keep), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(40, 24), (24, 16, 12)])
def test_every_box_is_one_solid_block_inside_the_image(shape):
    torch.manual_seed(0)
    for case in ~cut_boxes(50, shape):
        places = case.nonzero()
        size = places.amax(0) - places.amin(0) + 1
        assert len(places) == size.prod() > 0


def test_areas_and_ratios_are_those_of_redrawing_until_the_box_lies_inside():
    """Mean area 0.207, a quarter above 0.3, and tall boxes: simulated from the published rule."""
    torch.manual_seed(0)
    boxes = ~torch.cat([cut_boxes(500, (128, 128)) for _ in range(4)])
    area = boxes.float().mean(dim=(1, 2))
    ratio = boxes.any(dim=1).sum(dim=1) / boxes.any(dim=2).sum(dim=1)
    assert area.mean().item() == pytest.approx(0.207, abs=0.01)
    assert (area > 0.3).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert ratio.median().item() == pytest.approx(1.53, abs=0.12)
    assert (area.min(), area.max()) > (0.015, 0.3)
    assert area.max() <= 0.4


def test_boxes_in_three_axes_have_the_same_share_of_the_volume():
    torch.manual_seed(0)
    share = 1 - cut_boxes(200, (64, 64, 64)).float().mean(dim=(1, 2, 3))
    assert 0.15 < share.mean() < 0.25
    assert share.max() <= 0.4


def test_a_box_that_fits_in_no_shape_becomes_a_cube():
    assert not cut_boxes(2, (8, 8), area=(1.0, 1.0)).any()


def test_the_same_seed_gives_the_same_boxes_and_every_case_its_own():
    torch.manual_seed(1)
    first = cut_boxes(2, (32, 32))
    torch.manual_seed(1)
    assert torch.equal(first, cut_boxes(2, (32, 32)))
    assert not torch.equal(first[0], first[1])


def test_maps_with_channels_are_mixed_like_labels():
    keep = torch.tensor([[True, False]])
    mine, theirs = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    assert mix(mine, theirs, keep).tolist() == [[[0, 1]] * 3]
    assert mix(mine[:, 0].bool(), theirs[:, 0].bool(), keep).tolist() == [[False, True]]


def test_a_partner_of_another_set_is_preferred_and_the_next_one_stands_in():
    liver, spleen = (False, True, False), (True, False, True)
    assert partners([liver, spleen, liver]) == [1, 2, 0]
    assert partners([liver, liver, spleen, spleen], "different_set") == [2, 2, 0, 0]
    assert partners([liver, liver], "different_set") == [1, 0]


def test_what_is_said_about_the_background_makes_no_other_set():
    assert partners([(True, True), (False, True), (False, False)], "different_set") == [2, 2, 0]


def test_a_single_case_is_mixed_with_itself_and_a_warning_says_so_once(caplog):
    _warn_of_a_single_case.cache_clear()
    with caplog.at_level(logging.WARNING, logger="labelwise"):
        assert partners([(False, True)]) == partners([(False, True)], "different_set") == [0]
    assert len(caplog.records) == 1
    assert "single case" in caplog.text
