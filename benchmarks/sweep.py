"""What the sweeps over real data share: one run from recipe to scores, and the collected result.

A sweep can be stopped and repeated: finished runs are skipped, a run in the middle of its training resumes. Every
run writes ``result.json`` into its folder, and `collect` puts those that exist into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from metadata import RESULTS, metadata, write_result

from labelwise import console, load_config, run
from labelwise.atomic import write_json
from labelwise.cohort.hide import Mode
from labelwise.cohort.manifest import MANIFEST_NAME, Manifest
from labelwise.console import ShowProgress
from labelwise.evaluate.scores import Score, summarise
from labelwise.run.train import replace_tuples
from labelwise.run.trial import Trial, perform_all, score_trial, train_trial
from labelwise.settings import OLDER_NAMES
from labelwise.train.record import read_log

MEAN = "mean over organs"


@dataclass(frozen=True)
class Row:
    """What is trained for a row of the table."""

    recipe: Path
    manifest: str  # name of its folder
    changes: Mapping[str, Any] = field(default_factory=dict)
    classifiers: tuple[str, ...] = ()  # each gets a row of its own, from the same training
    after: str = ""  # the row, of the same seed, whose model it starts from: it must stand before

    def with_changes(self, more: Mapping[str, Any]) -> Row:
        """The same row with other settings."""
        return replace(self, changes={**self.changes, **more})


@dataclass(frozen=True)
class Job:
    """One training of a sweep."""

    name: str  # row of the table
    row: Row
    seed: int
    data: Path
    split: str
    suffix: str = ""  # settings that are tried

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return f"{self.name}{self.suffix}_seed{self.seed}"

    @property
    def start(self) -> str:
        """Name of the folder of the run that it starts from."""
        return f"{self.row.after}{self.suffix}_seed{self.seed}" if self.row.after else ""

    @property
    def names(self) -> list[str]:
        """The rows of the table that its training fills."""
        return [f"{self.name}, {classifier}" for classifier in self.row.classifiers] or [self.name]


@dataclass(frozen=True)
class Work(Trial):
    """What is to be done for a job, by the parts of `labelwise sweep`."""

    job: Job = field(kw_only=True)
    variants: Mapping[str, Mapping[str, Any]] = field(kw_only=True)  # evaluations: name -> unit and rules
    prediction: Mapping[str, Any] = field(kw_only=True)  # its settings

    @classmethod
    def of(
        cls, job: Job, work: Path, variants: Mapping[str, Mapping[str, Any]], prediction: Mapping[str, Any]
    ) -> Work:
        """The work of a job, with its recipe read."""
        folder, start = work / job.run, job.start
        config = load_config(
            job.row.recipe,
            dict(job.row.changes),
            data=str(job.data),
            seed=job.seed,
            **({"warm_start": str(work / start)} if start else {}),
        )
        return cls(
            job.run, config, folder, job.data, job.split, job=job, variants=variants, prediction=prediction
        )

    @property
    def result(self) -> Path:
        """The file that a finished run has."""
        return self.folder / "result.json"

    @property
    def is_done(self) -> bool:
        """Whether it was trained, and scored with these settings."""
        if not self.result.exists():
            return False
        facts = json.loads(self.result.read_text(encoding="utf-8"))
        return bool(facts.get("prediction", {}) == dict(self.prediction))


@dataclass(frozen=True)
class Sweep:
    """A table of runs over several seeds, and how its numbers come about."""

    name: str  # of the result file
    rows: Mapping[str, Row]
    variants: Mapping[str, Mapping[str, Any]]  # evaluations: name -> unit and rules
    protocol: Mapping[str, Any]
    # The rows name manifests: "complete", or one that a mode of `simulate` makes of it: name -> mode and settings.
    scarce: Mapping[str, tuple[str | Mode, Mapping[str, Any]]]
    make_complete: Callable[[Path], object] | None = None  # for data that is made, not found in --source
    import_options: Mapping[str, Any] = field(default_factory=dict)  # of the importer of --source
    # Facts of the complete data, for its result file.
    describe: Callable[[Path], Mapping[str, Any]] | None = None
    prediction: Mapping[str, Any] = field(default_factory=dict)  # inference settings of every row
    held_out: int = 0  # training patients that --tune sets aside, where the data has no validation of its own

    def main(self, description: str) -> None:
        """Read the command line, run what is not finished yet, and write the result file."""
        options = self._options(description)
        work = options.work / f"tune_{options.held_out}" if options.tune else options.work
        self._make_manifests(work, options)
        rows = {name: row.with_changes(settings_of(options.set)) for name, row in self.rows.items()}
        suffix = "".join(f"_{setting}" for setting in options.set)
        jobs = [
            Job(name, row, seed, work / row.manifest, "validation" if options.tune else "test", suffix)
            for seed in options.seeds
            for name, row in rows.items()
        ]
        earlier = [] if options.tune or options.again else earlier_runs(self.name, jobs, self.prediction)
        known = {(one["name"], one["seed"]) for one in earlier}
        wanted = [job for job in jobs if job.name in options.only and not options.collect]
        waiting = [job for job in wanted if not all((name, job.seed) in known for name in job.names)]
        works = [Work.of(job, work, self.variants, self.prediction) for job in waiting]
        failed = perform_works(works, work, workers=options.workers)
        if options.tune:
            collect_tries(self.name, options.work)
        else:
            facts = self.describe(work / "complete") if self.describe else {}
            collect(self.name, jobs, work, {**self.protocol, **facts}, earlier)
        if failed:
            raise SystemExit("\n".join(f"failed: {name}\n{text}" for name, text in failed.items()))

    def _make_manifests(self, work: Path, options: argparse.Namespace) -> None:
        held_out = options.held_out if options.tune else 0
        complete = work / ("all_patients" if held_out else "complete")
        if not (complete / MANIFEST_NAME).exists():
            if self.make_complete:
                self.make_complete(complete)
            else:
                run.import_data([options.source], complete, **self.import_options)
        scarce = {**self.scarce, **({"complete": (HideNothing(), {})} if held_out else {})}
        for name, (mode, settings) in scarce.items():
            if not (work / name / MANIFEST_NAME).exists():
                run.simulate(complete, work / name, mode, held_out=held_out, **settings)

    def _options(self, description: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=description)
        if self.make_complete is None:
            parser.add_argument(
                "--source", type=Path, required=True, help="folder of the data set, as downloaded"
            )
        parser.add_argument("--work", type=Path, required=True, help="folder for manifests and runs")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        names = list(self.rows)
        parser.add_argument("--only", nargs="+", default=names, choices=names, help="rows of the table")
        parser.add_argument(
            "--collect", action="store_true", help="only write the result file of finished runs"
        )
        again = "repeat runs that the result file holds already"
        parser.add_argument("--again", action="store_true", help=again)
        tune = "score validation patients instead, to choose settings: writes NAME_tuning.json"
        parser.add_argument("--tune", action="store_true", help=tune)
        aside = "training patients that --tune sets aside, where the data has no validation of its own"
        parser.add_argument("--held-out", type=int, default=self.held_out, help=aside)
        trial = "a setting to try, with --tune: train.optimizer.rate=1e-3"
        parser.add_argument("--set", action="append", default=[], help=trial)
        parser.add_argument(
            "--workers", type=int, default=1, help="runs at a time; their times are then longer"
        )
        options = parser.parse_args()
        if options.set and not options.tune:
            parser.error("--set needs --tune: what the result file holds is decided by the script")
        return options


class HideNothing:
    """The mode of `simulate` that leaves all labels."""

    def apply(self, manifest: Manifest) -> Manifest:
        """The manifest itself."""
        return manifest


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1"]`` -> ``{"a.b": 1}``."""
    return {key: json.loads(value) for key, _, value in (word.partition("=") for word in words)}


