"""The U-Net of the PLS4MIS benchmark: its size, its layers and its start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.nets.factory import NetFactory


def factory(dims: int = 3, num_classes: int = 17, **settings: object) -> NetFactory:
    return NetFactory("plseg_unet", settings, dims=dims, in_channels=1, num_classes=num_classes)


def test_the_published_network_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in factory().network().parameters()) == 1_326_977


def test_dropout_grows_with_depth_in_the_encoder_and_shrinks_in_the_decoder():
    network = factory(dropout_scale=0.5).network()
    for part, expected in ((network.encoder, [0, 0, 0.05, 0.1]), (network.decoder, [0.05, 0, 0])):
        rates = [module.p for module in part.modules() if isinstance(module, nn.Dropout)]
        assert rates == pytest.approx(expected)


def test_weights_start_as_glorot_proposed_and_offsets_at_zero():
    torch.manual_seed(0)
    network = factory().network()
    convolution = network.encoder.stages[3][5]
    assert isinstance(convolution, nn.Conv3d)
    fan = 27 * (convolution.in_channels + convolution.out_channels)
    assert convolution.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert all(module.bias.abs().max() == 0 for module in convolutions)


@pytest.mark.parametrize(("dims", "depth"), [(2, 5), (3, 3)])
def test_the_depth_can_be_chosen(dims: int, depth: int):
    nets = factory(dims, num_classes=3, width=2, depth=depth)
    assert nets.strides[0] == 2 ** (depth - 1)
    images = torch.randn(2, 1, *[32] * dims)
    assert len(nets.encoder()(images)) == depth
    assert nets.network()(images).shape == (2, 3, *[32] * dims)


@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
def test_every_upsampling_can_be_chosen(upsampling: str):
    nets = factory(num_classes=3, width=2, upsampling=upsampling)
    assert nets.network()(torch.randn(2, 1, 16, 16, 16)).shape == (2, 3, 16, 16, 16)
