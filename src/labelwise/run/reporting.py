"""`compare` and `report`: from evaluated runs to a table and a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwise.config import read_recipe
from labelwise.data.coverage import coverage
from labelwise.data.manifest import Manifest, manifest_file, read_case_image, read_case_labels, read_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.cases import Score, read_scores
from labelwise.formats import read_labels, suffix
from labelwise.report.compare import compare as compare_scores
from labelwise.report.compare import worst_cases
from labelwise.report.comparison import Comparison
from labelwise.report.figures import Picture, coverage_picture, learning_curves
from labelwise.report.overlays import CT_WINDOW, CasePicture, case_picture
from labelwise.report.page import write_page
from labelwise.run.inference import PREDICTIONS, SCORES
from labelwise.train.record import read_log
from labelwise.types import Case

__all__ = ["compare", "report"]

SEED = re.compile(r"_seed\d+$")


def compare(runs: Sequence[Path | str], *, metrics: Sequence[str] = ("dice", "hd95")) -> Comparison:
    """Compare evaluated runs; ``NAME_seed0``, ``NAME_seed1`` ... are repetitions of one.

    The first run is the reference of the paired differences.

    Errors
        ConfigError     no run named, or runs scored by different rules
        DataError       a run without scores.csv
    """
    named = _by_name(runs)
    scores = {name: [_scores(folder) for folder in folders] for name, folders in named.items()}
    return compare_scores(scores, tuple(metrics))


def report(
    runs: Sequence[Path | str],
    output: Path | str,
    *,
    metrics: Sequence[str] = ("dice", "hd95"),
    title: str = "Comparison of runs",
    pictures: int = 6,
) -> Path:
    """Write one self-contained HTML page about evaluated runs: table, curves, worst cases first, settings.

    `pictures` cases are shown: those in which the runs are worst on average.
    """
    comparison = compare(runs, metrics=metrics)
    first_of = {name: folders[0] for name, folders in _by_name(runs).items()}
    curves: dict[str, Sequence[Picture]] = {
        name: learning_curves([event for log in _logs(folder) for event in read_log(log)])
        for name, folder in first_of.items()
        if _logs(folder)
    }
    settings = {
        name: read_recipe(folder / "run.toml") if (folder / "run.toml").exists() else {}
        for name, folder in first_of.items()
    }
    write_page(
        Path(output),
        title=title,
        facts=_facts(first_of, settings),
        comparison=comparison,
        curves=curves,
        pictures=_pictures(first_of, settings, pictures),
        coverage=_coverage(settings),
    )
    return Path(output)


def _logs(folder: Path) -> list[Path]:
    """The log of a run, or those of its stages."""
    return sorted(folder.glob("log.jsonl")) or sorted(folder.glob("stage_*/log.jsonl"))


def _coverage(settings: Mapping[str, Mapping[str, Any]]) -> Picture | None:
    """What the training cases annotate, if all runs learnt from the same manifest."""
    data = {str(table.get("data", "")) for table in settings.values()}
    manifest = _manifest(data.pop()) if len(data) == 1 else None
    if manifest is None:
        return None
    rows = [row for row in coverage(manifest, "train").rows if row.cases]
    return coverage_picture(
        {row.source: row.annotated for row in rows}, {row.source: row.cases for row in rows}
    )


def _manifest(data: str) -> Manifest | None:
    """The manifest of a run; None if it is not there any more, for a report must outlive the data."""
    file = manifest_file(data)
    return read_manifest(file) if data and file.is_file() else None


def _by_name(runs: Sequence[Path | str]) -> dict[str, list[Path]]:
    if not runs:
        raise ConfigError("no run named", do="name at least one folder of a run")
    named: dict[str, list[Path]] = {}
    folders = [Path(run).resolve() for run in runs]
    if twice := [
        folder.name for folder in folders if [other.name for other in folders].count(folder.name) > 1
    ]:
        raise ConfigError(
            f"two runs are called '{twice[0]}'",
            do="rename one of the folders, or name each run once; seeds of one run end in _seed0, _seed1, ...",
        )
    for run in map(Path, runs):
        named.setdefault(SEED.sub("", run.resolve().name), []).append(run)
    return named


def _scores(folder: Path) -> list[Score]:
    file = folder / SCORES
    if not file.exists():
        raise DataError(
            "the run has no scores", file=file, do="run `labelwise predict` and `labelwise evaluate` first"
        )
    return read_scores(file)


def _facts(runs: Mapping[str, Path], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, folder in runs.items():
        table = settings[name]
        if table.keys() >= {"method", "net", "train", "seed"}:  # else somebody has shortened it
            steps = " + ".join(str(number) for number in table["train"].get("steps", ["?"]))
            facts[name] = (
                f"{table['method']['name']}, {table['net']['name']}, {steps} steps, seed {table['seed']}"
            )
        if (folder / "run.toml").exists():
            facts[f"{name}: settings"] = str(folder / "run.toml")
    return facts


def _pictures(
    runs: Mapping[str, Path], settings: Mapping[str, Mapping[str, Any]], count: int
) -> list[CasePicture]:
    """The worst cases of all runs together, each shown for every run that has its prediction."""
    shown = []
    manifests = {name: _manifest(str(table.get("data", ""))) for name, table in settings.items()}
    scores = {name: _scores(folder) for name, folder in runs.items()}
    everything = [score for of_run in scores.values() for score in of_run]
    for case_id in worst_cases(everything, max(1, count // max(len(runs), 1))):
        for name, folder in runs.items():
            prediction = folder / PREDICTIONS / f"{case_id}.nii.gz"
            manifest = manifests[name]
            if manifest is None or not prediction.exists():
                continue
            case = next((case for case in manifest.cases if case.id == case_id), None)
            # Unknown if it was evaluated against another manifest than it was trained on.
            if case is not None and all(file.exists() for file in (*case.images, case.labels) if file):
                shown.append(_picture(case, name, manifest, prediction, scores[name]))
    return shown


def _picture(
    case: Case, run: str, manifest: Manifest, prediction: Path, scores: Sequence[Score]
) -> CasePicture:
    dice = {
        score.class_name: score.value for score in scores if score.case == case.id and score.metric == "dice"
    }
    window = CT_WINDOW if manifest.source_of(case).modality == "ct" else None
    # Arrays without a header (h5) do not tell the sides of the patient.
    oriented = suffix(case.images[0]) not in (".h5", ".hdf5")
    return case_picture(
        case.id,
        read_case_image(case, manifest),
        read_case_labels(case, manifest).data,
        read_labels(prediction).data,
        label_space=manifest.label_space,
        dice=dice,
        annotated=case.annotated,
        window=window,
        run=run,
        oriented=oriented,
    )