def perform_works(works: Sequence[Work], folder: Path, *, workers: int) -> dict[str, str]:
    """Do what is left of the work; run -> message of those that failed."""
    failed = {}
    waiting = [work for work in works if not work.is_done]
    with console.watch() as progress:

        def of(name: str) -> ShowProgress:
            return progress

        for outcome in perform_all(waiting, perform, folder=folder, workers=workers, progress=of):
            if outcome.error is not None:
                failed[outcome.item.name] = str(outcome.error)
            elif not outcome.result:
                raise KeyboardInterrupt
            else:
                print(told(outcome.item.folder))
    return failed


def perform(work: Work, *, progress: ShowProgress) -> bool:
    """Train, predict and evaluate one job; False if it was interrupted.

    A finished job is not trained again; if it was scored with other settings of the prediction, it is scored again.
    """
    if work.result.exists():
        facts = json.loads(work.result.read_text(encoding="utf-8")) | {"scored": metadata()}
    elif (seconds := train_trial(work, progress)) is None:
        return False
    else:
        facts = facts_of(work, seconds)
    facts["prediction"] = dict(work.prediction)
    if classifiers := work.job.row.classifiers:
        facts["scores_of_classifiers"] = {name: scored(work, progress, name) for name in classifiers}
    else:
        facts["scores"] = scored(work, progress)
    write_json(work.result, facts)
    return True


def facts_of(work: Work, seconds: float) -> dict[str, Any]:
    """What the result says of the training."""
    job = work.job
    return {
        "name": job.name,
        "seed": job.seed,
        "recipe": job.row.recipe.name,
        "changes": dict(job.row.changes),
        "steps": list(work.config.train.steps),
        "training_seconds": round(seconds, 1),
        "metadata": metadata(),
    }


def told(folder: Path) -> str:
    """The Dice of a finished run, one line for each row that it fills."""
    lines = []
    for one in by_classifier(json.loads((folder / "result.json").read_text(encoding="utf-8"))):
        dice = {name: table["dice"][MEAN] for name, table in one["scores"].items()}
        lines.append(f"{folder.name}  {one['name']}  Dice {dice}")
    return "\n".join(lines)


