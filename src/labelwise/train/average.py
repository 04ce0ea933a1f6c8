"""The running average of the weights that predict: what is validated and kept instead of the last step's weights.

Averages of weights along a training generalise better than the last step, the more so the fewer labels there are.
The half-life is a part of the training, so that a short and a long one keep as little of their random start.

Source
    Polyak & Juditsky, SIAM Journal on Control and Optimization 1992; Izmailov et al., UAI 2018,
    https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from labelwise.components.teachers import Decay, batch_norms, renew_statistics
from labelwise.types import Progress

PREFIX = "average."  # of its tensors in a checkpoint; behind it the name of the weight in the method


class AveragedWeights:
    """average <- a * average + (1 - a) * weights after every step, for the weights and buffers of the predictor.

    a follows from the half-life, a part of the training; at first the average is the plain mean of all steps, so that
    nothing of the random start is left. Integers (counters) are not averaged.
    """

    def __init__(self, method: nn.Module, predictor: nn.Module, *, half_life: float):
        self.decay = Decay(half_life=half_life, warm_up=True)
        self.predictor = predictor
        names = {tensor.data_ptr(): name for name, tensor in method.state_dict(keep_vars=True).items()}
        self.weights: dict[str, Tensor] = {
            names[tensor.data_ptr()]: tensor.detach()
            for tensor in predictor.state_dict(keep_vars=True).values()
            if tensor.is_floating_point() and tensor.data_ptr() in names
        }
        self.average = {name: weight.clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def follow(self, progress: Progress) -> None:
        """Take in the weights after a step."""
        part = 1 - self.decay.keep(progress)
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), part)

    def renew_statistics(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Give the average the statistics of batch norm that belong to it; `batches` are images (B, M, *S)."""
        if norms := batch_norms(self.predictor):
            with self.in_place():
                renew_statistics(self.predictor, batches())
                own = {buffer.data_ptr() for norm in norms for buffer in norm.buffers(recurse=False)}
                for name, tensor in self.weights.items():
                    if tensor.data_ptr() in own:
                        self.average[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the method computes with the average; afterwards it has its own weights again."""
        own = {name: weight.clone() for name, weight in self.weights.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {f"{PREFIX}{name}": tensor for name, tensor in self.average.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        for name, tensor in self.average.items():
            tensor.copy_(tensors[f"{PREFIX}{name}"])

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.weights.values()), [values[name] for name in self.weights])
