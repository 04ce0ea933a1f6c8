"""The pyramid-in pyramid-out network: its published size, equal depth of all ways, and settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.methods.pipo_fan.method import ScaleFusion
from labelwise.methods.pipo_fan.network import Residual, residual_chain
from labelwise.nets.factory import NetFactory

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
# 1x1 convolutions (with batch norm) beside identity shortcuts, counted in the published number, used by no pass:
# three from 16 to 16 channels, one from 32 to 32, one from 64 to 64.
UNUSED = sum(count * (2 * width + width * width + width) for width, count in ((16, 3), (32, 1), (64, 1)))


def factory(dims: int = 3, num_classes: int = 3, in_channels: int = 1, **settings: object) -> NetFactory:
    return NetFactory("pipofan", settings, dims=dims, in_channels=in_channels, num_classes=num_classes)


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def depth_of(module: nn.Module) -> int:
    """3x3 convolutions on the way through a module that has one way of them."""
    return sum(isinstance(part, CONVOLUTIONS) and max(part.kernel_size) == 3 for part in module.modules())


def test_convention_the_number_of_parameters_is_the_published_one_without_the_unused():
    assert UNUSED == 6_320
    assert size_of(ScaleFusion(factory(num_classes=17))) == 1_256_214 - UNUSED


def test_convention_channels_are_the_published_ones():
    nets = factory()
    assert nets.encoder().channels == (16, 32, 64, 64)
    assert nets.decoder().channels == (32, 16, 16)
    assert nets.strides[0] == 8


def test_the_2d_network_of_the_paper_has_five_scales_and_three_slices_as_channels():
    nets = factory(dims=2, in_channels=3, width=64, depth=5)
    assert nets.encoder().channels == (64, 128, 256, 512, 512)
    assert nets.decoder().channels == (256, 128, 64, 64)
    assert nets.strides[0] == 16


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_image_of_each_size_arrives_as_deep_as_the_features_it_meets(depth: int):
    encoder = factory(width=2, depth=depth).encoder()
    stem, *stages = encoder.stages
    passed = depth_of(stem)
    for stage, chain in zip(stages, encoder.chains, strict=True):
        assert depth_of(stem) + depth_of(chain) == passed
        passed += depth_of(stage)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_every_scale_passes_equally_many_convolutions_to_its_output(depth: int):
    network = ScaleFusion(factory(width=2, depth=depth))
    passed = sum(depth_of(stage) for stage in network.encoder.stages)
    # The 3x3 convolutions of an up stage all lie on its way: the shortcut has 1x1 convolutions.
    depths = []
    for output, stage in zip(network.outputs, [None, *network.decoder.stages], strict=True):
        passed += 0 if stage is None else depth_of(stage)
        depths.append(passed + depth_of(output))
    assert depths == [depths[0]] * depth


def test_all_image_sizes_share_one_stem():
    encoder = factory(width=2).encoder()
    passes = []
    encoder.stages[0].register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].shape[2:]))
    encoder(torch.randn(1, 1, 16, 16, 8))
    assert passes == [(16, 16, 8), (8, 8, 4), (4, 4, 2), (2, 2, 1)]


def test_coarser_images_are_means_of_the_finer_voxels():
    encoder = factory(dims=2, width=2).encoder()
    seen = []
    encoder.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder(torch.arange(64.0).view(1, 1, 8, 8).repeat(2, 1, 1, 1))
    torch.testing.assert_close(seen[1][0, 0, 0, 0], torch.tensor((0 + 1 + 8 + 9) / 4))
    torch.testing.assert_close(seen[3][0, 0, 0, 0], torch.tensor(63 / 2))


def test_a_residual_block_of_equal_widths_keeps_its_input_beside_the_convolutions():
    block = Residual(3, 3, 3, "batch")
    assert size_of(block.shortcut) == 0
    for parameter in block.convolutions[-1].parameters():
        nn.init.zeros_(parameter)
    features = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(block(features), features, rtol=0, atol=0)


def test_a_chain_of_one_width_is_the_identity():
    assert len(residual_chain((4,), 3, "batch")) == 0
    assert [block.convolutions[2].out_channels for block in residual_chain((8, 4, 4), 2, "batch")] == [4, 4]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_upsampling_and_norm_can_be_chosen(dims: int, upsampling: str, norm: str):
    network = factory(dims, width=2, norm=norm, upsampling=upsampling).network()
    assert network(torch.randn(2, 1, *(16, 8, 24)[:dims])).shape == (2, 3, *(16, 8, 24)[:dims])
