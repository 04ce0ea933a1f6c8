"""Networks that teach: averaged ones, two of a kind, which one predicts, and how the weight of their answers rises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat
from pydantic import dataclasses as pydantic_dataclasses
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelwise.errors import ConfigError
from labelwise.types import Progress

Part = Annotated[float, Field(ge=0, le=1)]


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ramp:
    """How the weight of a term rises; the settings of a method that has one begin with these."""

    ramp_fraction: NonNegativeFloat = 1.0  # part of the training over which the weight rises; 0: constant
    # part of the training between two changes of it: 150 of 6000 steps; 0: it rises with every step
    ramp_interval: Part = 0.025

    counts_from_one: ClassVar[bool] = False  # the first step is 1, as in some codes

    def ramp(self, progress: Progress) -> float:
        """The sigmoid ramp of the step, in stairs, in [0, 1]."""
        return stair_ramp(progress, self.ramp_fraction, self.ramp_interval, from_one=self.counts_from_one)


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Consistency(Ramp):
    """The weight of a consistency term."""

    consistency_weight: NonNegativeFloat = 0.1  # w at the end of the ramp

    def weight(self, progress: Progress) -> float:
        """w(t): the weight at this step."""
        return self.consistency_weight * self.ramp(progress)


def stair_ramp(progress: Progress, fraction: float, interval: float, *, from_one: bool = False) -> float:
    """The sigmoid ramp over a part of the training, in stairs: the codes of the LA benchmark change it every 150 steps.

    Arguments
        fraction    of the training over which the ramp rises
        interval    of the training, the length of a stair; a stair has at least one step
        from_one    the first step counts as 1, as in some codes

    Example
        >>> [round(stair_ramp(Progress(step, 400), 1.0, 0.025), 3) for step in (9, 10, 210, 399)]
        [0.007, 0.009, 0.324, 0.997]
    """
    length = max(round(interval * progress.total), 1)
    return progress._replace(step=(progress.step + from_one) // length * length).ramp(fraction)


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


Classifier = Literal["first", "second", "both"]
CLASSIFIERS: tuple[Classifier, ...] = get_args(Classifier)


class TwoNetworks(nn.Module):
    """Scores of the first network, of the second, or the mean of both; holds the weights of both."""

    def __init__(self, first: nn.Module, second: nn.Module, classifier: Classifier):
        super().__init__()
        self.first = first
        self.second = second
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) probabilities in float32."""
        networks = {"first": [self.first], "second": [self.second], "both": [self.first, self.second]}
        scores = [network(images).float().softmax(dim=1) for network in networks[self.classifier]]
        return torch.stack(scores).mean(dim=0) if len(scores) > 1 else scores[0]

    def everywhere(self, images: Tensor) -> None:
        """Send images through both networks."""
        self.first(images)
        self.second(images)


@torch.no_grad()
def start_differently(first: nn.Module, second: nn.Module) -> None:
    """Convolutions of the first network by He's normal distribution, of the second by Glorot's.

    Transposed convolutions, biases and norms keep PyTorch's start, as in the port.
    """
    for network, draw in ((first, nn.init.kaiming_normal_), (second, nn.init.xavier_normal_)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                draw(module.weight)
