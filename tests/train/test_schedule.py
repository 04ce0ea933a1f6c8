"""Learning rates over the steps, and optimisers from parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.errors import ConfigError
from labelwise.settings import build_settings
from labelwise.train.loop import LoopConfig
from labelwise.train.schedule import OptimizerConfig, ScheduleConfig, build_optimizers, rate_factor, set_rate


def test_poly_falls_from_one_to_zero():
    factors = [rate_factor(ScheduleConfig(), step, 100) for step in (0, 50, 99)]
    assert factors == pytest.approx([1.0, 0.5**0.9, 0.01**0.9])


def test_step_drops_at_the_published_iterations_of_the_la_benchmark():
    schedule = ScheduleConfig(name="step")
    assert [round(rate_factor(schedule, step, 6000), 6) for step in (2499, 2500, 4999, 5000)] == [
        1,
        0.1,
        0.1,
        0.01,
    ]


def test_constant_with_warmup():
    schedule = ScheduleConfig(name="constant", warmup_steps=4)
    assert [rate_factor(schedule, step, 100) for step in (0, 1, 3, 50)] == [0.25, 0.5, 1.0, 1.0]


def test_plateau_drops_after_more_validations_without_a_better_score_than_patience_allows():
    schedule = ScheduleConfig(name="plateau", factor=0.5, patience=1, floor=0.2)
    scores = [0.1, 0.3, 0.3, float("nan"), 0.2, 0.4, 0.1, 0.1, 0.1, 0.1]
    factors = [rate_factor(schedule, 0, 100, scores[:count]) for count in range(len(scores) + 1)]
    assert factors == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2]


def test_plateau_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.95, patience=4, threshold=0.0, min_lr=0.01
    )
    scores = torch.rand(60, generator=torch.Generator().manual_seed(0)).tolist()
    schedule = ScheduleConfig(name="plateau", factor=0.95)
    for count, score in enumerate(scores, start=1):
        theirs.step(score)
        assert rate_factor(schedule, 0, 100, scores[:count]) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_groups_scale_the_rate_or_bring_their_own_optimiser():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(4)]
    groups = [
        {"params": [weights[0]]},
        {"params": [weights[1]], "lr_scale": 0.1},
        {"params": [weights[2]], "optimizer": {"name": "adam", "rate": 1e-4, "betas": (0.9, 0.99)}},
        {
            "params": [weights[3]],
            "schedule": {"name": "constant"},
            "optimizer": {"name": "adamw", "rate": 1e-3},
        },
    ]
    optimizers = build_optimizers(groups, OptimizerConfig(rate=0.01))
    set_rate(optimizers, ScheduleConfig(power=1.0), 50, 100)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.005, 0.0005, 0.5e-4, 1e-3])
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["SGD", "Adam", "AdamW"]
    assert optimizers[1].param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_gradient": 0},
        {"clip_gradient": -1.0},
        {"optimizer": {"rate": float("inf")}},
        {"optimizer": {"momentum": -0.1}},
        {"optimizer": {"momentum": 0.0, "nesterov": True}},
        {"optimizer": {"weight_decay": -1e-4}},
        {"schedule": {"power": -1.0}},
        {"schedule": {"factor": -0.1}},
        {"schedule": {"milestones": [0.5, 2.0]}},
        {"schedule": {"warmup_steps": -5}},
    ],
)
def test_settings_that_would_climb_the_loss_or_crash_the_optimiser_are_refused(settings):
    with pytest.raises(ConfigError):
        build_settings(LoopConfig, settings, "[train]")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weights_that_move_in_one_call_move_alike(name):
    moved = []
    for fused in (False, True):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
        groups = [{"params": [weight], "lr_scale": 0.5}]
        (optimizer,) = build_optimizers(groups, OptimizerConfig(name=name, rate=0.1), fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) is fused
        for step in range(3):
            set_rate([optimizer], ScheduleConfig(), step, 3)
            weight.grad = weight.detach().sin() * (step + 1)
            optimizer.step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-12, atol=1e-12)
