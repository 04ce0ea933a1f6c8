"""``plan`` and ``train``: one run, from a recipe, from options, from the data. Repeated, `train` resumes."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import labelwise
from labelwise import console, run
from labelwise.cli.options import (
    AsJson,
    Base,
    Budget,
    Data,
    Device,
    Engine,
    From,
    Overwrite,
    Quiet,
    Settings,
    Workers,
    minutes,
    overrides,
    show,
)
from labelwise.errors import ConfigError

if TYPE_CHECKING:
    from labelwise.config import RunConfig

INTERRUPTED = 130


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("plan")(plan)
    app.command("train")(train)
    app.command("sweep")(sweep)


def plan(
    data: Data,
    recipe: Annotated[Path | None, typer.Option(help="Recipe; what it sets stays.")] = None,
    method: Annotated[str | None, typer.Option(help="Name of the method; see `labelwise methods`.")] = None,
    base: Base = None,
    budget: Budget = None,
    warm_start: From = None,
    device: Device = "auto",
    settings: Settings = None,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say how `train` would train these scans, why, and what it would cost. Nothing is trained."""
    chosen = _config(
        recipe, data, method, settings, **{"base": base, "device.device": device, "warm_start": warm_start}
    )
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        planned = run.plan(
            chosen,
            budget_minutes=_budget(budget, settings),
            workers=workers,
            engine=engine,
            progress=progress,
        )
    show(planned.to_text(), planned.facts(), as_json)


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe (TOML); run.toml of a run repeats it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; default runs/METHOD.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the manifest.")] = None,
    method: Annotated[str | None, typer.Option(help="Name of the method; see `labelwise methods`.")] = None,
    fold: Annotated[
        int | None, typer.Option(help="Which fold of --data trains; see `labelwise split --folds`.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides the weights, the batches and their augmentation.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = None,
    base: Base = None,
    budget: Budget = None,
    warm_start: From = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, the forecast and the settings, and stop.")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="Where the training is: local, or slurm as a job of SLURM.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", help="What the job may take, e.g. slurm_partition=gpu. Repeatable."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a model. An interrupted run continues where it stopped when the command is repeated."""
    speaks = console.is_first_process()  # of a training on several GPUs; all say their errors
    if not speaks:
        logging.getLogger("labelwise").setLevel(logging.ERROR)
    if fold is not None:
        data = _fold(data, fold)
    if slurm and engine == "local":
        raise ConfigError("--slurm belongs to --engine slurm", found=f"--slurm {slurm[0]}")
    chosen = _config(
        recipe,
        data,
        method,
        settings,
        **{"base": base, "seed": seed, "device.device": device, "warm_start": warm_start},
    )
    budget_minutes = _budget(budget, settings)
    default = chosen.method.name if fold is None else f"{chosen.method.name}_fold{fold}"
    folder = output or Path("runs") / default
    if dry_run:
        if speaks:
            _show_plan(chosen, budget_minutes, quiet=quiet, as_json=as_json)
        return
    with console.watch(quiet=quiet or not speaks, as_json=as_json) as progress:
        result = run.train(
            chosen, folder, budget_minutes=budget_minutes, overwrite=overwrite, engine=engine,
            slurm=overrides(slurm, "--slurm"), progress=progress,
        )  # fmt: skip
    text = f"{folder}: {result.steps} steps" + (
        ", interrupted; repeat the command to continue"
        if result.interrupted
        else f", model in {folder}/model"
    )
    if speaks:
        show(text, result.facts(), as_json)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _config(
    recipe: Path | None, data: Path | None, method: str | None, settings: list[str] | None, **values: Any
) -> RunConfig:
    """The settings that recipe and options give together."""
    values |= {
        "data": None if data is None else str(data),
        "method": None if method is None else {"name": method},
    }
    given = {key: value for key, value in values.items() if value is not None}
    return labelwise.load_config(recipe, overrides(settings), **given)


def _fold(data: Path | None, number: int) -> Path:
    """The manifest of a fold in what `labelwise split` wrote."""
    if data is None:
        raise ConfigError(
            "--fold belongs to --data", do="name the folder that `labelwise split` wrote: --data FOLDS"
        )
    folder = data / f"fold_{number}"
    if not folder.is_dir():
        raise ConfigError(
            "there is no such fold",
            file=folder,
            found=", ".join(sorted(path.name for path in data.glob("fold_*"))) or "no fold in this folder",
            do="make folds: labelwise split DATA -o FOLDS --folds 5",
        )
    return folder


def _budget(budget: str | None, settings: list[str] | None) -> float | None:
    if budget is not None and "train.steps" in overrides(settings):
        raise ConfigError("both --budget and train.steps decide the steps", do="leave one of them out")
    return minutes(budget)


def _show_plan(chosen: RunConfig, budget_minutes: float | None, *, quiet: bool, as_json: bool) -> None:
    """The resolved settings; with data also the plan and the forecast, as comments of the recipe."""
    if not chosen.data:
        show(chosen.to_toml(), asdict(chosen), as_json)
        return
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        planned = run.plan(chosen, budget_minutes=budget_minutes, progress=progress)
    comments = "".join(f"# {line}".rstrip() + "\n" for line in planned.to_text().splitlines())
    resolved = planned.config
    show(f"{comments}\n{resolved.to_toml()}", {**asdict(resolved), **planned.facts()}, as_json)


def sweep(
    plan: Annotated[
        Path,
        typer.Argument(help="Plan (TOML): methods, budgets of labels, seeds, folds.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the runs; default runs/PLAN.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is done, what is to do and what it will cost.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-j", min=1, help="Runs at a time; default: one per GPU, or per four CPUs."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="Where runs are: local, slurm, or dask://host:port.")
    ] = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train, score and compare methods x budgets x seeds x folds. Repeat it to go on; a failed run stops no other."""
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        result = run.sweep(
            plan, output or Path("runs") / plan.stem, dry_run=dry_run, workers=workers, engine=engine,
            progress=progress,
        )  # fmt: skip
    show(result.to_text(), result.facts(), as_json)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if result.failed:
        raise typer.Exit(1)
