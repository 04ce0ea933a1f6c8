"""Networks and their parts: shapes, precision, memory layout, composition, and refusals."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet
from torch import nn

from labelwise.devices import SafeConvolutions
from labelwise.errors import CheckpointError, ConfigError, ResourceError
from labelwise.nets.factory import NETS, NetFactory, find_net
from labelwise.nets.parts import SegmentationNet

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"width": 2},
    "vnet": {"width": 2},
    "residual_unet": {"width": 2, "blocks": (1, 1, 2)},
    "dynunet": {"width": 2, "depth": 3},
    "dodnet_unet": {"width": 2},
    "film_unet": {"width": 2, "depth": 3},
    "pipofan": {"width": 2},
    "plseg_unet": {"width": 2},
    "ltuda_unet": {"width": 2},
    "urpc_unet": {"width": 2},
    "uxnet": {"width": 2},
}
EVERY_NET = [(name, dims) for name in NETS for dims in (2, 3)]


def factory(name: str, dims: int = 3, **settings: object) -> NetFactory:
    return NetFactory(name, {**SMALL[name], **settings}, dims=dims, in_channels=2, num_classes=3)


def images(dims: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, *(32, 16, 16)[:dims], generator=generator)


@pytest.mark.parametrize(("name", "dims"), EVERY_NET)
def test_a_network_gives_float32_logits_of_the_size_of_the_image(name: str, dims: int):
    logits = factory(name, dims).network()(images(dims))
    assert logits.shape == (2, 3, *images(dims).shape[2:])
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(("name", "dims"), EVERY_NET)
def test_every_parameter_is_trained_by_a_backward_pass(name: str, dims: int):
    network = factory(name, dims).network()
    network(images(dims)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("name", "dims"), EVERY_NET)
def test_bfloat16_autocast_trains_and_logits_still_leave_in_float32(name: str, dims: int):
    # The rounding grows with the weights: of the 3D U-Net one draw in 25 exceeds the bound.
    torch.manual_seed(1)
    network = factory(name, dims).network().eval()  # no dropout, so that both passes are comparable
    with SafeConvolutions():  # as in the loop: the coarsest images are thinner than the kernels
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images(dims))
        assert logits.dtype == torch.float32
        assert (logits - network(images(dims))).abs().mean() < 0.05
        logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "dims"), EVERY_NET)
def test_channels_last_changes_the_memory_and_not_the_result(name: str, dims: int):
    network = factory(name, dims).network().eval()
    expected = network(images(dims))
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    moved = copy.deepcopy(network).to(memory_format=layout)
    torch.testing.assert_close(moved(images(dims).to(memory_format=layout)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "dims"), EVERY_NET)
def test_parts_fit_together_and_name_their_channels(name: str, dims: int):
    nets = factory(name, dims)
    encoder, decoder = nets.encoder(), nets.decoder()
    features = encoder(images(dims))
    assert tuple(f.shape[1] for f in features) == encoder.channels
    assert features[0].shape[2:] == images(dims).shape[2:]
    assert features[-1].shape[2] * nets.strides[0] == images(dims).shape[2]

    scales = decoder(features)
    assert tuple(s.shape[1] for s in scales) == decoder.channels
    assert scales[-1].shape[2:] == images(dims).shape[2:]
    assert scales[0].shape[2] < scales[-1].shape[2]
    assert nets.head(decoder.channels[-1], 5)(scales[-1]).shape[1] == 5


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["unet", "vnet"])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_upsampling_and_norm_can_be_chosen(name: str, dims: int, upsampling: str, norm: str):
    nets = factory(name, dims, norm=norm, upsampling=upsampling)
    assert nets.network()(images(dims)).shape == (2, 3, *images(dims).shape[2:])


def test_one_encoder_may_serve_several_decoders():
    nets = factory("vnet")
    encoder = nets.encoder()
    features = encoder(images(3))
    maps = [nets.decoder(kind)(features)[-1] for kind in ("transposed", "trilinear", "nearest")]
    assert {m.shape for m in maps} == {maps[0].shape}


def test_dropout_can_be_switched_off():
    network = factory("vnet", dropout=0.0).network()
    torch.testing.assert_close(network(images(3)), network(images(3)), rtol=0, atol=0)
    with_dropout = factory("vnet").network()
    assert not torch.equal(with_dropout(images(3)), with_dropout(images(3)))


def test_dropout_of_the_unet_keeps_its_published_rates_times_the_scale():
    network = factory("unet", 2, dropout_scale=0.5).network()
    rates = [m.p for m in network.encoder.modules() if isinstance(m, nn.Dropout)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.15, 0.25, 0.0])


@pytest.mark.parametrize("dims", [2, 3])
def test_the_dynunet_in_parts_is_the_dynunet_of_monai(dims: int):
    network = factory("dynunet", dims).network()
    whole = MonaiDynUNet(dims, 2, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(2, 4, 8))
    parts = [whole.input_block, *whole.downsamples, whole.bottleneck, *whole.upsamples]
    for mine, theirs in zip([*network.encoder.stages, *network.decoder.stages], parts, strict=True):
        theirs.load_state_dict(mine.state_dict())
    whole.output_block.conv.conv.load_state_dict(network.head.convolution.state_dict())
    torch.testing.assert_close(network(images(dims)), whole(images(dims)))


def test_a_dynunet_has_transposed_upsampling_only():
    with pytest.raises(ConfigError, match="'vnet' or 'unet'"):
        factory("dynunet").decoder("trilinear")


@pytest.mark.parametrize("name", NETS)
def test_a_size_that_cannot_be_halved_often_enough_is_refused_with_the_sizes(name: str):
    nets = factory(name)
    with pytest.raises(ConfigError, match=f"33 x 32 x 32\n.*divisible by {nets.strides[0]}"):
        nets.network()(torch.zeros(1, 2, 33, 32, 32))


@pytest.mark.parametrize("name", ["unet", "dynunet"])
def test_instance_norm_of_a_single_voxel_is_refused(name: str):
    nets = factory(name)
    with pytest.raises(ConfigError, match="single voxel"):
        nets.network()(torch.zeros(2, 2, *[nets.strides[0]] * 3))


def test_unknown_network_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match="unknown network 'v-net'; did you mean 'vnet'"):
        find_net("v-net")


def test_unknown_setting_is_refused_with_the_nearest_known_one():
    with pytest.raises(
        ConfigError, match=r"\[net.settings\] of vnet: unknown setting 'widht'; did you mean 'width'"
    ):
        factory("vnet", widht=3)


@pytest.mark.parametrize("settings", [{"width": 0}, {"width": True}, {"dropout": 1.0}, {"norm": "layer"}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]):
    with pytest.raises(ConfigError, match=f"setting '{next(iter(settings))}'"):
        factory("vnet", **settings)


@pytest.mark.parametrize("wrong", [{"dims": 4}, {"in_channels": 0}, {"num_classes": 0}])
def test_numbers_that_make_no_network_are_refused(wrong: dict[str, int]):
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        NetFactory("vnet", {}, **{"dims": 3, "in_channels": 1, "num_classes": 2, **wrong})


@pytest.mark.parametrize("name", NETS)
def test_a_description_survives_json_and_builds_the_same_network(name: str):
    nets = factory(name)
    again = NetFactory.from_description(json.loads(json.dumps(nets.description())))
    assert again.description() == nets.description()
    network = again.network()
    assert isinstance(network, SegmentationNet)
    network.load_state_dict(nets.network().state_dict())


def test_an_incomplete_description_is_refused():
    with pytest.raises(CheckpointError, match="cannot be built"):
        NetFactory.from_description({"name": "vnet"})


def test_without_monai_the_dynunet_alone_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.dynunet", None)
    factory("vnet", 3).network()
    with pytest.raises(ResourceError, match=r"labelwise\[monai\]"):
        factory("dynunet", 3).network()


def test_monai_is_imported_for_a_dynunet_only():
    program = (
        "import sys; from labelwise.nets.factory import NetFactory;"
        "NetFactory('vnet', {}, dims=3, in_channels=1, num_classes=2).network();"
        "sys.exit('monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
