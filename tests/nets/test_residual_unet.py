"""The residual U-Net: strides and kernels per axis, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.errors import ConfigError
from labelwise.nets.factory import NetFactory
from labelwise.nets.residual_unet import ResidualBlock

THICK = {
    "width": 2,
    "blocks": (1, 1, 1, 2),
    "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)),
    "kernels": ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)),
}


def factory(settings: dict[str, object], dims: int = 3) -> NetFactory:
    return NetFactory("residual_unet", settings, dims=dims, in_channels=1, num_classes=3)


def test_thick_slices_are_shrunk_in_their_plane_first():
    nets = factory(THICK)
    assert nets.strides == (8, 8, 2)
    images = torch.randn(1, 1, 16, 16, 4)
    features = nets.encoder()(images)
    assert [tuple(scale.shape[2:]) for scale in features] == [(16, 16, 4), (8, 8, 4), (4, 4, 4), (2, 2, 2)]
    assert nets.network()(images).shape == (1, 3, 16, 16, 4)


@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
def test_every_way_to_enlarge_follows_the_strides(upsampling):
    network = factory({**THICK, "upsampling": upsampling}).network()
    assert network(torch.randn(1, 1, 16, 16, 4)).shape == (1, 3, 16, 16, 4)


def test_a_flat_kernel_mixes_no_slices():
    network = factory(
        {"width": 2, "blocks": (1, 1), "strides": ((1, 1, 1), (2, 2, 1)), "kernels": ((3, 3, 1), (3, 3, 1))}
    ).network()
    network.double()
    for norm in [module for module in network.modules() if isinstance(module, nn.InstanceNorm3d)]:
        norm.eval()
        norm.forward = lambda features: features  # it alone would mix slices
    images = torch.randn(1, 1, 8, 8, 4, dtype=torch.float64)
    changed = images.clone()
    changed[..., 3] += 1
    before, after = network(images), network(changed)
    assert torch.equal(before[..., :3], after[..., :3])
    assert not torch.equal(before[..., 3], after[..., 3])


def test_a_block_whose_convolutions_give_nothing_hands_its_input_on():
    block = ResidualBlock(nn.Conv2d(2, 2, 1, bias=False), nn.Identity())
    nn.init.zeros_(block.convolutions.weight)
    images = torch.rand(1, 2, 4, 4)
    assert torch.equal(block(images), images)


def test_channels_double_up_to_the_largest_width():
    assert factory({"width": 4, "max_width": 10, "blocks": (1, 1, 1)}).encoder().channels == (4, 8, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": (1, 1), "strides": ((1, 1, 1),)}, "one row for each level"),
        ({"blocks": (1, 1), "kernels": ((3, 3), (3, 3))}, "one number for each axis"),
        ({"blocks": (1, 1), "strides": ((2, 1, 1), (2, 2, 2))}, "keeps the size"),
        ({"blocks": (1, 1), "kernels": ((3, 3, 3), (3, 3, 2))}, "odd"),
    ],
)
def test_what_makes_no_network_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        factory(settings)


def test_a_size_that_does_not_fit_is_refused_with_the_divisor_of_each_axis():
    with pytest.raises(ConfigError, match="8 x 8 x 2"):
        factory(THICK).network()(torch.zeros(1, 1, 16, 12, 4))
