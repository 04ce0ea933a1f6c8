"""`report`: from evaluated runs to a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labelwise.cohort.coverage import coverage
from labelwise.cohort.manifest import (
    Manifest,
    manifest_file,
    read_case_image,
    read_case_labels,
    read_manifest,
)
from labelwise.config import read_recipe
from labelwise.errors import ConfigError
from labelwise.formats import read_labels, suffix, value_names
from labelwise.report.compare import worst_cases
from labelwise.report.comparison import Comparison
from labelwise.report.figures import Picture, coverage_picture, learning_curves
from labelwise.report.overlays import CT_WINDOW, CasePicture, case_picture
from labelwise.report.page import curves_of, write_page
from labelwise.report.plots import best_runs
from labelwise.report.viewer import ViewerCase, viewer_case
from labelwise.run.compare import compare, runs_by_name
from labelwise.run.pairing import PREDICTIONS, in_space
from labelwise.train.record import read_log
from labelwise.types import Array, Case

__all__ = ["report"]

_SHOWN_RUNS = 4  # runs in the pictures and in the viewer: the best ones


def report(
    runs: Sequence[Path | str],
    output: Path | str,
    *,
    metrics: Sequence[str] = ("dice", "hd95"),
    reference: str | None = None,
    title: str = "Comparison of runs",
    pictures: int = 6,
    viewer_cases: int = 4,
) -> Path:
    """Write one self-contained HTML page about evaluated runs: summary, tables, plots, cases, viewer, curves, settings.

    Arguments
        pictures        how many pictures of the worst cases there are; half as many of the best ones follow
        viewer_cases    how many cases can be looked at in the viewer, the worst first; 0 leaves the viewer out. The
                        more there are, the coarser they are, for the page stays small

    Errors
        ConfigError, DataError      those of `compare`
        ResourceError               the page cannot be written
    """
    if pictures < 0 or viewer_cases < 0:
        raise ConfigError("a number of cases cannot be negative", found=min(pictures, viewer_cases))
    comparison = compare(runs, metrics=metrics, reference=reference)
    folds_of = {name: repetitions[0] for name, repetitions in runs_by_name(runs).items()}
    first_of = {name: folds[0] for name, folds in folds_of.items()}
    curves: dict[str, Sequence[Picture]] = {
        name: learning_curves([event for log in _logs(first_of[name]) for event in read_log(log)])
        for name in curves_of(comparison)
        if _logs(first_of[name])
    }
    settings = {
        name: read_recipe(folder / "run.toml") if (folder / "run.toml").exists() else {}
        for name, folder in first_of.items()
    }
    shown = best_runs(comparison, _SHOWN_RUNS)
    cases = Cases({name: folds_of[name] for name in shown})
    ordered = worst_cases(comparison)
    each = max(1, pictures // len(shown)) if pictures else 0
    worst, best = ordered[:each], ordered[each:][-(each // 2 or 1) :] if each else ()
    looked_at = [case for case in ordered if cases.readable(case)][:viewer_cases]
    write_page(
        Path(output),
        title=title,
        facts=_facts(first_of, settings),
        comparison=comparison,
        curves=curves,
        worst=[picture for case in worst for picture in cases.pictures(case, comparison)],
        best=[picture for case in best for picture in cases.pictures(case, comparison)],
        viewer=[cases.in_viewer(case, len(looked_at)) for case in looked_at],
        oriented=all(cases.oriented(case) for case in looked_at),
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


def _data(run: Path) -> str:
    """The folder of the manifest that a run learnt from; empty if it does not say."""
    record = run / "run.toml"
    return str(read_recipe(record).get("data", "")) if record.exists() else ""


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


class _Place(NamedTuple):
    """A case, the manifest that describes it, and what a run says of it."""

    case: Case
    manifest: Manifest
    prediction: Path


class Cases:
    """The scans of the compared cases, as far as they can still be read: a report must outlive the data."""

    def __init__(self, runs: Mapping[str, Sequence[Path]]):
        # Run -> its folder, or those of its folds, with the manifest that each learnt from.
        known = {folder: _data(folder) for folders in runs.values() for folder in folders}
        manifests = {data: _manifest(data) for data in known.values()}
        self.runs = {
            name: [(folder, manifest) for folder in folders if (manifest := manifests[known[folder]])]
            for name, folders in runs.items()
        }

    def readable(self, case_id: str) -> bool:
        """Whether the scan and a prediction of it are there."""
        return bool(self._found(case_id))

    def oriented(self, case_id: str) -> bool:
        """Whether the files tell the sides of the patient: arrays without a header (h5) do not."""
        case = self._first(case_id).case
        return suffix(case.images[0]) not in (".h5", ".hdf5")

    def pictures(self, case_id: str, comparison: Comparison) -> list[CasePicture]:
        """One picture for each run that has predicted the case."""
        found = self._found(case_id)
        if not found:
            return []
        case, manifest, _ = self._first(case_id)
        image, labels = read_case_image(case, manifest), read_case_labels(case, manifest).data
        place = comparison.cases.index(case_id)
        return [
            case_picture(
                case.id,
                image,
                labels,
                prediction,
                label_space=manifest.label_space,
                dice={
                    name: float(comparison.per_case[run, name, "dice"][place])
                    for name in comparison.classes
                    if (run, name, "dice") in comparison.per_case
                },
                annotated=case.annotated,
                window=_window(case, manifest),
                run=run,
                oriented=self.oriented(case_id),
            )
            for run, prediction in self._predictions(case_id).items()
        ]

    def in_viewer(self, case_id: str, share: int) -> ViewerCase:
        """The case for the viewer, with the predictions of all runs that have one."""
        case, manifest, _ = self._first(case_id)
        return viewer_case(
            case.id,
            read_case_image(case, manifest),
            read_case_labels(case, manifest).data,
            self._predictions(case_id),
            label_space=manifest.label_space,
            annotated=case.annotated,
            window=_window(case, manifest),
            share=share,
        )

    def _first(self, case_id: str) -> _Place:
        return next(iter(self._found(case_id).values()))

    def _found(self, case_id: str) -> dict[str, _Place]:
        """Run -> where it has the case, for the runs whose prediction, scan and labels exist."""
        found = {}
        for name, folders in self.runs.items():
            for folder, manifest in folders:
                file = folder / PREDICTIONS / f"{case_id}.nii.gz"
                if not file.exists():
                    continue
                case = next((case for case in manifest.cases if case.id == case_id), None)
                # Unknown if it was evaluated against another manifest than it was trained on.
                if case is not None and all(file.exists() for file in (*case.images, case.labels) if file):
                    found[name] = _Place(case, manifest, file)
                    break
        return found

    def _predictions(self, case_id: str) -> dict[str, Array]:
        """Run -> prediction with the indices of the first manifest's classes."""
        space = self._first(case_id).manifest.label_space
        found = {}
        for name, place in self._found(case_id).items():
            values = value_names(place.prediction) or dict(enumerate(place.manifest.label_space.names))
            found[name] = in_space(read_labels(place.prediction).data, values, space)
        return found


def _window(case: Case, manifest: Manifest) -> tuple[float, float] | None:
    return CT_WINDOW if manifest.source_of(case).modality == "ct" else None
