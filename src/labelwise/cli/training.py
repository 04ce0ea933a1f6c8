"""``train``: one run, from a recipe, from options, or both. Repeating the command resumes the run."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import labelwise
from labelwise import console, run
from labelwise.cli.options import AsJson, Overwrite, Quiet, Settings, overrides, show

INTERRUPTED = 130


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("train")(train)


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe (TOML); run.toml of a run repeats it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; default runs/METHOD.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the manifest.")] = None,
    method: Annotated[str | None, typer.Option(help="Name of the method; see `labelwise methods`.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides the weights, the batches and their augmentation.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a model. An interrupted run continues where it stopped when the command is repeated."""
    speaks = console.is_first_process()  # of a training on several GPUs; all say their errors
    if not speaks:
        logging.getLogger("labelwise").setLevel(logging.ERROR)
    values: dict[str, Any] = {
        "data": None if data is None else str(data),
        "method": None if method is None else {"name": method},
        "seed": seed,
        "device.device": device,
    }
    chosen = labelwise.load_config(
        recipe, overrides(settings), **{k: v for k, v in values.items() if v is not None}
    )
    folder = output or Path("runs") / chosen.method.name
    if dry_run:
        if speaks:
            show(chosen.to_toml(), asdict(chosen), as_json)
        return
    with console.watch(quiet=quiet or not speaks, as_json=as_json) as progress:
        result = run.train(chosen, folder, overwrite=overwrite, progress=progress)
    text = f"{folder}: {result.steps} steps" + (
        ", interrupted; repeat the command to continue"
        if result.interrupted
        else f", model in {folder}/model"
    )
    if speaks:
        show(text, result.facts(), as_json)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
