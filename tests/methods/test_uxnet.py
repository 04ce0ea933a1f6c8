"""The 3D UX-Net: its blocks against the official modules, its size, and what its layers may mix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelwise.errors import ConfigError
from labelwise.methods.dkuxnet.uxnet import ResidualBlock, UXBlock, UXUpStage, VolumetricConvNeXt
from labelwise.nets.factory import NetFactory

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BLOCK = {
    "depthwise.weight": "dwconv_weight",
    "depthwise.bias": "dwconv_bias",
    "norm.weight": "norm_weight",
    "norm.bias": "norm_bias",
    "expand.weight": "pwconv1_weight",
    "expand.bias": "pwconv1_bias",
    "contract.weight": "pwconv2_weight",
    "contract.bias": "pwconv2_bias",
    "scale": "gamma",
}


def fill(module: nn.Module, values: Mapping[str, np.ndarray], names: Mapping[str, str], prefix: str) -> None:
    """Every parameter from the array of its name."""
    module.load_state_dict({mine: torch.from_numpy(values[prefix + name]) for mine, name in names.items()})


def factory(dims: int = 3, num_classes: int = 2, **settings: object) -> NetFactory:
    return NetFactory("uxnet", settings, dims=dims, in_channels=1, num_classes=num_classes)


def test_a_block_and_its_gradients_agree_with_the_official_one(golden):
    arrays = golden("dkuxnet")
    block = UXBlock(3, 3)
    fill(block, arrays, BLOCK, "uxblock_w_")
    x = torch.from_numpy(arrays["uxblock_x"]).requires_grad_()
    y = block(x)
    torch.testing.assert_close(y, torch.from_numpy(arrays["uxblock_y"]), **CLOSE)
    loss = (y * torch.from_numpy(arrays["uxblock_r"])).sum()
    dx, dweight = torch.autograd.grad(loss, (x, block.depthwise.weight))
    torch.testing.assert_close(dx, torch.from_numpy(arrays["uxblock_dx"]), **CLOSE)
    torch.testing.assert_close(
        dweight, torch.from_numpy(arrays["uxblock_d_dwconv_weight"]), rtol=1e-5, atol=1e-4
    )


def test_the_maps_of_the_encoder_agree_with_the_official_ones(golden):
    arrays = golden("dkuxnet")
    names = {}
    for level in range(4):
        for layer in range(2):
            for part in ("weight", "bias"):
                names[f"down.{level}.{layer}.{part}"] = f"down{level}_{layer}_{part}"
        names |= {f"norms.{level}.{part}": f"norm{level}_{part}" for part in ("weight", "bias")}
        names |= {f"stages.{level}.0.{mine}": f"block{level}_{name}" for mine, name in BLOCK.items()}
    encoder = VolumetricConvNeXt(3, 1, (2, 3, 4, 5), blocks=1)
    fill(encoder, arrays, names, "uxenc_w_")
    for level, features in enumerate(encoder(torch.from_numpy(arrays["uxenc_x"]))):
        torch.testing.assert_close(features, torch.from_numpy(arrays[f"uxenc_y{level}"]), **CLOSE)


def test_the_residual_block_agrees_with_the_official_one(golden):
    arrays = golden("dkuxnet")
    block = ResidualBlock(3, 2, 3)
    names = {
        "convolutions.0.weight": "conv1",
        "convolutions.3.weight": "conv2",
        "shortcut.0.weight": "conv3",
    }
    fill(block, arrays, names, "res_w_")
    torch.testing.assert_close(
        block(torch.from_numpy(arrays["res_x"])), torch.from_numpy(arrays["res_y"]), **CLOSE
    )


def test_the_up_stage_agrees_with_the_official_one(golden):
    arrays = golden("dkuxnet")
    stage = UXUpStage(3, 4, 2, "transposed")
    names = {
        "up.weight": "transp",
        "block.convolutions.0.weight": "conv1",
        "block.convolutions.3.weight": "conv2",
        "block.shortcut.0.weight": "conv3",
    }
    fill(stage, arrays, names, "up_w_")
    y = stage(torch.from_numpy(arrays["up_x"]), torch.from_numpy(arrays["up_skip"]))
    torch.testing.assert_close(y, torch.from_numpy(arrays["up_y"]), **CLOSE)


@pytest.mark.parametrize(("width", "millions"), [(32, 23.7), (24, 13.4), (16, 6.0)])
def test_narrow_networks_have_the_size_of_the_table(width: int, millions: float):
    count = sum(parameter.numel() for parameter in factory(width=width).network().parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_published_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = factory().network()
    assert sum(parameter.numel() for parameter in network.parameters()) == 53_005_922


def test_the_convolutions_of_a_block_keep_channels_apart():
    block = UXBlock(3, 4)
    x = torch.randn(1, 4, 6, 6, 6)
    other = x.clone()
    other[:, 2] += 1.0

    def pointwise(values: Tensor) -> Tensor:
        return block.contract(torch.relu(block.expand(values)))

    changed = (pointwise(other) - pointwise(x)).flatten(2).abs().amax(dim=2)[0] > 0
    assert changed.tolist() == [False, False, True, False]


def test_a_new_block_hardly_changes_its_input():
    x = torch.randn(1, 4, 6, 6, 6)
    assert (UXBlock(3, 4)(x) - x).abs().max() < 1e-4


def test_a_case_gives_the_same_in_any_company():
    network = factory(width=2).network()
    images = torch.randn(2, 1, 32, 32, 16)
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
def test_every_upsampling_can_be_chosen(dims: int, upsampling: str):
    nets = factory(dims, width=2, upsampling=upsampling)
    assert nets.network()(torch.randn(1, 1, *[32] * dims)).shape == (1, 2, *[32] * dims)
    assert nets.decoder("nearest")(nets.encoder()(torch.randn(1, 1, *[32] * dims)))[-1].shape[1] == 2


def test_an_image_that_shrinks_to_one_voxel_is_refused():
    with pytest.raises(ConfigError, match="single voxel"):
        factory(width=2).network()(torch.zeros(2, 1, 16, 16, 16))
