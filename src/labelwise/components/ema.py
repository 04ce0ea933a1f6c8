"""A network that follows another one as its exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from labelwise.components.batch_statistics import batch_norms, follow_statistics, renew_statistics
from labelwise.components.decay import Decay
from labelwise.types import Progress

Statistics = Literal["batch", "eval"]


class EmaTeacher(nn.Module):
    """The running average of a student network; takes part in no gradient.

    Starts as a copy of the student. In training its dropout is active and its batch norm uses the statistics of its
    own input, as in the published codes; `statistics` = "eval" asks it in evaluation mode instead, with running
    statistics of its own. Those are never the student's, which belong to other weights: the loop takes them anew, by
    `renew_statistics`, before the teacher is validated or kept.

    Other buffers are copied, except those whose last name is in `averaged_buffers` (memories such as prototypes).

    Source
        Tarvainen & Valpola, NeurIPS 2017; decay warm-up of the UA-MT code.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: Decay,
        *,
        statistics: Statistics = "batch",
        averaged_buffers: Collection[str] = (),
    ):
        super().__init__()
        self.decay = decay
        self.statistics = statistics
        self.averaged_buffers = frozenset(averaged_buffers)
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Whatever the network returns, without a gradient."""
        if self.statistics == "eval":
            follow_statistics(self.network, images)
            self.network.eval()  # the loop turns everything to training mode again, before each part of the training
        return self.network(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def follow(self, student: nn.Module, progress: Progress) -> None:
        """teacher <- a * teacher + (1 - a) * student, with a as `decay` says; all of it in one fused call."""
        mine = [parameter.data for parameter in self.network.parameters()]
        theirs = [parameter.data for parameter in student.parameters()]
        own = {id(buffer) for norm in batch_norms(self.network) for buffer in norm.buffers(recurse=False)}
        pairs = zip(self.network.named_buffers(), student.buffers(), strict=True)
        for (name, teacher_buffer), student_buffer in pairs:
            if name.rpartition(".")[2] in self.averaged_buffers:
                mine.append(teacher_buffer)
                theirs.append(student_buffer)
            elif id(teacher_buffer) not in own:
                teacher_buffer.copy_(student_buffer)
        torch._foreach_lerp_(mine, theirs, 1 - self.decay.keep(progress))


def renew_teachers(method: nn.Module, batches: Callable[[], Iterable[Tensor]]) -> None:
    """Give every averaged network of a method the statistics of batch norm that belong to its weights.

    Arguments
        batches     starts anew a short series of images (B, M, *S); not asked if no network needs it
    """
    for teacher in method.modules():
        if isinstance(teacher, EmaTeacher) and batch_norms(teacher.network):
            renew_statistics(teacher.network, batches())
