"""A training as a job of SLURM, by the executor that sweeps use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from labelwise.config import RunConfig
from labelwise.engine import SLURM, run_jobs
from labelwise.errors import ConfigError

Result = TypeVar("Result")


def train_as_job(
    train: Callable[..., Result],
    config: RunConfig,
    folder: Path,
    *,
    engine: str,
    slurm: Mapping[str, Any],
    overwrite: bool,
    budget_minutes: float | None,
) -> Result:
    """What `train` returns for these arguments in a job of SLURM, one task for each of `device.processes`.

    The job is waited for, and cancelled when this process is stopped. When its time is over it is submitted again, and
    the training goes on.

    Errors
        ConfigError     no such engine, settings that submitit does not know, tasks that are not the processes
        ResourceError   the job ended without a result; and all errors of `train`
    """
    processes = config.device.processes
    if engine.partition(":")[0] != SLURM:
        raise ConfigError(
            f"a training does not run on the engine '{engine}'",
            expected=f"local or {SLURM}",
            code="unknown-name",
        )
    if engine != SLURM and processes > 1:
        raise ConfigError(f"{engine} has one process", found=f"device.processes = {processes}")
    if (tasks := slurm.get("tasks_per_node", processes)) != processes:
        raise ConfigError(
            "a job has a task for each process of the training",
            found=f"tasks_per_node = {tasks}",
            expected=f"{processes}, as device.processes says",
        )
    settings = {"name": "labelwise", **slurm, "tasks_per_node": processes}
    begin = partial(_begin, train, overwrite=overwrite, budget_minutes=budget_minutes)
    (outcome,) = run_jobs(
        begin, [(config, folder.absolute())], engine=engine, shared=[folder.absolute()], slurm=settings
    )
    if outcome.error is not None:
        raise outcome.error
    assert outcome.result is not None
    return outcome.result


def _begin(
    train: Callable[..., Result],
    what: tuple[RunConfig, Path],
    *,
    overwrite: bool,
    budget_minutes: float | None,
) -> Result:
    """The training in its job; one that SLURM has begun again goes on."""
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    return train(*what, overwrite=overwrite and not again, budget_minutes=budget_minutes)
