"""The trunk of DoDNet: weight standardisation, scales, size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelwise.errors import ConfigError
from labelwise.methods.dodnet.network import StandardisedConv2d, StandardisedConv3d, standardised
from labelwise.nets.factory import NetFactory
from labelwise.nets.parts import Interpolate

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dodnet.npz", allow_pickle=False)


def factory(dims: int = 3, **settings: object) -> NetFactory:
    return NetFactory("dodnet_unet", {"width": 4, **settings}, dims=dims, in_channels=1, num_classes=2)


def image(dims: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 1, *[32] * dims, generator=torch.Generator().manual_seed(0))


def size(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def weights_of(network: nn.Module) -> list[Tensor]:
    kinds = (StandardisedConv2d, StandardisedConv3d)
    return [module.weight for module in network.modules() if isinstance(module, kinds)]


def test_a_standardised_convolution_agrees_with_the_official_one():
    convolution = StandardisedConv3d(2, 4, 3, padding=1, bias=False)
    convolution.weight.data = torch.from_numpy(GOLDEN["ws_weight"])
    result = convolution(torch.from_numpy(GOLDEN["ws_input"]))
    torch.testing.assert_close(result, torch.from_numpy(GOLDEN["ws_output"]), rtol=1e-5, atol=1e-5)


def test_standardised_filters_have_mean_zero_and_variance_one():
    generator = torch.Generator().manual_seed(0)
    weight = 3 + 0.01 * torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
    filters = standardised(weight).flatten(1)
    torch.testing.assert_close(filters.mean(dim=1), torch.zeros(5).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(filters.var(dim=1), torch.ones(5).double(), rtol=1e-4, atol=0)


def test_the_gradient_of_a_filter_points_neither_along_it_nor_along_a_constant():
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((standardised(weight) * target).sum(), weight)
    torch.testing.assert_close(gradient.flatten(1).sum(dim=1), torch.zeros(5), rtol=0, atol=1e-4)
    along = (gradient * weight.detach()).flatten(1).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(5), rtol=0, atol=1e-4)
    assert gradient.abs().max() > 0.1


def test_standardised_weights_keep_their_memory_layout():
    weight = torch.randn(4, 3, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    assert standardised(weight).stride() == weight.stride()


def test_in_evaluation_changed_weights_act_at_once():
    network = factory(2).network().eval()
    with torch.inference_mode():
        before = network(image(2))
    with torch.no_grad():
        weights_of(network)[0].mul_(torch.linspace(-1, 1, 9).view(3, 3))
    with torch.inference_mode():
        assert (network(image(2)) - before).abs().max() > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_every_convolution_of_the_trunk_is_standardised_or_none(dims: int):
    nets = factory(dims)
    trunk = nn.ModuleList([nets.encoder(), nets.decoder()])
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    # Stem and fusion, 9 units with 4 changes of shape, 4 units with 3.
    assert len(weights_of(trunk)) == len(convolutions) == 2 + (2 * 9 + 4) + (2 * 4 + 3)
    plain = factory(dims, weight_standardisation=False)
    assert weights_of(nn.ModuleList([plain.encoder(), plain.decoder()])) == []
    assert size(plain.encoder(), plain.decoder()) == size(trunk)


def test_convention_the_trunk_has_the_published_size():
    nets = NetFactory("dodnet_unet", {}, dims=3, in_channels=1, num_classes=17)
    assert size(nets.encoder(), nets.decoder(), nets.head(32, 8)) == 17_328_529 - (2 * 256 + 273 * 153)


def test_the_scales_are_those_of_the_paper():
    nets = NetFactory("dodnet_unet", {"width": 32}, dims=2, in_channels=1, num_classes=2)
    encoder, decoder = nets.encoder(), nets.decoder()
    assert encoder.channels == (32, 64, 128, 256, 256)
    assert decoder.channels == (128, 64, 32, 32)
    assert encoder(torch.zeros(1, 1, 64, 32))[-1].shape == (1, 256, 4, 2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
def test_every_upsampling_can_be_chosen(dims: int, upsampling: str):
    nets = factory(dims, upsampling=upsampling)
    assert nets.network()(image(dims)).shape == (1, 2, *[32] * dims)
    scales = factory(dims).decoder(upsampling)(nets.encoder()(image(dims)))
    assert scales[-1].shape == (1, 4, *[32] * dims)


@pytest.mark.parametrize(
    "net", ["dodnet_unet", "plseg_unet", "film_unet", "pipofan", "ltuda_unet", "urpc_unet", "unet"]
)
def test_linear_upsampling_interpolates_and_nearest_repeats_voxels_in_every_network(net: str):
    for upsampling, mode in (("trilinear", "bilinear"), ("nearest", "nearest"), ("transposed", None)):
        nets = NetFactory(net, {"width": 4, "upsampling": upsampling}, dims=2, in_channels=1, num_classes=2)
        modes = {part.mode for part in nets.decoder().modules() if isinstance(part, Interpolate)}
        assert modes == ({mode} if mode else set())


def test_cases_do_not_see_each_other_and_training_equals_evaluation():
    network, images = factory().network(), image(3, batch=2)
    with torch.no_grad():
        together = network(images)
        alone = network.eval()(images[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_width_of_one_is_refused_because_one_number_has_no_variance():
    with pytest.raises(ConfigError, match="setting 'width'"):
        factory(width=1)
