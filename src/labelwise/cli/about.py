"""``demo``, ``methods``, ``doctor``: what this is, what it can do, and whether it works here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labelwise import console, run
from labelwise.cli.options import AsJson, Overwrite, Quiet, show


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("demo")(demo)
    app.command("methods")(methods)
    app.command("recipes")(recipes)
    app.command("doctor")(doctor)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Decides the scans, the weights and the order of batches.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each method.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Everything once, on synthetic CT scans. Four sites that each annotate one structure, three methods, a report."""
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        result = run.demo(output, seed=seed, steps=steps, overwrite=overwrite, progress=progress)
    show(f"{result.comparison.to_text()}\n\nreport: {result.report}", result.facts(), as_json)


def methods(as_json: AsJson = False) -> None:
    """List the methods: what each learns from, and its paper."""
    rows = run.methods()
    lines = [
        f"{row['name']:<20} {', '.join(row['learns_from']):<20} {row['dims']:<6} {row['idea']}"
        for row in rows
    ]
    header = f"{'name':<20} {'learns from cases':<20} {'dims':<6} idea"
    show("\n".join([header, *lines]), rows, as_json)


def recipes(as_json: AsJson = False) -> None:
    """List the recipes that come with the package. `labelwise train NAME --data my_data` trains by one."""
    rows = run.recipes()
    width = max((len(row["name"]) for row in rows), default=0)
    show("\n".join(f"{row['name']:<{width}}  {row['title']}" for row in rows), rows, as_json)


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, and how fast it computes. And what a training waits for."""
    facts = run.doctor()
    show("\n".join(f"{name:<27} {value}" for name, value in facts.items()), facts, as_json)
