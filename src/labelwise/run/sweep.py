"""`sweep`: methods x budgets of labels x seeds x folds on one cohort, trained, scored and compared by one plan."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labelwise.atomic import write_json, write_text
from labelwise.cohort.folds import FOLDS, fold_name
from labelwise.cohort.manifest import MANIFEST_NAME, manifest_file
from labelwise.console import ShowProgress, duration, silent
from labelwise.errors import ConfigError, DataError
from labelwise.lock import only_writer
from labelwise.run.agreement import agreement
from labelwise.run.compare import compare
from labelwise.run.cost import cost
from labelwise.run.pairing import PREDICTIONS, SCORES
from labelwise.run.report import report
from labelwise.run.simulate import scarce, simulate
from labelwise.run.split import read_folds, split
from labelwise.run.sweep_plan import (
    DONE,
    FOLDS_FOLDER,
    WHOLE,
    Cost,
    Job,
    SweepPlan,
    forecast,
    jobs_of,
    left_seconds,
    read_plan,
)
from labelwise.run.trial import perform_all, score_trial, side_by_side, train_trial

__all__ = ["SweepPlan", "SweepResult", "read_plan", "sweep"]

BUDGET = "budget.json"


@dataclass(frozen=True)
class SweepResult:
    """What is done, what failed, and what is left."""

    folder: Path
    done: tuple[str, ...]
    failed: Mapping[str, str]  # run -> message
    left: tuple[str, ...]  # to do: after a dry run, or an interruption
    seconds_left: float | None  # one run after the other, by the runs that are done; None if none is
    interrupted: bool = False
    cost: Cost | None = None  # of what is left; of a dry run only
    workers: int = 1  # runs at a time

    def to_text(self) -> str:
        """One line for the whole, then what is left and what failed."""
        guess = (
            ""
            if self.seconds_left is None
            else f", about {duration(self.seconds_left)} by those that are done"
        )
        head = (
            f"{self.folder}: {len(self.done)} runs done, {len(self.left)} to do{guess if self.left else ''}"
        )
        head += f", {len(self.failed)} failed" if self.failed else ""
        cost = [self.cost.to_text(self.workers)] if self.cost else []
        left = [f"to do: {name}" for name in self.left]
        failed = [f"failed: {name}\n{text}" for name, text in self.failed.items()]
        return "\n".join([head, *cost, *left, *failed])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        cost = None if self.cost is None else vars(self.cost)
        return {**vars(self), "folder": str(self.folder), "failed": dict(self.failed), "cost": cost}


def sweep(
    plan: SweepPlan | Path | str,
    output: Path | str,
    *,
    dry_run: bool = False,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> SweepResult:
    """Train, predict and evaluate every run of a plan, and compare the methods of each budget.

    Writes to ``output/BUDGET/``: the manifest data/ (or one for each fold), one folder for each run
    (``METHOD_seedN``, ``METHOD_seedN_foldK``), compare.csv, compare.txt and report.html, of folds by data set also
    agreement.csv and agreement.txt; and to ``output`` itself what
    the labels of the budgets are worth (cost.csv, cost.txt, cost.png, see `labelwise.run.cost`).

    Repeating the call goes on: finished runs are skipped, one in the middle of its training resumes. A run that fails
    stops no other one, and is listed.

    Arguments
        dry_run     only say what is left, and what it will cost by some steps of each method
        workers     runs at a time, of the engine local; default: one for each GPU, or for every four CPUs
        engine      local, ``dask://host:port``, or slurm with the settings that the plan has under ``[slurm]``

    Errors
        ConfigError     the plan is wrong, or the folder holds runs of another plan
        DataError       no manifest, or labels that cannot be made scarce, or patients that cannot be dealt like this
        ResourceError   another program is writing into the folder
    """
    if not isinstance(plan, SweepPlan):
        plan = read_plan(plan)
    folder = Path(output)
    if not manifest_file(plan.data).is_file():
        raise DataError("there is no manifest", file=plan.data, do="run `labelwise import` first")
    jobs = jobs_of(plan, folder)  # a wrong setting is refused before any work
    if not plan.number_of_folds:  # so is a budget; what a fold holds is known when the folds are made
        for name in plan.budgets:
            scarce(plan.data, plan.budgets[name]["mode"], **plan.settings_of_budget(name))
    together = workers or (side_by_side() if engine == "local" else len(jobs))
    if dry_run:
        done = [job for job in jobs if job.seconds is not None]
        left = [job for job in jobs if job.seconds is None]
        result = _result(folder, jobs, {})
        return replace(
            result, cost=forecast(plan, left, done, progress), workers=min(together, max(1, len(left)))
        )
    failed: dict[str, str] = {}
    interrupted = False
    with only_writer(folder):
        _make_manifests(plan, folder)
        waiting = [job for job in jobs if not _is_done(job, failed)]
        outcomes = perform_all(
            waiting, _perform, folder=folder, engine=engine, workers=workers, slurm=plan.slurm,
            progress=_named(progress, jobs),
        )  # fmt: skip
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    if outcome.error is not None:
                        failed[outcome.item.name] = str(outcome.error)
                    elif not outcome.result:
                        interrupted = True
                        break
                    _show(progress, jobs, len(failed), together)
        except KeyboardInterrupt:
            interrupted = True
        if not interrupted:
            worth = [folder] if len(plan.budgets) > 1 and not failed else []
            if worth:
                cost(worth, folder)
            for budget in dict.fromkeys(job.budget for job in jobs):
                runs = [job.folder for job in jobs if job.budget == budget and job.seconds is not None]
                _tell(budget, runs, by_data_set=plan.by_data_set, budgets=worth)
    return replace(_result(folder, jobs, failed), interrupted=interrupted)


def _make_manifests(plan: SweepPlan, folder: Path) -> None:
    """The manifests of folds and budgets, once; those that were made otherwise are refused."""
    if plan.by_data_set:
        split(plan.data, folder / FOLDS_FOLDER, by_data_set=True)
    elif plan.folds:
        share = plan.validation
        count = int(share) if share is not None and float(share).is_integer() else share
        split(plan.data, folder / FOLDS_FOLDER, folds=plan.folds, validation=count, seed=plan.folds_seed)
    for name in plan.budgets:
        target = folder / name / "data"
        if not plan.number_of_folds:
            _make_scarce(plan, name, Path(plan.data), target)
            continue
        for number in range(plan.number_of_folds):
            _make_scarce(plan, name, folder / FOLDS_FOLDER / fold_name(number), target / fold_name(number))
        write_json(target / FOLDS, read_folds(folder / FOLDS_FOLDER))


def _make_scarce(plan: SweepPlan, name: str, data: Path, target: Path) -> None:
    wanted = {"data": str(data.absolute()), **plan.budgets[name]}
    record = (
        target.parent / BUDGET
        if not plan.number_of_folds
        else target.parent.parent / f"{target.name}_{BUDGET}"
    )
    made = (target / MANIFEST_NAME).exists()
    if made and record.exists() and (found := json.loads(record.read_text(encoding="utf-8"))) != wanted:
        raise ConfigError(
            f"the budget '{name}' was made otherwise", file=record, found=found, expected=wanted,
            do="give the budget another name, or the sweep another folder",
        )  # fmt: skip
    if not made:
        write_json(record, wanted)
        simulate(data, target, plan.budgets[name]["mode"], **plan.settings_of_budget(name))


def _settings(job: Job) -> str:
    """All that decides a run; the same scans may lie elsewhere, and any device may train."""
    device = replace(job.config.device, device="auto")
    return replace(job.config, data="", device=device).to_toml()


def _is_done(job: Job, failed: dict[str, str]) -> bool:
    """Whether a run is finished; one with other settings than the plan has is listed as failed."""
    if not (job.folder / DONE).exists():
        return False
    record = json.loads((job.folder / DONE).read_text(encoding="utf-8"))
    if (record["settings"], record["split"]) != (_settings(job), job.split):
        error = ConfigError(
            "the folder holds a finished run with other settings", file=job.folder,
            do="remove it, or give the sweep another folder",
        )  # fmt: skip
        failed[job.name] = str(error)
    return True


def _perform(job: Job, *, progress: ShowProgress) -> bool:
    """Train, predict and evaluate; the record of a finished run is written last."""
    if (job.folder / DONE).exists():  # by another program, meanwhile
        return True
    start = time.perf_counter()
    if train_trial(job, progress) is None:
        return False
    score_trial(job, job.folder / PREDICTIONS, {job.folder / SCORES: {}}, progress=progress)
    seconds = round(time.perf_counter() - start, 1)
    write_json(job.folder / DONE, {"seconds": seconds, "split": job.split, "settings": _settings(job)})
    return True


def _named(progress: ShowProgress, jobs: Sequence[Job]) -> Callable[[str], ShowProgress]:
    """The progress of each run by its name: which of how many it is."""
    numbers = {job.name: f"{number}/{len(jobs)} {job.name}" for number, job in enumerate(jobs, start=1)}

    def of(name: str) -> ShowProgress:
        def show(task: str, done: int, total: int, message: str = "") -> None:
            progress(f"{numbers[name]}: {task}", done, total, message)

        return show

    return of


def _show(progress: ShowProgress, jobs: Sequence[Job], failed: int, together: int) -> None:
    """How far the whole is."""
    left = [job for job in jobs if job.seconds is None]
    seconds = left_seconds(jobs, left)
    told = (
        [] if seconds is None or not left else [f"about {duration(seconds / min(together, len(left)))} left"]
    )
    told += [f"{failed} failed"] if failed else []
    progress("sweep", len(jobs) - len(left), len(jobs), ", ".join(told))


def _tell(budget: str, runs: list[Path], *, by_data_set: bool, budgets: list[Path]) -> None:
    """Tables and page of the finished runs of a budget."""
    if not runs:
        return
    folder = runs[0].parent
    comparison = compare(runs)
    write_text(folder / "compare.csv", comparison.to_csv())
    write_text(folder / "compare.txt", comparison.to_text())
    title = f"Budget {budget}" if budget != WHOLE else "Comparison of methods"
    report(runs, folder / "report.html", title=title, budgets=budgets)
    if by_data_set:
        agreement(runs, folder)


def _result(folder: Path, jobs: list[Job], failed: Mapping[str, str]) -> SweepResult:
    left = [job for job in jobs if job.seconds is None and job.name not in failed]
    done = tuple(job.name for job in jobs if job.seconds is not None and job.name not in failed)
    return SweepResult(folder, done, dict(failed), tuple(job.name for job in left), left_seconds(jobs, left))
