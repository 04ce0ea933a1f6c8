"""The contract of networks: what methods and the sliding window rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from labelwise.devices import SafeConvolutions
from labelwise.nets.parts import Blueprint
from labelwise.settings import build_settings
from labelwise.testing.checks import by_name, require, run_checks


def check_network(
    kind: type[Blueprint], *, settings: Mapping[str, Any] | None = None, only: Sequence[str] | None = None
) -> None:
    """Hold the blueprint of a network to what methods and the sliding window rely on, in 2D and in 3D.

    Arguments
        settings    of the network; choose few channels
        only        names of NETWORK_CHECKS; default: all

    Errors
        AssertionError  every check that failed, and what it found
        ConfigError     unknown check or setting
    """
    built = build_settings(kind.Settings, settings or {}, kind.__name__)
    checks = {
        f"{name}_in_{dims}d": partial(check, kind, built, dims)
        for name, check in NETWORK_CHECKS.items()
        for dims in (2, 3)
    }
    chosen = None if only is None else [f"{name}_in_{dims}d" for name in only for dims in (2, 3)]
    run_checks(checks, chosen, kind.__name__)


def _images(blueprint: Blueprint, dims: int) -> Tensor:
    """Two images of two channels, large enough for two voxels on the coarsest scale along each axis."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, *[2 * blueprint.stride] * dims, generator=generator)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def logits_are_float32_and_as_large_as_the_image(kind: type[Blueprint], settings: Any, dims: int) -> None:
    """(B, C, *S), also under autocast with bf16."""
    with _seeded():
        blueprint = kind(settings, dims, 2)
        encoder, decoder = blueprint.encoder(), blueprint.decoder()
        head = blueprint.head(decoder.channels[-1], 3)
        images = _images(blueprint, dims)
        expected = (2, 3, *images.shape[2:])
        for bf16 in (False, True):
            with SafeConvolutions(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = head(decoder(encoder(images))[-1])
            require(logits.shape == expected, f"logits are {tuple(logits.shape)}, not {expected}")
            require(logits.dtype == torch.float32, f"logits are {logits.dtype}" + " under bf16" * bf16)
            require(bool(logits.isfinite().all()), "logits are not finite")


def every_weight_is_trained(kind: type[Blueprint], settings: Any, dims: int) -> None:
    """A backward pass from the logits reaches all parameters: a training on several ranks waits for each."""
    with _seeded():
        blueprint = kind(settings, dims, 2)
        encoder, decoder = blueprint.encoder(), blueprint.decoder()
        head = blueprint.head(decoder.channels[-1], 3)
        torch.autograd.backward(head(decoder(encoder(_images(blueprint, dims)))[-1]).square().mean())
    parts: tuple[nn.Module, ...] = (encoder, decoder, head)
    left = [name for part in parts for name, weight in part.named_parameters() if weight.grad is None]
    require(not left, f"no gradient reaches {', '.join(left)}")


def parts_fit_together_and_name_their_channels(kind: type[Blueprint], settings: Any, dims: int) -> None:
    """Features run from fine to coarse, scales from coarse to fine; `channels` and `stride` are what they say."""
    with _seeded():
        blueprint = kind(settings, dims, 2)
        encoder, decoder = blueprint.encoder(), blueprint.decoder()
        images = _images(blueprint, dims)
        features = encoder(images)
        scales = decoder(features)
    for name, part, maps in (("encoder", encoder, features), ("decoder", decoder, scales)):
        found = tuple(values.shape[1] for values in maps)
        require(found == tuple(part.channels), f"{name}.channels is {part.channels}, and there are {found}")
    sizes = [values.shape[2] for values in features]
    require(all(fine >= coarse for fine, coarse in pairwise(sizes)), f"sizes of the features: {sizes}")
    require(sizes[-1] * blueprint.stride == images.shape[2], f"stride {blueprint.stride}, and sizes {sizes}")
    require(scales[-1].shape[2:] == images.shape[2:], f"the last scale is {tuple(scales[-1].shape[2:])}")


def new_parts_have_weights_of_their_own(kind: type[Blueprint], settings: Any, dims: int) -> None:
    """Each call builds anew: two networks of a method must not share weights."""
    blueprint = kind(settings, dims, 2)
    for name, build in (("encoder", blueprint.encoder), ("decoder", blueprint.decoder)):
        parts: list[nn.Module] = [build(), build()]
        first, second = ({id(weight) for weight in part.parameters()} for part in parts)
        require(not first & second, f"two calls of {name}() share weights")


NETWORK_CHECKS: Mapping[str, Callable[[type[Blueprint], Any, int], None]] = by_name(
    logits_are_float32_and_as_large_as_the_image,
    every_weight_is_trained,
    parts_fit_together_and_name_their_channels,
    new_parts_have_weights_of_their_own,
)
"""What `check_network` checks in 2D and in 3D, by name."""
