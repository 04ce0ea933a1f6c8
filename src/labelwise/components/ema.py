"""A network that follows another one as its exponential moving average."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EmaTeacher(nn.Module):
    """The running average of a student network; takes part in no gradient.

    Starts as a copy of the student and stays in the mode of the method around it: in training its dropout
    is active and its batch norm uses the statistics of its own input, as in the published codes.

    Source
        Tarvainen & Valpola, NeurIPS 2017; decay warm-up of the UA-MT code.
    """

    def __init__(self, student: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Whatever the network returns, without a gradient."""
        return self.network(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """teacher <- a * teacher + (1 - a) * student, with a = min(1 - 1 / (step + 1), decay).

        All parameters move in one fused call. Buffers (batch norm statistics) are copied: an average of
        them is a mixture of statistics that belong to different weights.
        """
        keep = min(1 - 1 / (step + 1), self.decay)
        teacher_parameters = [parameter.data for parameter in self.network.parameters()]
        student_parameters = [parameter.data for parameter in student.parameters()]
        torch._foreach_lerp_(teacher_parameters, student_parameters, 1 - keep)
        for teacher_buffer, student_buffer in zip(self.network.buffers(), student.buffers(), strict=True):
            teacher_buffer.copy_(student_buffer)