def scored(work: Work, progress: ShowProgress, classifier: str | None = None) -> dict[str, Any]:
    """Predict the scans of the job's split, and what each evaluation says of them."""
    target = work.folder / (f"predictions_{classifier}" if classifier else "predictions")
    tables = {target / f"{name}.csv": {"workers": 1, **rules} for name, rules in work.variants.items()}
    found = score_trial(
        work,
        target,
        tables,
        classifier=classifier,
        settings=work.prediction,
        overwrite=True,
        progress=progress,
    )
    return {file.stem: summarise_scores(scores) for file, scores in found.items()}


def summarise_scores(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    """metric -> organ (and "mean over organs") -> mean over cases."""
    summary = summarise(scores).to_json()
    table: dict[str, dict[str, float | None]] = {}
    for row in summary["classes"]:
        table.setdefault(row["metric"], {})[row["class_name"]] = row["mean"]
    for row in summary["overall"]:
        table.setdefault(row["metric"], {})[MEAN] = row["mean"]
    return table


def by_present_names(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a row, of the method too, under the names that they have now."""
    return {".".join(OLDER_NAMES.get(part, part) for part in key.split(".")): changes[key] for key in changes}


def earlier_runs(name: str, jobs: Sequence[Job], prediction: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs of the present result file that these jobs would only repeat: a sweep can go on on another machine."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return []
    same = {
        (row, job.seed): {"recipe": job.row.recipe.name, "changes": replace_tuples(dict(job.row.changes))}
        for job in jobs
        for row in job.names
    }
    return [
        one
        for one in json.loads(file.read_text(encoding="utf-8"))["runs"]
        if one.get("prediction", {}) == dict(prediction)
        and same.get((one["name"], one["seed"]))
        == {"recipe": one["recipe"], "changes": by_present_names(one["changes"])}
    ]


def collect(
    name: str, jobs: Sequence[Job], work: Path, protocol: Mapping[str, Any], earlier: Sequence[dict[str, Any]]
) -> None:
    """Write benchmarks/results/NAME.json from the runs that are finished, with mean and spread over seeds."""
    finished = [work / job.run / "result.json" for job in jobs]
    trained = [json.loads(file.read_text()) for file in finished if file.exists()]
    found = {(one["name"], one["seed"]): one for one in earlier}
    found |= {(one["name"], one["seed"]): one for run in trained for one in by_classifier(run)}
    ordered = [(row, job.seed) for job in jobs for row in job.names]
    runs = [found[key] for key in ordered if key in found]
    rows: dict[str, Any] = {}
    for row in dict.fromkeys(one["name"] for one in runs):
        same = [one["scores"] for one in runs if one["name"] == row]
        rows[row] = {
            variant: {
                metric: {
                    **spread([scores[variant][metric][MEAN] for scores in same]),
                    "organs": {
                        organ: spread([scores[variant][metric][organ] for scores in same])
                        for organ in same[0][variant][metric]
                        if organ != MEAN
                    },
                }
                for metric in same[0][variant]
            }
            for variant in same[0]
        }
    write_result(name, {"protocol": dict(protocol), "rows": rows, "runs": runs})


def collect_tries(name: str, work: Path) -> None:
    """Write benchmarks/results/NAME_tuning.json: every setting that was tried, and its Dice on validation patients."""
    tries: dict[str, dict[str, Any]] = {}
    for file in sorted(work.glob("tune_*/*/result.json")):
        held_out = int(file.parents[1].name.removeprefix("tune_"))
        run = json.loads(file.read_text(encoding="utf-8"))
        changes = {
            key: Path(value).name if key == "start_from" else value for key, value in run["changes"].items()
        }
        changes |= {f"inference.{key}": value for key, value in run.get("prediction", {}).items()}
        one = {key: run[key] for key in ("name", "seed", "steps")} | {
            "changes": changes,
            "held_out": held_out,
        }
        tries[json.dumps(one)] = one | {
            "dice": {each["name"]: each["scores"]["scores"]["dice"][MEAN] for each in by_classifier(run)},
            "volume_difference": {
                each["name"]: each["scores"]["scores"].get("volume_difference", {})
                for each in by_classifier(run)
            },
            **curve_of(file.parent),
            "commit": run["metadata"]["commit"],
        }
    write_result(f"{name}_tuning", {"tries": list(tries.values())})


def curve_of(folder: Path) -> dict[str, list[list[float]]]:
    """The validations of a training, as steps and their mean Dice; nothing if there was only the last one."""
    events = [event for event in read_log(folder / "log.jsonl") if event["event"] == "validation"]
    curve = [[event["step"], round(event["score"], 4)] for event in events if event["score"] is not None]
    return {"curve": curve} if len(curve) > 1 else {}


def by_classifier(trained: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each classifier that a run was scored with."""
    rest = {key: value for key, value in trained.items() if key != "scores_of_classifiers"}
    if "scores" in rest:
        return [rest]
    return [
        {**rest, "name": f"{rest['name']}, {classifier}", "scores": scores}
        for classifier, scores in trained["scores_of_classifiers"].items()
    ]


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, of the values that are defined."""
    defined = [value for value in values if value is not None]
    return {
        "mean": mean(defined) if defined else None,
        "sd_over_seeds": stdev(defined) if len(defined) > 1 else None,
        "seeds": len(defined),
    }
