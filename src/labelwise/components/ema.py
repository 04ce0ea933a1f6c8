"""A network that follows another one as its exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


class EmaTeacher(nn.Module):
    """The running average of a student network; takes part in no gradient.

    Starts as a copy of the student and stays in the mode of the method around it: in training its dropout
    is active and its batch norm uses the statistics of its own input, as in the published codes.
    `warm_up` lets it follow faster in the first steps. Buffers are copied (batch norm statistics: an average of them
    is a mixture of statistics that belong to different weights), except those whose last name is in
    `averaged_buffers` (memories such as prototypes).

    Source
        Tarvainen & Valpola, NeurIPS 2017; decay warm-up of the UA-MT code.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float,
        *,
        warm_up: bool = True,
        averaged_buffers: Collection[str] = (),
    ):
        super().__init__()
        self.decay = decay
        self.warm_up = warm_up
        self.averaged_buffers = frozenset(averaged_buffers)
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Whatever the network returns, without a gradient."""
        return self.network(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """teacher <- a * teacher + (1 - a) * student, with a = decay, or min(1 - 1 / (step + 1), decay) in the warm-up.

        All that is averaged moves in one fused call.
        """
        keep = min(1 - 1 / (step + 1), self.decay) if self.warm_up else self.decay
        mine = [parameter.data for parameter in self.network.parameters()]
        theirs = [parameter.data for parameter in student.parameters()]
        pairs = zip(self.network.named_buffers(), student.buffers(), strict=True)
        for (name, teacher_buffer), student_buffer in pairs:
            if name.rpartition(".")[2] in self.averaged_buffers:
                mine.append(teacher_buffer)
                theirs.append(student_buffer)
            else:
                teacher_buffer.copy_(student_buffer)
        torch._foreach_lerp_(mine, theirs, 1 - keep)
