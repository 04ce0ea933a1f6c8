"""Gaussian blur with a width for each case."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from labelwise.components.batches import gaussian_blur, sometimes_blurred


@pytest.mark.parametrize("shape", [(20, 15), (12, 10, 9)])
def test_it_agrees_with_scipy_for_each_case_and_channel(shape):
    torch.manual_seed(0)
    images = torch.randn(2, 3, *shape)
    blurred = gaussian_blur(images, torch.tensor([0.7, 1.5]), radius=6)
    for case, width in enumerate((0.7, 1.5)):
        for channel in range(3):
            expected = ndimage.gaussian_filter(images[case, channel].numpy(), width, mode="nearest", radius=6)
            torch.testing.assert_close(
                blurred[case, channel], torch.from_numpy(expected), rtol=1e-4, atol=1e-5
            )


def test_a_width_of_zero_changes_nothing():
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert gaussian_blur(images, torch.zeros(2), radius=6).equal(images)


def test_some_cases_are_blurred_and_the_others_left_alone():
    torch.manual_seed(0)
    images = torch.randn(200, 1, 6, 6)
    same = (sometimes_blurred(images) == images).flatten(1).all(dim=1)
    assert 0.1 < same.float().mean() < 0.35
    assert not (sometimes_blurred(images, chance=1.0, widths=(1.0, 2.0)) == images).any()
