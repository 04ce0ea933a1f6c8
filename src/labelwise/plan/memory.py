"""How much memory a training needs, from the shapes of its network, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from labelwise.nets.factory import NetFactory

STATE = 4  # weights, gradients, and the two averages of Adam
FLOAT = 4  # bytes


def weights_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def activation_bytes(nets: NetFactory, patch: Sequence[int], *, element_bytes: int) -> int:
    """Bytes that the layers of a network keep of one patch for its backward pass.

    Every layer's output is counted once. Layers that work in place share theirs with the layer before.
    """
    kept = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal kept
        if isinstance(output, Tensor) and not getattr(module, "inplace", False):
            kept += output.numel() * element_bytes

    with torch.device("meta"):
        network = nets.network()
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        network(torch.empty(1, nets.in_channels, *patch))
    return kept


def training_bytes(nets: NetFactory, patch: Sequence[int], cases: int, *, element_bytes: int) -> int:
    """Bytes of a training of one network by Adam with batches of so many patches.

    Methods that train two networks, or look at a batch twice, need up to a multiple: `run.forecast` measures.
    """
    with torch.device("meta"):
        weights = weights_bytes(nets.network())
    activations = activation_bytes(nets, patch, element_bytes=element_bytes)
    # Logits, their softmax and the gradients of both are float32.
    scores = 4 * nets.num_classes * prod(patch) * FLOAT
    return STATE * weights + cases * (activations + scores)
