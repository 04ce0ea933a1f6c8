"""How runs were made, as a page tells it: settings, environment, date and cost of every seed; no paths of folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from labelwise.config import read_recipe
from labelwise.infer.record import read_record
from labelwise.report.measures import UNDEFINED
from labelwise.report.tables import Entry, Table
from labelwise.run.pairing import PREDICTIONS
from labelwise.settings import flat

COST = "cost.json"
PLAN = "plan.json"  # with what was expected of the training, and at its end what became of it
_COMMON = "All runs"
_NOT_KNOWN = "not known"


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run as they were resolved; none if nobody kept them."""
    return read_recipe(folder / "run.toml") if (folder / "run.toml").exists() else {}


def add_cost(folder: Path, seconds: float, memory: Mapping[str, float | None]) -> dict[str, Any]:
    """What a run has cost with this part of its training, which took `seconds`; `memory` are peaks in GiB."""
    before = read_record(folder / COST)
    peaks = {name: _largest(before.get(name), value) for name, value in memory.items()}
    return {"training_hours": float(before.get("training_hours", 0.0)) + seconds / 3600, **peaks}


def circumstances(runs: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, str]]:
    """Heading -> name -> what is to be told: what all runs have in common, then the rest of each run.

    `runs` are the folders of the seeds of each run. Where seeds differ, the values stand in their order. A path becomes
    its last part, for the page is made to be shared.
    """
    blocks: dict[str, dict[str, str]] = {}
    for what, told_of in (("", _of_seed), (", settings", _settings)):
        told = {name: _of_run([told_of(folder) for folder in folders]) for name, folders in runs.items()}
        common = dict.fromkeys(key for facts in told.values() for key in facts)
        first = next(iter(told.values()))
        shared = {
            key: first[key]
            for key in common
            if len(told) > 1 and len({facts.get(key) for facts in told.values()}) == 1
        }
        for run, facts in told.items():
            blocks[f"{run}{what}"] = {key: text for key, text in facts.items() if key not in shared}
        blocks[f"{_COMMON}{what}"] = shared
    return {heading: facts for heading, facts in blocks.items() if facts}


def forecasts(runs: Mapping[str, Sequence[Path]]) -> Table | None:
    """What the trainings of each run took, beside what had been expected; None if nothing was.

    `runs` are the folders of the seeds of each run: a number is the mean over the seeds that know both.
    """
    rows = []
    for run, folders in runs.items():
        plans = [read_record(folder / PLAN) for folder in folders]
        entries = [_expected(plans, key, text) for key, text in _EXPECTED.values()]
        if any(entry.detail for entry in entries):
            rows.append((Entry(run), *entries))
    if not rows:
        return None
    shown = [n for n in range(1, len(rows[0])) if any(row[n].detail for row in rows)]
    legend = "What each training took, and what some trial steps before it had led to expect."
    return Table(
        "Forecast and truth",
        ("run", *(tuple(_EXPECTED)[n - 1] for n in shown)),
        tuple((row[0], *(row[n] for n in shown)) for row in rows),
        legend,
    )


def _expected(plans: Sequence[Mapping[str, Any]], key: str, text: Callable[[float], str]) -> Entry:
    parts = [(plan.get("forecast"), plan.get("truth")) for plan in plans]
    pairs = [
        (expected[key], came[key])
        for expected, came in parts
        if isinstance(expected, dict) and isinstance(came, dict)
        if isinstance(expected.get(key), int | float) and isinstance(came.get(key), int | float)
    ]
    if not pairs:
        return Entry(UNDEFINED)
    expected, came = np.mean(pairs, axis=0).tolist()
    return Entry(text(came), f"forecast {text(expected)}")


def without_folders(value: Any) -> Any:
    """The same settings with every absolute path cut to its last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or value.startswith("~"):
            return kind(value).name
    return value


def _of_run(each: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What is to be told of a run, from what is told of each seed: one text if all agree, else one for each."""
    names = dict.fromkeys(name for facts in each for name in facts)
    told = {}
    for name in names:
        texts = [facts.get(name, _NOT_KNOWN) for facts in each]
        told[name] = texts[0] if len(set(texts)) == 1 else "; ".join(texts)
    return told


def _of_seed(folder: Path) -> dict[str, str]:
    environment, cost = read_record(folder / "environment.json"), read_record(folder / COST)
    versions = environment.get("versions")
    facts: dict[str, Any] = {
        "date": environment.get("date"),
        "commit": environment.get("commit"),
        "hardware": _hardware(environment),
        "system": environment.get("system"),
        "python": environment.get("python"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        if isinstance(versions, dict)
        else None,
        "training": _hours(cost.get("training_hours")),
        "memory": _memory(cost),
        "prediction": _prediction(folder / PREDICTIONS),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _settings(folder: Path) -> dict[str, str]:
    return {name: _text(value) for name, value in flat(without_folders(settings_of(folder))).items()}


def _hardware(environment: Mapping[str, Any]) -> str:
    gpus = [str(name) for name in environment.get("gpus") or ()]
    cores = environment.get("cpus")
    parts = [*gpus, str(environment.get("cpu") or ""), f"{cores} cores" if cores else ""]
    return ", ".join(filter(None, parts))


def _hours(hours: Any) -> str | None:
    return _time(hours) if isinstance(hours, int | float) else None


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _gib(size: float) -> str:
    return f"{size:.2f} GiB"


# Heading -> key in plan.json, and how it is told.
_EXPECTED: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "training": ("training_hours", _time),
    "memory": ("ram_gib", _gib),
    "GPU memory": ("gpu_gib", _gib),
    "disk": ("disk_gib", _gib),
}


def _memory(cost: Mapping[str, Any]) -> str:
    names = {"ram_gib": "RAM", "gpu_gib": "GPU"}
    return ", ".join(f"{title} {cost[name]:.1f} GiB" for name, title in names.items() if cost.get(name))


def _prediction(folder: Path) -> str | None:
    """Seconds for each scan, as the records beside the labels say."""
    records = [read_record(file) for file in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    seconds = [record["seconds"] for record in records if isinstance(record.get("seconds"), int | float)]
    if not seconds:
        return None
    device = {str(record.get("device")) for record in records if record.get("device")}
    return f"{np.mean(seconds):.3g} s a scan on {' and '.join(sorted(device)) or 'an unknown device'}"


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)) or "–"


def _largest(*values: Any) -> float | None:
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return max(numbers) if numbers else None
