"""Less memory for more time: what a stage of a network computed is forgotten, and computed again in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174: "activation
checkpointing". Of every stage only its input and output are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labelwise.errors import ConfigError
from labelwise.nets.ghost_norm import has_batch_norm
from labelwise.nets.parts import Decoder, Encoder


def recompute_stages(module: nn.Module) -> None:
    """Let the stages of all networks in a module, which keeps its weights, compute twice in training.

    Gradients are the same, bit by bit on a CPU.

    Errors
        ConfigError     a batch norm, whose running statistics would see every batch twice
    """
    if has_batch_norm(module):
        raise ConfigError(
            "a network with batch norm is not computed twice: its running statistics would see every batch twice",
            found="device.recompute = true",
            do="set it to false, or choose another norm (net.settings.norm)",
        )
    for part in module.modules():
        if isinstance(part, Encoder | Decoder):
            for stage in part.stages:
                stage.forward = partial(_forward, stage, stage.forward)


def _forward(stage: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    trains = stage.training

    def as_at_first(*inputs: Tensor) -> Tensor:
        """A method may have turned dropout on or off in between."""
        now = stage.training
        stage.train(trains)
        try:
            return forward(*inputs)
        finally:
            stage.train(now)

    return cast(Tensor, cast(Any, checkpoint)(as_at_first, *inputs, use_reentrant=False))
