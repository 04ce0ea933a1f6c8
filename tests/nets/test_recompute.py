"""Stages that are computed again in the backward pass: the same gradients from less memory."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from labelwise.errors import ConfigError
from labelwise.methods.base import NetFactory
from labelwise.nets.recompute import recompute_stages

SETTINGS = {
    "residual_unet": {"width": 4, "blocks": (1, 1, 2), "norm": "instance"},
    "unet": {"width": 4, "norm": "instance"},  # with dropout
    "uxnet": {"width": 4},
}


def network(name: str, dims: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return NetFactory(name, SETTINGS[name], dims=dims, in_channels=1, num_classes=3).network()


def gradients(net: torch.nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Gradients of a sum of squares, and the bytes that the graph kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    net.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(images).square().mean()
    torch.autograd.backward(loss)
    return [weight.grad.clone() for weight in net.parameters()], sum(kept.values())


@pytest.mark.parametrize(
    ("name", "dims"), [("residual_unet", 2), ("residual_unet", 3), ("unet", 2), ("uxnet", 3)]
)
def test_stages_that_are_computed_twice_have_the_same_gradients_from_less_memory(name, dims):
    plain = network(name, dims)
    twice = deepcopy(plain)
    recompute_stages(twice)
    images = torch.randn(2, 1, *[32] * dims)
    expected, much = gradients(plain, images)
    found, little = gradients(twice, images)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert little < 0.6 * much
    assert plain.state_dict().keys() == twice.state_dict().keys()


def test_dropout_that_was_turned_off_in_between_drops_the_same():
    plain = network("unet", 2)
    twice = deepcopy(plain)
    recompute_stages(twice)
    found = []
    for net in (plain, twice):
        torch.manual_seed(1)
        loss = net(torch.ones(1, 1, 32, 32)).square().mean()
        net.eval()
        torch.autograd.backward(loss)
        found.append([weight.grad for weight in net.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert not any(part.training for part in twice.modules())


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    net = network("residual_unet", 2)
    images = torch.randn(1, 1, 32, 32)
    expected = net(images)
    recompute_stages(net)
    with torch.inference_mode():
        assert torch.equal(net(images), expected)


def test_a_network_with_batch_norm_is_refused():
    net = NetFactory("unet", {"width": 4, "norm": "batch"}, dims=2, in_channels=1, num_classes=3).network()
    with pytest.raises(ConfigError, match="running statistics"):
        recompute_stages(net)
