"""Batch norm over some cases at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from labelwise.errors import ConfigError
from labelwise.nets.factory import NETS, NetFactory
from labelwise.nets.ghost_norm import GhostBatchNorm, has_batch_norm, over_cases


def network(cases: int, name: str = "vnet", dims: int = 3, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return NetFactory(
        name,
        {"width": 2, **settings},
        dims=dims,
        in_channels=1,
        num_classes=2,
        batch_norm_cases=cases,
    ).network()


def images(cases: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    scales = torch.arange(1.0, cases + 1).view(-1, 1, 1, 1, 1)  # so that every case has its own statistics
    return scales * torch.randn(cases, 1, 32, 16, 16, generator=generator)


@pytest.mark.parametrize(("layer", "axes"), [(nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)])
def test_groups_of_cases_are_normalised_as_if_they_came_alone(
    layer: Callable[[int], nn.BatchNorm3d], axes: int
):
    plain = layer(3)
    ghost = over_cases(copy.deepcopy(plain), 2)
    features = torch.randn(5, 3, *(4,) * axes, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([plain(features[first : first + 2]) for first in (0, 2, 4)])
    torch.testing.assert_close(ghost(features), expected)
    torch.testing.assert_close(ghost.running_mean, plain.running_mean)
    torch.testing.assert_close(ghost.running_var, plain.running_var)
    torch.testing.assert_close(ghost.eval()(features), plain.eval()(features))


def test_the_labelled_cases_of_a_batch_do_not_feel_the_others():
    together, apart = network(0, dropout=0.0), network(2, dropout=0.0)
    changed = images().clone()
    changed[2:] += 5
    torch.testing.assert_close(apart(images())[:2], apart(changed)[:2])
    torch.testing.assert_close(apart(images())[:2], together(images()[:2]))
    assert not torch.allclose(together(images())[:2], together(changed)[:2], atol=1e-3)


def test_weights_are_those_of_the_plain_network_and_fit_into_it():
    together, apart = network(0), network(2)
    assert {name: value.shape for name, value in apart.state_dict().items()} == {
        name: value.shape for name, value in together.state_dict().items()
    }
    together.load_state_dict(apart.state_dict())
    torch.testing.assert_close(apart.eval()(images()), together.eval()(images()))


def test_settings_and_weights_of_the_layer_are_kept():
    plain = nn.BatchNorm3d(3, eps=1e-3, momentum=0.2)
    nn.init.constant_(plain.weight, 2)
    ghost = over_cases(nn.Sequential(plain), 2)[0]  # type: ignore[index]
    assert isinstance(ghost, GhostBatchNorm)
    assert (ghost.eps, ghost.momentum, ghost.weight[0].item()) == (1e-3, 0.2, 2)


@pytest.mark.parametrize("name", NETS)
def test_every_network_divides_its_batch_norms_or_refuses(name: str):
    if has_batch_norm(network(0, name)):
        kinds = {type(part) for part in network(2, name).modules() if has_batch_norm(part)}
        assert GhostBatchNorm in kinds
        assert not kinds & {nn.BatchNorm2d, nn.BatchNorm3d}
    else:
        with pytest.raises(ConfigError, match=f"'{name}' has no batch norm"):
            network(2, name)


def test_a_network_with_another_norm_is_refused():
    with pytest.raises(ConfigError, match="batch_norm_cases = 2"):
        network(2, norm="instance")
