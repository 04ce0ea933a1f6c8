"""How make_tables.py writes a Markdown table, a number with its spread, and where numbers come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from metadata import RESULTS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from labelwise import load_config
from labelwise.methods import find_method

ROOT = Path(__file__).parents[1]

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


NORMS = {_BatchNorm: "batch", _InstanceNorm: "instance", nn.GroupNorm: "group", nn.LayerNorm: "layer"}


@cache
def network_of(recipe: str, changes: str) -> str:
    """The network that a row predicts with, and its norm; `recipe` is a file name, `changes` are JSON."""
    (file,) = (ROOT / "recipes").rglob(recipe)
    wanted = {key: each for key, each in json.loads(changes).items() if re.match(r"net\b|method\.name$", key)}
    config = load_config(file, wanted)
    nets = config.nets(in_channels=1, num_classes=4)
    kind = find_method(config.method.name)
    predictor = kind(nets, kind.Config(**config.method.settings)).predictor()
    norms = {
        norm for part in predictor.modules() for kind_of, norm in NORMS.items() if isinstance(part, kind_of)
    }
    apart = f", {config.net.batch_norm_cases} cases apart" if config.net.batch_norm_cases else ""
    width = f" of width {config.net.settings['width']}" if "width" in config.net.settings else ""
    return f"`{config.net.name}`{width}, {' and '.join(sorted(norms))} norm{apart}"


def commits(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a sweep's first run, with the commits of all its runs."""
    found = dict.fromkeys(one["metadata"]["commit"] for one in loaded["runs"])
    return {**loaded["runs"][0]["metadata"], "commit": ", ".join(found)}
