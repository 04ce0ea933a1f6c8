"""The plan of a sweep: what it names, the runs that follow from it, and what they are said to cost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from labelwise.cohort.folds import fold_name, leave_each_data_set_out
from labelwise.cohort.manifest import read_manifest
from labelwise.config import RunConfig, load_config
from labelwise.console import ShowProgress, duration
from labelwise.documents import decode, parse_toml
from labelwise.errors import ConfigError
from labelwise.methods import find_method
from labelwise.plan.choose import LABELS_ALONE
from labelwise.run.plan import plan as plan_training
from labelwise.run.trial import Trial
from labelwise.settings import build_settings

DONE = "done.json"
WHOLE = "all"  # the budget of a plan without budgets: the labels as they are
FOLDS_FOLDER = "folds"
CONTROL, SAME_BATCHES, BASELINE = "supervised", "same_batches", "naive"
# The Dice term that methods which learn from unlabelled cases have by default: labels alone are trained with it too.
THEIR_DICE = {f"method.settings.{name}": value for name, value in LABELS_ALONE.items()}


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep trains."""

    # Folder of the manifest.
    data: str
    # Names of methods; each is one row of the tables.
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    # Folds of a cross-validation, in which each annotated patient tests once; 0: the split of the manifest.
    folds: int = 0
    # One fold for each data set instead: it tests, the others train.
    by_data_set: bool = False
    # Patients that validate in each fold: a number, or a part below 1; None: as many as in the manifest.
    validation: float | None = None
    # Decides who tests in which fold.
    folds_seed: int = 0
    # Recipe that all runs begin with.
    recipe: str | None = None
    # Cases that are scored.
    split: str = "test"
    # Add what tells whether a method helped: labels alone; and where it learns from unlabelled cases, in networks with
    # batch norm the same batches without learning anything from them.
    controls: bool = True
    # Settings of all runs, with dotted names.
    settings: dict[str, Any] = field(default_factory=dict)
    # Further settings of a method.
    settings_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Name -> mode of `simulate` and its settings; without any, the labels stay as they are.
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Of the engine slurm, as submitit calls them: timeout_min, slurm_partition, cpus_per_task, mem_gb, gpus_per_node.
    slurm: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def number_of_folds(self) -> int:
        """0 without folds; by data set as many as there are data sets."""
        return len(leave_each_data_set_out(read_manifest(self.data))) if self.by_data_set else self.folds

    def settings_of_budget(self, name: str) -> dict[str, Any]:
        """What a budget says beside its mode."""
        return {key: value for key, value in self.budgets[name].items() if key != "mode"}

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows of the tables: controls that were added come first."""
        return tuple(self.settings_by_row)

    @property
    def settings_by_row(self) -> dict[str, dict[str, Any]]:
        """Row -> its settings, with dotted names."""
        learns = any("none" in find_method(name).card.learns_from for name in self.methods)
        added: dict[str, dict[str, Any]] = {}
        if self.controls:
            if CONTROL not in self.methods and set(self.methods) != {BASELINE}:
                added[CONTROL] = {**(THEIR_DICE if learns else {}), "method.name": CONTROL}
            if learns and self._batch_norm():
                added[SAME_BATCHES] = {
                    "method.name": "mean_teacher",
                    "method.settings.consistency_weight": 0.0,
                }
        rows = added | {name: {"method.name": name} for name in self.methods}
        return {
            row: {
                **changes,
                **self.settings,
                **self.settings_of.get(row, {}),
                "method.name": changes["method.name"],
            }
            for row, changes in rows.items()
        }

    def _batch_norm(self) -> bool:
        """Whether the network that all runs are given has batch norm; what is planned has none."""
        learning = next(name for name in self.methods if "none" in find_method(name).card.learns_from)
        config = load_config(self.recipe, {**self.settings, "method.name": learning})
        if "net.name" in config.planned:
            return False
        with torch.device("meta"):
            network = config.nets(in_channels=1, num_classes=2).network()
        return any(isinstance(module, _BatchNorm) for module in network.modules())


@dataclass(frozen=True)
class Job(Trial):
    """One run of a sweep."""

    budget: str = WHOLE
    row: str = ""

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it is not done."""
        file = self.folder / DONE
        return float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.exists() else None


def read_plan(file: Path | str) -> SweepPlan:
    """Read a plan; paths in it are relative to its folder.

    Errors
        ConfigError     no such file, no TOML, an unknown key, method or budget
    """
    file = Path(file)
    try:
        table = parse_toml(decode(file.read_bytes()))
    except OSError as error:
        raise ConfigError("the plan cannot be read", file=file, found=error.strerror) from error
    except ValueError as error:
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
    if plan.folds and (plan.folds < 2 or plan.split != "test"):
        raise ConfigError(
            "folds are 2 or more, and each scores the cases that it tests",
            file=file,
            found=f"folds = {plan.folds}, split = '{plan.split}'",
        )
    if plan.by_data_set and (plan.folds or plan.validation is not None or plan.split != "test"):
        raise ConfigError(
            "the data sets decide who tests in which fold",
            file=file,
            do="leave out folds, validation and split",
        )
    if plan.validation is not None and not plan.folds:
        raise ConfigError(
            "validation says who validates in each fold, and there are no folds",
            file=file,
            do="set folds = 5",
        )
    for name in plan.methods:
        find_method(name)
    if unknown := [name for name in plan.settings_of if name not in plan.rows]:
        raise ConfigError(
            f"settings of a method that the plan does not train: {unknown[0]}",
            file=file,
            expected=", ".join(plan.rows),
        )
    for name, budget in plan.budgets.items():
        if not name or not name.replace("_", "").replace("-", "").isalnum() or name == FOLDS_FOLDER:
            raise ConfigError(
                "the name of a budget becomes a folder", file=file, found=name,
                expected=f"letters and digits, and not '{FOLDS_FOLDER}'",
            )  # fmt: skip
        if not isinstance(budget.get("mode"), str):
            raise ConfigError(
                f"the budget '{name}' has no mode", file=file, expected='mode = "keep_labelled", say'
            )


