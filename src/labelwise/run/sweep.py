"""`sweep`: methods x budgets of labels x seeds on one cohort, trained, scored and compared by one plan."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from labelwise.atomic import write_json, write_text
from labelwise.cohort.manifest import MANIFEST_NAME, manifest_file
from labelwise.config import RunConfig, load_config
from labelwise.console import Progress, silent
from labelwise.errors import ConfigError, DataError, LabelwiseError
from labelwise.lock import only_writer
from labelwise.methods import find_method
from labelwise.run.compare import compare
from labelwise.run.evaluate import evaluate
from labelwise.run.pairing import PREDICTIONS, SCORES
from labelwise.run.predict import predict
from labelwise.run.report import report
from labelwise.run.simulate import simulate
from labelwise.run.train import train
from labelwise.settings import build_settings

__all__ = ["SweepPlan", "SweepResult", "read_plan", "sweep"]

DONE, BUDGET = "done.json", "budget.json"
WHOLE = "all"  # the budget of a plan without budgets: the labels as they are
CONTROL = "supervised"


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep trains."""

    # Folder of the manifest.
    data: str
    # Names of methods; each is one row of the tables.
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    # Recipe that all runs begin with.
    recipe: str | None = None
    # Cases that are scored.
    split: str = "test"
    # Add `supervised` where a method that learns from unlabelled cases has no control beside it.
    controls: bool = True
    # Settings of all runs, with dotted names.
    settings: dict[str, Any] = field(default_factory=dict)
    # Further settings of a method.
    settings_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Name -> mode of `simulate` and its settings; without any, the labels stay as they are.
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """The methods that are trained: a control comes first."""
        learns = any("none" in find_method(name).card.learns_from for name in self.methods)
        added = (CONTROL,) if self.controls and learns and CONTROL not in self.methods else ()
        return (*added, *self.methods)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    budget: str
    method: str
    seed: int
    folder: Path
    data: Path

    @property
    def name(self) -> str:
        """Budget, method and seed in one word."""
        return f"{self.budget}/{self.folder.name}"

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it is not done."""
        file = self.folder / DONE
        return float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.exists() else None


@dataclass(frozen=True)
class SweepResult:
    """What is done, what failed, and what is left."""

    folder: Path
    done: tuple[str, ...]
    failed: Mapping[str, str]  # run -> message
    left: tuple[str, ...]  # to do: after a dry run, or an interruption
    seconds_left: float | None  # by the runs that are done; None if none is
    interrupted: bool = False

    def to_text(self) -> str:
        """One line for the whole, then what is left and what failed."""
        guess = (
            ""
            if self.seconds_left is None
            else f", about {_duration(self.seconds_left)} by those that are done"
        )
        head = (
            f"{self.folder}: {len(self.done)} runs done, {len(self.left)} to do{guess if self.left else ''}"
        )
        head += f", {len(self.failed)} failed" if self.failed else ""
        left = [f"to do: {name}" for name in self.left]
        return "\n".join([head, *left, *(f"failed: {name}\n{text}" for name, text in self.failed.items())])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**vars(self), "folder": str(self.folder), "failed": dict(self.failed)}


def read_plan(file: Path | str) -> SweepPlan:
    """Read a plan; paths in it are relative to its folder.

    Errors
        ConfigError     no such file, no TOML, an unknown key, method or budget
    """
    file = Path(file)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("the plan cannot be read", file=file, found=error.strerror) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("the plan is no TOML", file=file, found=str(error)) from error
    for key in ("data", "recipe"):
        if isinstance(table.get(key), str):
            table[key] = str(file.parent / table[key])
    plan = build_settings(SweepPlan, table, f"the plan {file}")
    _check(plan, file)
    return plan


def _check(plan: SweepPlan, file: Path) -> None:
    if not plan.methods or not plan.seeds:
        raise ConfigError("a plan needs a method and a seed", file=file)
    for values in (plan.methods, plan.seeds):
        if len(set(values)) < len(values):
            raise ConfigError("a plan names something twice", file=file, found=", ".join(map(str, values)))
    for name in plan.methods:
        find_method(name)
    if unknown := [name for name in plan.settings_of if name not in plan.rows]:
        raise ConfigError(
            f"settings of a method that the plan does not train: {unknown[0]}",
            file=file,
            expected=", ".join(plan.rows),
        )
    for name, budget in plan.budgets.items():
        if not name or not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(
                "the name of a budget becomes a folder", file=file, found=name, expected="letters and digits"
            )
        if not isinstance(budget.get("mode"), str):
            raise ConfigError(
                f"the budget '{name}' has no mode", file=file, expected='mode = "keep_labelled", say'
            )


def sweep(
    plan: SweepPlan | Path | str, output: Path | str, *, dry_run: bool = False, progress: Progress = silent
) -> SweepResult:
    """Train, predict and evaluate every run of a plan, and compare the methods of each budget.

    Writes to ``output/BUDGET/``: the manifest data/, one folder for each run (``METHOD_seedN``), compare.csv,
    compare.txt and report.html. Repeating the call goes on: finished runs are skipped, one in the middle of its
    training resumes. A run that fails stops no other one, and is listed.

    Errors
        ConfigError     the plan is wrong, or the folder holds runs of another plan
        DataError       no manifest, or labels that cannot be made scarce like this
        ResourceError   another program is writing into the folder
    """
    if not isinstance(plan, SweepPlan):
        plan = read_plan(plan)
    folder = Path(output)
    if not manifest_file(plan.data).is_file():
        raise DataError("there is no manifest", file=plan.data, do="run `labelwise import` first")
    jobs = _jobs(plan, folder)
    configs = {job.name: _config(plan, job) for job in jobs}  # a wrong setting is refused before any work
    if dry_run:
        return _result(folder, jobs, {})
    failed: dict[str, str] = {}
    with only_writer(folder):
        for name in plan.budgets:
            _make_scarce(plan, name, folder / name / "data")
        for number, job in enumerate(jobs, start=1):
            try:
                _perform(plan, job, configs[job.name], _named(progress, f"{number}/{len(jobs)} {job.name}"))
            except KeyboardInterrupt:
                return _result(folder, jobs, failed, interrupted=True)
            except LabelwiseError as error:
                failed[job.name] = str(error)
        for budget in dict.fromkeys(job.budget for job in jobs):
            _tell(budget, [job.folder for job in jobs if job.budget == budget and job.seconds is not None])
    return _result(folder, jobs, failed)


def _jobs(plan: SweepPlan, folder: Path) -> list[Job]:
    return [
        Job(
            budget, method, seed, folder / budget / f"{method}_seed{seed}",
            folder / budget / "data" if plan.budgets else Path(plan.data),
        )
        for budget in plan.budgets or (WHOLE,)
        for seed in plan.seeds
        for method in plan.rows
    ]  # fmt: skip


def _config(plan: SweepPlan, job: Job) -> RunConfig:
    changes = {**plan.settings, **plan.settings_of.get(job.method, {}), "method.name": job.method}
    return load_config(plan.recipe, changes, data=str(job.data.absolute()), seed=job.seed)


def _make_scarce(plan: SweepPlan, name: str, target: Path) -> None:
    """The manifest of a budget, once; one that was made otherwise is refused."""
    wanted = {"data": str(Path(plan.data).absolute()), **plan.budgets[name]}
    record = target.parent / BUDGET
    if record.exists() and (found := json.loads(record.read_text(encoding="utf-8"))) != wanted:
        raise ConfigError(
            f"the budget '{name}' was made otherwise", file=record, found=found, expected=wanted,
            do="give the budget another name, or the sweep another folder",
        )  # fmt: skip
    if not (target / MANIFEST_NAME).exists():
        settings = {key: value for key, value in plan.budgets[name].items() if key != "mode"}
        write_json(record, wanted)
        simulate(plan.data, target, plan.budgets[name]["mode"], **settings)


def _perform(plan: SweepPlan, job: Job, config: RunConfig, progress: Progress) -> None:
    """Train, predict and evaluate; the record of a finished run is written last."""
    settings = replace(config, data="").to_toml()  # the same scans may lie elsewhere
    if (job.folder / DONE).exists():
        record = json.loads((job.folder / DONE).read_text(encoding="utf-8"))
        if (record["settings"], record["split"]) != (settings, plan.split):
            raise ConfigError(
                "the folder holds a finished run with other settings", file=job.folder,
                do="remove it, or give the sweep another folder",
            )  # fmt: skip
        return
    start = time.perf_counter()
    if train(config, job.folder, progress=progress).interrupted:
        raise KeyboardInterrupt
    predicted = predict(job.folder, job.data, job.folder / PREDICTIONS, split=plan.split, progress=progress)
    if predicted.failed:
        raise DataError(f"{len(predicted.failed)} scans could not be segmented\n{predicted.to_text()}")
    evaluate(job.folder, job.data, job.folder / SCORES, split=plan.split, progress=progress)
    seconds = round(time.perf_counter() - start, 1)
    write_json(job.folder / DONE, {"seconds": seconds, "split": plan.split, "settings": settings})


def _named(progress: Progress, name: str) -> Progress:
    def show(task: str, done: int, total: int, message: str = "") -> None:
        progress(f"{name}: {task}", done, total, message)

    return show


def _tell(budget: str, runs: list[Path]) -> None:
    """Tables and page of the finished runs of a budget."""
    if not runs:
        return
    folder = runs[0].parent
    comparison = compare(runs)
    write_text(folder / "compare.csv", comparison.to_csv())
    write_text(folder / "compare.txt", comparison.to_text())
    report(
        runs, folder / "report.html", title=f"Budget {budget}" if budget != WHOLE else "Comparison of methods"
    )


def _result(
    folder: Path, jobs: list[Job], failed: Mapping[str, str], *, interrupted: bool = False
) -> SweepResult:
    times = {job.name: job.seconds for job in jobs}
    left = [job for job in jobs if times[job.name] is None and job.name not in failed]
    known = [seconds for seconds in times.values() if seconds is not None]
    guess = None
    if known:
        guess = 0.0
        for job in left:
            same = [
                s for other in jobs if other.method == job.method and (s := times[other.name]) is not None
            ]
            guess += fmean(same or known)
    done = tuple(name for name, seconds in times.items() if seconds is not None and name not in failed)
    return SweepResult(folder, done, dict(failed), tuple(job.name for job in left), guess, interrupted)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    )
