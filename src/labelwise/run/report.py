"""`report`: from evaluated runs to a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwise.cohort.coverage import coverage
from labelwise.cohort.manifest import (
    Manifest,
    manifest_file,
    read_case_image,
    read_case_labels,
    read_manifest,
)
from labelwise.config import read_recipe
from labelwise.evaluate.cases import Score
from labelwise.formats import read_labels, suffix
from labelwise.report.compare import worst_cases
from labelwise.report.figures import Picture, coverage_picture, learning_curves
from labelwise.report.overlays import CT_WINDOW, CasePicture, case_picture
from labelwise.report.page import write_page
from labelwise.run.compare import compare, runs_by_name, scores_of
from labelwise.run.pairing import PREDICTIONS
from labelwise.train.record import read_log
from labelwise.types import Case

__all__ = ["report"]


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
    first_of = {name: folders[0] for name, folders in runs_by_name(runs).items()}
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
    scores = {name: scores_of(folder) for name, folder in runs.items()}
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
