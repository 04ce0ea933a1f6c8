"""Optimisers and their learning rate over the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch.optim import Optimizer

from labelwise.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OptimizerConfig:
    name: Literal["sgd", "adamw", "adam"] = "sgd"
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01  # learning rate before the schedule
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    nesterov: bool = False  # sgd only
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # adam and adamw only
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov needs a momentum", found="train.optimizer.momentum = 0")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ScheduleConfig:
    name: Literal["poly", "step", "constant", "plateau"] = "poly"
    power: Annotated[float, Field(ge=0)] = 0.9  # poly: (1 - step / total) ** power
    # step: parts of the training after which the rate drops
    milestones: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (5 / 12, 5 / 6)
    factor: Annotated[float, Field(ge=0)] = 0.1  # step and plateau: by this factor
    patience: Annotated[int, Field(ge=0)] = 4  # plateau: validations in a row that may bring no better score
    floor: Annotated[float, Field(ge=0, le=1)] = 0.01  # plateau: the rate stays at this part of it at least
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # linear rise at the beginning


def rate_factor(config: ScheduleConfig, step: int, total: int, scores: Sequence[float] = ()) -> float:
    """The factor on the learning rate at a step, after validations with `scores`; a pure function of these.

    Example
        >>> la = ScheduleConfig(name="step")                  # 6000 steps: drops at 2500 and 5000
        >>> [round(rate_factor(la, step, 6000), 3) for step in (0, 2499, 2500, 5000)]
        [1.0, 1.0, 0.1, 0.01]
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.name == "constant":
        return warmup
    if config.name == "poly":
        return float(warmup * (1 - step / total) ** config.power)
    if config.name == "plateau":
        return float(warmup * max(config.floor, config.factor ** _plateaus(scores, config.patience)))
    drops = sum(step >= round(part * total) for part in config.milestones)
    return float(warmup * config.factor**drops)


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """How often more than `patience` scores in a row were not above all earlier ones; nan is above none."""
    best, waited, plateaus = float("-inf"), 0, 0
    for score in scores:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
        if waited > patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus


def build_optimizers(
    groups: list[dict[str, Any]], config: OptimizerConfig, *, fused: bool = False
) -> list[Optimizer]:
    """One optimiser for all groups, and one more for each group that brings its own ``optimizer`` settings.

    `fused` moves all weights in one call, which spares a GPU its many small ones.
    """
    own = [group for group in groups if "optimizer" in group]
    shared = [group for group in groups if "optimizer" not in group]
    optimizers = [_build(shared, config, fused)] if shared else []
    for group in own:
        settings = group["optimizer"]
        parameters = {key: value for key, value in group.items() if key != "optimizer"}
        optimizers.append(_build([parameters], OptimizerConfig(**settings), fused))
    return optimizers


def _build(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> Optimizer:
    one_call = fused or None  # None: as torch chooses
    groups = [{"lr_scale": 1.0, "base_rate": config.rate, **group} for group in groups]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, config.rate, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov,
            fused=one_call,
        )  # fmt: skip
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, config.rate, config.betas, weight_decay=config.weight_decay, fused=one_call)


def set_rate(
    optimizers: list[Optimizer], config: ScheduleConfig, step: int, total: int, scores: Sequence[float] = ()
) -> None:
    """Set the learning rate of every group for a step: base rate, times its own scale, times the schedule's factor.

    A group that brings its own ``schedule`` (the settings of a ScheduleConfig) follows that one.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            own = ScheduleConfig(**group["schedule"]) if "schedule" in group else config
            group["lr"] = group["base_rate"] * group["lr_scale"] * rate_factor(own, step, total, scores)
