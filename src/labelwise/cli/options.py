"""Options that several commands share."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from labelwise.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Do finished work again instead of skipping it.")
]
Workers = Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Processes; default: all CPUs.")]
Engine = Annotated[str, typer.Option("--engine", help="Where jobs run: local, or dask://host:port.")]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:1 or mps.")]
Data = Annotated[Path, typer.Argument(help="Folder of a manifest, or its manifest.csv.", show_default=False)]
Labels = Annotated[
    Path,
    typer.Argument(
        help="A label file, a folder with a mask per structure, or a folder of label files.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.", show_default=False)]
Binary = Annotated[bool, typer.Option("--binary", help="DICOM-SEG of the type BINARY instead of LABELMAP.")]
Base = Annotated[
    str | None,
    typer.Option(help="What is not set: plan it from the data (plan), or the fixed defaults (fixed)."),
]
Budget = Annotated[
    str | None, typer.Option(help="Time that the training may take, such as 40m or 1h30m: decides its steps.")
]
From = Annotated[
    str | None,
    typer.Option("--from", help="Run, model or encoder whose weights the training begins with."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting as key=value, e.g. train.steps=2000. Repeatable."),
]


def settings_option(help: str) -> Any:
    """``--set`` of a verb that has settings of one kind only."""
    return typer.Option("--set", help=f"{help} Repeatable.")


def show(text: str, facts: Any, as_json: bool) -> None:
    """Print a result: text for people, or the same facts as JSON."""
    typer.echo(json.dumps(facts, indent=2, default=str) if as_json else text.rstrip())


def pairs(values: list[str] | None, option: str) -> dict[str, str]:
    """``["a=1", "b=2"]`` -> {"a": "1", "b": "2"}."""
    parsed = {}
    for value in values or []:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} has the form name=value", found=value)
        if name.strip() in parsed:
            raise ConfigError(f"{option} names '{name.strip()}' twice", found=" ".join(values or []))
        parsed[name.strip()] = content.strip()
    return parsed


def minutes(budget: str | None) -> float | None:
    """``"1h30m"`` -> 90.0; None stays None."""
    return None if budget is None else seconds(budget, "--budget") / 60


def seconds(time: str, option: str) -> float:
    """``"1h30m"`` -> 5400.0."""
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", time.replace(" ", ""))
    try:
        parts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:
        parts = []
    if not any(parts):
        raise ConfigError(f"{option} is no time", found=time, expected="such as 40m, 2h, 1h30m or 90s")
    return 3600 * parts[0] + 60 * parts[1] + parts[2]


def words(value: str | None) -> list[str] | None:
    """``"liver, spleen"`` -> ["liver", "spleen"]; None stays None."""
    return None if value is None else [word.strip() for word in value.split(",") if word.strip()]


def regions(values: list[str] | None) -> dict[str, list[str]]:
    """``["whole tumour=edema,core"]`` -> {"whole tumour": ["edema", "core"]}."""
    return {name: words(classes) or [] for name, classes in pairs(values, "--region").items()}


def overrides(texts: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """``["train.steps=[100]", "method.name=ua_mt"]`` -> {"train.steps": [100], "method.name": "ua_mt"}.

    A value is read as TOML; what is not TOML is a string. Of two values for one setting the later counts.
    """
    values: dict[str, Any] = {}
    for name, value in (pair for text in texts or [] for pair in pairs([text], option).items()):
        try:
            values[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = value
    return values


def class_values(classes: str) -> dict[str, int]:
    """``"liver=1,tumour=2"`` -> {"liver": 1, "tumour": 2}."""
    named = pairs(words(classes), "--classes")
    if wrong := [value for value in named.values() if not value.lstrip("-").isdecimal()]:
        raise ConfigError("--classes has the form liver=1,tumour=2", found=wrong[0], expected="an integer")
    return {name: int(value) for name, value in named.items()}


def is_model(path: Path) -> bool:
    """Whether this is a model folder, or the folder of a run that contains one."""
    return any((folder / "model.json").exists() for folder in (path, path / "model"))