def jobs_of(plan: SweepPlan, folder: Path) -> list[Job]:
    """The runs of a plan, in the order in which they are begun.

    Errors
        ConfigError     settings that do not fit each other
    """
    jobs = []
    for budget in plan.budgets or (WHOLE,):
        for seed in plan.seeds:
            for fold in range(plan.number_of_folds) if plan.number_of_folds else (None,):
                for row, changes in plan.settings_by_row.items():
                    data = data_of(plan, folder, budget, fold)
                    name = f"{row}_seed{seed}" + ("" if fold is None else f"_fold{fold}")
                    config = load_config(plan.recipe, changes, data=str(data.absolute()), seed=seed)
                    jobs.append(
                        Job(f"{budget}/{name}", config, folder / budget / name, data, plan.split, budget, row)
                    )
    return jobs


def data_of(plan: SweepPlan, folder: Path, budget: str, fold: int | None) -> Path:
    """Where the manifest of a budget and a fold lies."""
    base = (
        (folder / budget / "data")
        if plan.budgets
        else (folder / FOLDS_FOLDER if plan.number_of_folds else Path(plan.data))
    )
    return base if fold is None else base / fold_name(fold)


# what it costs


@dataclass(frozen=True)
class Cost:
    """What the runs that are left will take, by those that are done and by a trial of each other method."""

    seconds: float  # one run after the other; without predictions where a method was only tried
    ram_gib: float  # of the largest run
    gpu_gib: float | None  # of the largest run
    disk_gib: float  # of runs and prepared scans that are not there yet
    unknown: tuple[str, ...] = ()  # rows of which no step could be measured

    def to_text(self, workers: int) -> str:
        """One line."""
        gpu = "" if self.gpu_gib is None else f", GPU memory {self.gpu_gib:.1f} GiB a run"
        together = f", {workers} at a time about {duration(self.seconds / workers)}" if workers > 1 else ""
        unknown = f"; unknown for {', '.join(self.unknown)}" if self.unknown else ""
        return (
            f"forecast: {duration(self.seconds)} of training{together}, memory {self.ram_gib * workers:.1f} GiB{gpu}, "
            f"disk {self.disk_gib:.2f} GiB{unknown}"
        )


def forecast(
    plan: SweepPlan, left: Sequence[Job], done: Sequence[Job], progress: ShowProgress
) -> Cost | None:
    """Try some steps of each row that is left; None if nothing is. Nothing is written beside the sweep.

    Errors
        ConfigError, DataError, ResourceError      those of `plan`: a training that would not begin either
    """
    if not left:
        return None
    seconds, unknown, sizes, ram, gpu = 0.0, [], 0.0, 0.0, None
    stores: dict[Path, float] = {}
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # the fingerprint is kept there, and nothing is prepared yet
        for number, row in enumerate(dict.fromkeys(job.row for job in left)):
            runs = [job for job in left if job.row == row]
            progress("forecast", number, len({job.row for job in left}), row)
            config = _elsewhere(runs[0].config, plan.data, scratch)
            found = plan_training(config).forecast
            if found is None:
                unknown.append(row)
                continue
            known = [each for job in done if job.row == row and (each := job.seconds) is not None]
            seconds += len(runs) * (fmean(known) if known else 3600 * found.training_hours)
            ram, gpu = max(ram, found.ram_gib), max(filter(None, (gpu, found.gpu_gib)), default=None)
            sizes += len(runs) * (found.disk_gib - found.store_gib)
            for job in runs:
                if not (job.data / "store").exists():
                    stores[job.data] = max(stores.get(job.data, 0.0), found.store_gib)
    return Cost(seconds, ram, gpu, sizes + sum(stores.values()), tuple(unknown))


def _elsewhere(config: RunConfig, data: str, store: str) -> RunConfig:
    prepare = replace(config.prepare, store=store)
    return replace(config, data=str(Path(data).absolute()), prepare=prepare)


def left_seconds(jobs: Sequence[Job], left: Sequence[Job]) -> float | None:
    """How long the runs that are left will take, one after the other, by those that are done; None if none is."""
    times: Mapping[str, float | None] = {job.name: job.seconds for job in jobs}
    known = [seconds for seconds in times.values() if seconds is not None]
    if not known:
        return None
    guess = 0.0
    for job in left:
        same = [each for other in jobs if other.row == job.row and (each := times[other.name]) is not None]
        guess += fmean(same or known)
    return guess
