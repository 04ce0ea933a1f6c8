"""The published networks, layer by layer: parameter counts and outputs of the official modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelwise.nets.factory import NetFactory

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dkuxnet.npz", allow_pickle=False)


def fill_by_rule(network: nn.Module) -> None:
    """The weights of the golden run: parameter j, element i, holds a sine of 0.7 i + j, rounded to float32.

    The network computes in float64 from there on: batch norm over the four values of the coarsest scale amplifies
    the rounding of float32, which differs between processors, up to the tolerance.
    """
    for j, parameter in enumerate(network.parameters()):
        wave = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + j).reshape(
            parameter.shape
        )
        if parameter.ndim > 1:
            values = (2 / parameter[0].numel()) ** 0.5 * wave
        elif isinstance(_owner(network, parameter), nn.BatchNorm2d | nn.BatchNorm3d) and _is_weight(
            network, parameter
        ):
            values = 1 + 0.1 * wave
        else:
            values = 0.1 * wave
        parameter.data.copy_(values)
    network.double()


def _owner(network: nn.Module, parameter: nn.Parameter) -> nn.Module:
    return next(m for m in network.modules() if any(p is parameter for p in m.parameters(recurse=False)))


def _is_weight(network: nn.Module, parameter: nn.Parameter) -> bool:
    return getattr(_owner(network, parameter), "weight", None) is parameter


def wave_image(*shape: int) -> Tensor:
    """The image of the golden run, which was made in float32; in float64."""
    wave = torch.cos(0.05 * torch.arange(int(np.prod(shape)), dtype=torch.float64) + 0.3)
    return wave.float().double().reshape(shape)


def no_dropout(name: str) -> dict[str, float]:
    return {"dropout": 0.0} if name == "vnet" else {"dropout_scale": 0.0}


CASES = [
    ("vnet", 3, 2, "bb_vnet_y_eval", False),
    ("vnet", 3, 2, "bb_vnet_y_train", True),
    ("unet", 3, 2, "bb_unet3d_y", True),
    ("unet", 3, 2, "bb_unet3d_y", False),
    ("unet", 2, 4, "bb_unet2d_y_eval", False),
    ("unet", 2, 4, "bb_unet2d_y_train", True),
]


@pytest.mark.parametrize(("name", "dims", "classes", "key", "training"), CASES)
def test_output_agrees_with_the_official_module(name: str, dims: int, classes: int, key: str, training: bool):
    network = NetFactory(name, no_dropout(name), dims=dims, in_channels=1, num_classes=classes).network()
    fill_by_rule(network)
    network.train(training)
    with torch.no_grad():
        logits = network(wave_image(1, 1, *(32, 32, 16)[:dims]))
    every_second = logits[(slice(None), slice(None), *[slice(None, None, 2)] * dims)].numpy()
    expected = GOLDEN[key]
    assert np.abs(every_second - expected).max() < 1e-6 * np.abs(expected).max()  # rounded to float32


@pytest.mark.parametrize(
    ("name", "settings", "dims", "classes", "count", "tensors"),
    [
        ("vnet", {}, 3, 2, 9_448_866, 118),
        ("vnet", {"width": 8}, 3, 2, 2_364_434, 118),
        ("unet", {}, 3, 2, 5_884_050, 38),
        ("unet", {}, 2, 4, 1_813_764, 82),
    ],
)
def test_convention_parameter_counts_are_the_published_ones(
    name: str, settings: dict[str, int], dims: int, classes: int, count: int, tensors: int
):
    network = NetFactory(name, settings, dims=dims, in_channels=1, num_classes=classes).network()
    sizes = [parameter.numel() for parameter in network.parameters()]
    assert (sum(sizes), len(sizes)) == (count, tensors)


def test_the_two_decoder_networks_of_the_benchmark_have_the_published_size():
    """MC-Net: one V-Net with a second, trilinear decoder; MC-Net+: and a third, nearest one."""
    nets = NetFactory("vnet", {}, dims=3, in_channels=1, num_classes=2)

    def size(*parts: nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    two = size(nets.network(), nets.decoder("trilinear"), nets.head(16, 2))
    three = two + size(nets.decoder("nearest"), nets.head(16, 2))
    assert (two, three) == (12_347_716, 15_246_566)
