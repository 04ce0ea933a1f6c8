"""`plan`: the settings that a recipe leaves open, from the data and the machine, and what the training will cost."""

from __future__ import annotations

from dataclasses import replace

from labelwise.config import RunConfig
from labelwise.console import ShowProgress, silent
from labelwise.loading.prepare import Jobs
from labelwise.run.planning import Planned, settle
from labelwise.run.prepare import read_data
from labelwise.train.distributed import connect

__all__ = ["Planned", "plan"]


def plan(
    config: RunConfig,
    *,
    budget_minutes: float | None = None,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> Planned:
    """Decide what the recipe leaves open, and forecast the training. Nothing is prepared or trained.

    The training scans are read once, for their fingerprint, which is kept in the store; some steps are tried.

    Arguments
        budget_minutes  time that the training may take; it decides `train.steps`

    Errors
        ConfigError     no manifest is named; the budget is too short for a step; several processes
        DataError       the manifest is wrong, or no training scan can be read
    """
    manifest = read_data(config)
    single = replace(config, device=replace(config.device, processes=1))
    return settle(
        config, manifest, connect(single.device), budget_minutes=budget_minutes,
        jobs=Jobs(workers, engine, progress),
    )  # fmt: skip
