"""The U-Net of LTUDA: its size and its shape."""

from __future__ import annotations

import pytest
import torch

from labelwise.nets.factory import NetFactory


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def factory(dims=2, **settings):
    return NetFactory("ltuda_unet", settings, dims=dims, in_channels=1, num_classes=5)


def test_the_published_network_has_its_published_number_of_parameters():
    assert count(factory().network(4)) == 13_394_372  # published: 13.39 M


@pytest.mark.parametrize("dims", [2, 3])
def test_the_coarsest_scales_are_equally_wide_and_the_embedding_has_the_width(dims):
    nets = factory(dims, width=2)
    assert nets.encoder().channels == (2, 4, 8, 16, 16)
    assert nets.decoder().channels == (8, 4, 2, 2)
    assert nets.strides[0] == 16
    assert nets.network()(torch.zeros(2, 1, *[32] * dims)).shape == (2, 5, *[32] * dims)


@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_upsampling_and_norm_can_be_chosen(upsampling, norm):
    network = factory(width=2, norm=norm, upsampling=upsampling).network()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 5, 32, 32)


def test_the_skip_comes_first():
    """The skip has the channels before the enlarged features, as in the published weights."""
    stage = factory(width=2).decoder().stages[0]
    with torch.no_grad():
        stage.convolutions[0].weight[:, 16:] = 0  # what comes second has no weight
    skip, coarse = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)
    with_zero = stage(torch.zeros_like(coarse), skip)
    torch.testing.assert_close(stage(coarse, skip), with_zero)
