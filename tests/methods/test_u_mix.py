"""U-Mix against the arrays of the official arithmetic, and its rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.errors import ConfigError
from labelwise.methods.ucmt.u_mix import certain_over_uncertain, patch_means, patch_shape, rearrange


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def test_two_dimensions_agree_with_the_official_arithmetic(golden):
    arrays = {name: tensor(array) for name, array in golden("ucmt").items()}
    patch = patch_shape((16, 16), 4)
    assert patch == (4, 4)
    means = [patch_means(arrays[f"unc_{n}"][:, 0], patch) for n in (1, 2)]
    for number, mean in zip((1, 2), means, strict=True):
        torch.testing.assert_close(mean, arrays[f"patch_mean_{number}"], rtol=1e-5, atol=1e-6)
        order = mean.argsort(dim=1, descending=True, stable=True)
        assert order.equal(arrays[f"order_{number}"].long())
    source = certain_over_uncertain(*means, 2)
    assert source.equal(arrays["patch_src"].long())
    assert rearrange(arrays["image"], source, patch).equal(arrays["image_mix"])
    assert rearrange(arrays["label"][:, 0], source, patch).equal(arrays["label_mix"][:, 0])


def test_three_dimensions_agree_with_an_independent_calculation(golden):
    arrays = {name: tensor(array) for name, array in golden("ucmt").items()}
    patch = patch_shape((8, 16, 16), 8)
    assert patch == (1, 2, 2)
    means = [patch_means(arrays[f"unc3_{n}"], patch) for n in (1, 2)]
    mixed = rearrange(arrays["image3"], certain_over_uncertain(*means, 2), patch)
    assert mixed.equal(arrays["image3_mix"])


def test_the_second_filling_wins_where_both_want_a_patch():
    first = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    second = torch.tensor([[9.0, 3.0, 2.0, 1.0]])
    # patch 0 <- 3, the most certain for the second network; then 0 <- 1, the most certain for the first one
    assert certain_over_uncertain(first, second, 1).tolist() == [[1, 1, 2, 3]]


def test_too_few_patches_are_refused():
    with pytest.raises(ConfigError, match="too few patches"):
        certain_over_uncertain(torch.zeros(1, 3), torch.zeros(1, 3), 2)


def test_patches_divide_the_image():
    assert patch_shape((256, 256), 16) == (16, 16)
    assert patch_shape((112, 112, 80), 8) == (14, 14, 10)
    assert patch_shape((37, 96, 4), 8) == (1, 12, 1)


@pytest.mark.parametrize("shape", [(8, 12), (4, 6, 8)])
def test_rearranging_by_the_own_numbers_changes_nothing(shape):
    patch = [2] * len(shape)
    values = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    patches = values[0, 0].numel() // 2 ** len(shape)
    assert rearrange(values, torch.arange(patches).repeat(2, 1), patch).equal(values)


def test_nothing_leaves_its_own_image():
    torch.manual_seed(0)
    values = torch.arange(2).view(2, 1, 1).expand(2, 8, 8).contiguous()
    source = certain_over_uncertain(torch.rand(2, 16), torch.rand(2, 16), 2)
    assert rearrange(values, source, (2, 2)).equal(values)
