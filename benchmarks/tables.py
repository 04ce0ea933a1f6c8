"""How make_tables.py writes a Markdown table, a number with its spread, and where numbers come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from metadata import RESULTS

HEADINGS = {"dice": "Dice [%]", "jaccard": "Jaccard [%]", "hd95": "HD95", "asd": "ASD", "assd": "ASSD"}


@cache
def result(name: str) -> dict[str, Any]:
    """One result file; many tables read the same one."""
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"


def source(name: str, facts: Mapping[str, Any]) -> str:
    """Where the numbers come from."""
    return (
        f"\nFrom `benchmarks/results/{name}.json`: commit {facts['commit']}, {facts['date']}, {facts['cpu']}, "
        f"{facts['threads']} of {facts['cores']} cores, torch {facts['torch']}.\n"
    )


def value(cell: Mapping[str, Any] | None, metric: str) -> str:
    """Mean, and spread over seeds if there are several."""
    if not cell or cell["mean"] is None:
        return "–"
    scale, digits = (100, 1) if metric in ("dice", "jaccard") else (1, 2)
    spread = cell["sd_over_seeds"]
    return f"{scale * cell['mean']:.{digits}f}" + (
        f" ± {scale * spread:.{digits}f}" if spread is not None else ""
    )


def with_seeds(cell: Mapping[str, Any] | None, metric: str = "dice") -> str:
    """Mean and spread, and of how many seeds."""
    return f"{value(cell, metric)} ({cell['seeds']})" if cell else "–"


def words(row: str) -> str:
    """The name of a row as the tables write it."""
    return row.replace("_apart", ", apart").replace("_", " ")


def commits(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a sweep's first run, with the commits of all its runs."""
    found = dict.fromkeys(one["metadata"]["commit"] for one in loaded["runs"])
    return {**loaded["runs"][0]["metadata"], "commit": ", ".join(found)}
