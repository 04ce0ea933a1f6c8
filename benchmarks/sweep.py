"""What the sweeps over real data share: one run from recipe to scores, and the collected result.

A sweep can be stopped and repeated: finished runs are skipped, a run in the middle of its training resumes. Every
run writes ``result.json`` into its folder, and `collect` puts those that exist into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from metadata import metadata, write_result

from labelwise import console, load_config, run
from labelwise.atomic import write_json
from labelwise.data.manifest import MANIFEST_NAME
from labelwise.evaluate.scores import Score, summarise


@dataclass(frozen=True)
class Row:
    """What is trained for a row of the table."""

    recipe: Path
    manifest: str  # name of its folder
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One training of a sweep."""

    name: str  # row of the table
    recipe: Path
    data: Path
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return f"{self.name}_seed{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A table of runs over several seeds, and how its numbers come about."""

    name: str  # of the result file
    rows: Mapping[str, Row]
    variants: Mapping[str, Mapping[str, str]]  # evaluations: name -> unit and rules
    protocol: Mapping[str, Any]
    # The rows name two manifests: "complete", and this one, made of it by this mode of `simulate`.
    scarce: str
    mode: str
    settings: Mapping[str, Any]

    def main(self, description: str) -> None:
        """Read the command line, run what is not finished yet, and write the result file."""
        options = parse(description, list(self.rows))
        if not (options.work / self.scarce / MANIFEST_NAME).exists():
            run.import_data([options.source], options.work / "complete")
            run.simulate(options.work / "complete", options.work / self.scarce, self.mode, **self.settings)
        jobs = [
            Job(name, row.recipe, options.work / row.manifest, seed, row.changes)
            for seed in options.seeds
            for name, row in self.rows.items()
        ]
        for job in jobs:
            if job.name in options.only and not options.collect:
                perform(job, options.work, variants=self.variants)
        collect(self.name, jobs, options.work, self.protocol)


def parse(description: str, names: Sequence[str]) -> argparse.Namespace:
    """The options of a sweep."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--source", type=Path, required=True, help="folder of the data set, as downloaded")
    parser.add_argument("--work", type=Path, required=True, help="folder for manifests and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(names), choices=names, help="rows of the table")
    parser.add_argument("--collect", action="store_true", help="only write the result file of finished runs")
    return parser.parse_args()


def perform(job: Job, work: Path, *, variants: Mapping[str, Mapping[str, str]]) -> None:
    """Train, predict and evaluate one job; `variants` names the evaluations (unit and rules)."""
    folder = work / job.run
    if (folder / "result.json").exists():
        return
    config = load_config(job.recipe, dict(job.changes), data=str(job.data), seed=job.seed)
    with console.watch() as progress:
        start = time.perf_counter()
        trained = run.train(config, folder, progress=progress)
        seconds = time.perf_counter() - start
        if trained.interrupted:
            raise KeyboardInterrupt
        predicted = run.predict(folder, job.data, folder / "predictions", progress=progress)
        assert not predicted.failed, predicted.failed
    scores = {
        name: summarise_scores(
            run.evaluate(folder, job.data, folder / f"{name}.csv", workers=1, **rules).scores
        )
        for name, rules in variants.items()
    }
    facts = {
        "name": job.name,
        "seed": job.seed,
        "recipe": job.recipe.name,
        "changes": dict(job.changes),
        "steps": list(config.train.steps),
        "training_seconds": round(seconds, 1),
        "metadata": metadata(),
        "scores": scores,
    }
    write_json(folder / "result.json", facts)


def summarise_scores(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    """metric -> organ (and "mean over organs") -> mean over cases."""
    summary = summarise(scores).to_json()
    table: dict[str, dict[str, float | None]] = {}
    for row in summary["classes"]:
        table.setdefault(row["metric"], {})[row["class_name"]] = row["mean"]
    for row in summary["overall"]:
        table.setdefault(row["metric"], {})["mean over organs"] = row["mean"]
    return table


def collect(name: str, jobs: Sequence[Job], work: Path, protocol: Mapping[str, Any]) -> None:
    """Write benchmarks/results/NAME.json from the runs that are finished, with mean and spread over seeds."""
    finished = [work / job.run / "result.json" for job in jobs]
    runs = [json.loads(file.read_text()) for file in finished if file.exists()]
    rows: dict[str, Any] = {}
    for row in dict.fromkeys(one["name"] for one in runs):
        same = [one["scores"] for one in runs if one["name"] == row]
        rows[row] = {
            variant: {
                metric: spread([scores[variant][metric]["mean over organs"] for scores in same])
                for metric in same[0][variant]
            }
            for variant in same[0]
        }
    write_result(name, {"protocol": dict(protocol), "rows": rows, "runs": runs})


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, of the values that are defined."""
    defined = [value for value in values if value is not None]
    return {
        "mean": mean(defined) if defined else None,
        "sd_over_seeds": stdev(defined) if len(defined) > 1 else None,
        "seeds": len(defined),
    }
