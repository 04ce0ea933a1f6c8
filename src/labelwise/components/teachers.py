"""Averaged networks that teach: how fast they follow, their statistics of batch norm, and what their answers become.

An average of weights has no running statistics of batch norm of its own: those of the networks that it averages
belong to other weights, and a network with the wrong ones says nearly anything in evaluation. They are therefore
taken anew, from batches that pass through the averaged network itself: through its method `everywhere`, if it has one
because some of its parts take no part in its forward.

Source
    Tarvainen & Valpola, NeurIPS 2017; Izmailov et al., UAI 2018 (averaged weights need their own statistics),
    https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ConfigDict
from pydantic import dataclasses as pydantic_dataclasses
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelwise.components.ramps import Part
from labelwise.errors import ConfigError
from labelwise.losses.partial import possible_classes
from labelwise.types import Progress

LARGEST_START = 0.05  # of a running average at the end of the training


@dataclass(frozen=True)
class Decay:
    """What part of a running average stays when it moves.

    A published decay belongs to the published number of steps: 0.999 forgets its start in 3000 steps and keeps
    two thirds of it in 400. The half-life as a part of the training does the same at every length.

    Example
        >>> round(Decay(half_life=0.0115).keep(Progress(3000, 6000)), 3)   # published: 0.99 in 6000 steps
        0.99
        >>> round(Decay(half_life=0.0115).keep(Progress(300, 600)), 3)
        0.904
    """

    half_life: float  # part of the training in which half of the average becomes new
    fixed: float | None = None  # what stays at every move instead, as published
    warm_up: bool = False  # an even mean of all steps at first: nothing is left of the start
    moves: int = 1  # in each step

    def keep(self, progress: Progress) -> float:
        """The part that stays at a move of this step, in [0, 1]."""
        keep = self._constant(progress.total)
        return min(1 - 1 / (progress.step + 1), keep) if self.warm_up else keep

    def start_left(self, steps: int) -> float:
        """The part of the start that is left in the average after so many steps."""
        return 0.0 if self.warm_up and steps else self._constant(steps) ** (self.moves * steps)

    def require_forgets(self, name: str, steps: int) -> None:
        """Refuse an average that would still be made of what it started with.

        Errors
            ConfigError     more than `LARGEST_START` of the start is left at the end
        """
        left = self.start_left(steps)
        if left > LARGEST_START:
            longest = LARGEST_START ** (1 / (self.moves * steps))
            raise ConfigError(
                f"with '{name}' the running average would not be of what was trained",
                found=f"{name} = {self._constant(steps):.6g} leaves {left:.0%} of its start after {steps} steps",
                expected=f"at most {LARGEST_START:.0%}",
                do=f"leave it out, so that it follows the length of the training; set it to at most {longest:.4f}; "
                "or train longer",
            )

    def _constant(self, steps: int) -> float:
        if self.fixed is not None:
            return self.fixed
        return 0.5 ** (1 / (self.half_life * steps * self.moves)) if self.half_life * steps else 0.0


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Averaged:
    """Settings of a method with an averaged teacher."""

    ema_half_life: Part = 0.0115  # of the teacher, as a part of the training: a = 0.99 in 6000 steps
    ema_decay: Part | None = None  # a itself, at every length of training; published: 0.99

    def decay(self, *, warm_up: bool, moves: int = 1) -> Decay:
        """What stays of the teacher when it moves."""
        return Decay(self.ema_half_life, self.ema_decay, warm_up=warm_up, moves=moves)


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class StudentAndTeacher(Averaged):
    """Settings of a method in which the student predicts, or its averaged teacher."""

    eval_model: Literal["student", "teacher"] = "student"

    def predicting(self, student: nn.Module, teacher: EmaTeacher) -> nn.Module:
        """The network that predicts."""
        return student if self.eval_model == "student" else teacher.network


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The parts of a network that keep running statistics."""
    return [
        part for part in network.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by their mean over some batches, with the weights as they are.

    Nothing is dropped out meanwhile, as in evaluation. No batch is asked for if the network has no statistics.

    Shapes
        batches     (B, M, *S) each
    """
    if norms := batch_norms(network):
        for norm in norms:
            norm.reset_running_stats()
        with _only_norms_train(network, norms, mean=True):
            for images in batches:
                _send_everywhere(network, images)


@torch.no_grad()
def follow_statistics(network: nn.Module, images: Tensor) -> None:
    """Move the running statistics by one batch, as a training does, with the weights as they are."""
    if norms := batch_norms(network):
        with _only_norms_train(network, norms, mean=False):
            _send_everywhere(network, images)


def _send_everywhere(network: nn.Module, images: Tensor) -> None:
    getattr(network, "everywhere", network)(images)


@contextmanager
def _only_norms_train(network: nn.Module, norms: list[_BatchNorm], *, mean: bool) -> Iterator[None]:
    """Batch norm alone is in training mode; `mean`: all batches count alike."""
    modes = [(part, part.training) for part in network.modules()]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None if mean else norm.momentum
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


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
    def forward(self, images: Tensor, *further: Tensor) -> Tensor:
        """Whatever the network returns for these, without a gradient."""
        if self.statistics == "eval":
            follow_statistics(self.network, images)
            self.network.eval()  # the loop turns everything to training mode again, before each part of the training
        return self.network(images, *further)  # type: ignore[no-any-return]

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


def complete(
    probabilities: Tensor, labels: Tensor, annotated: Tensor, *, smallest_mass: float = 1e-3
) -> Tensor:
    """Teacher probabilities restricted to the classes that a voxel can still have, and renormalised.

    A fully annotated voxel becomes its one-hot label; a voxel of a partly labelled case with label 0 keeps
    background and the un-annotated structures; an unlabelled voxel is unchanged. Where the teacher gives less than
    `smallest_mass` to all possible classes together its opinion there is noise, so they share evenly instead.

    Shapes
        probabilities   (B, C, *S)  after softmax
        labels          (B, *S)     int64 in [0, C) or IGNORE
        annotated       (B, C) or (B, C, *S) bool
        returns         (B, C, *S)  sums to one over C, detached

    Source
        docs/explanation/partial-labels.md, rule R2.
    """
    possible = possible_classes(labels, annotated)
    restricted = probabilities.detach() * possible
    mass = restricted.sum(dim=1, keepdim=True)
    even = possible / possible.sum(dim=1, keepdim=True)
    return (restricted / mass.clamp_min(smallest_mass)).where(mass >= smallest_mass, even)
