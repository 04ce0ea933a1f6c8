"""`report`: from evaluated runs to a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labelwise.cohort.coverage import coverage
from labelwise.cohort.manifest import (
    MANIFEST_NAME,
    Manifest,
    manifest_file,
    read_case_image,
    read_case_labels,
    read_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.formats import read_labels, value_names
from labelwise.formats.stored import tells_sides
from labelwise.report.agreement import DataSets
from labelwise.report.compare import worst_cases
from labelwise.report.comparison import Comparison
from labelwise.report.figures import Picture, coverage_picture, seed_curves
from labelwise.report.overlays import CT_WINDOW, CasePicture, case_pictures
from labelwise.report.page import curves_of, write_page
from labelwise.report.plots import best_runs
from labelwise.report.viewer import ViewerCase, viewer_case
from labelwise.run.agreement import agreement_of
from labelwise.run.circumstances import circumstances, forecasts, settings_of
from labelwise.run.compare import Folds, compare, data_of, part_of, runs_by_name
from labelwise.run.cost import cost
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
    budgets: Sequence[Path | str] = (),
) -> Path:
    """Write one self-contained HTML page about evaluated runs: summary, tables, plots, cases, viewer, curves, settings.

    Settings, curves, environment and cost are those of every seed; pictures show the first seed of a run, all runs in
    the same slices. No path of a folder stands in the page.

    Arguments
        pictures        how many pictures of the worst cases there are; half as many of the best ones follow
        viewer_cases    how many cases can be looked at in the viewer, the worst first; 0 leaves the viewer out. The
                        more there are, the coarser they are, for the page stays small
        budgets         runs with more and with fewer labels, as `cost` takes them: what labels are worth stands in the
                        page too

    Errors
        ConfigError, DataError      those of `compare`, and of `cost` with `budgets`
        ResourceError               the page cannot be written
    """
    if pictures < 0 or viewer_cases < 0:
        raise ConfigError("a number of cases cannot be negative", found=min(pictures, viewer_cases))
    comparison = compare(runs, metrics=metrics, reference=reference)
    repetitions = runs_by_name(runs)
    folders = {name: [folder for folds in each for folder in folds] for name, each in repetitions.items()}
    curves: dict[str, Sequence[Picture]] = {
        name: seed_curves({part_of(folder): _events(folder) for folder in folders[name]})
        for name in curves_of(comparison)
    }
    settings = {name: settings_of(each[0]) for name, each in folders.items()}
    shown = best_runs(comparison, _SHOWN_RUNS)
    cases = Cases({name: repetitions[name][0] for name in shown})
    ordered = worst_cases(comparison)
    each = max(1, pictures // len(shown)) if pictures else 0
    worst, best = ordered[:each], ordered[each:][-(each // 2 or 1) :] if each else ()
    looked_at = [case for case in ordered if cases.readable(case)][:viewer_cases]
    write_page(
        Path(output),
        title=title,
        facts=circumstances(folders),
        comparison=comparison,
        curves=curves,
        worst=[picture for case in worst for picture in cases.pictures(case, comparison)],
        best=[picture for case in best for picture in cases.pictures(case, comparison)],
        viewer=[cases.in_viewer(case, len(looked_at)) for case in looked_at],
        oriented=all(cases.oriented(case) for case in looked_at),
        coverage=_coverage(settings),
        data_sets=_data_sets(comparison, repetitions),
        cost=cost(budgets).cost if budgets else None,
        forecast=forecasts({comparison.name(name): each for name, each in folders.items()}),
        measured_on=" and ".join(
            sorted({_data_set(folder) for each in folders.values() for folder in each} - {""})
        ),
    )
    return Path(output)


def _events(folder: Path) -> list[dict[str, Any]]:
    """What the log of a run says, or the logs of its stages."""
    logs = sorted(folder.glob("log.jsonl")) or sorted(folder.glob("stage_*/log.jsonl"))
    return [event for log in logs for event in read_log(log)]


def _data_sets(comparison: Comparison, repetitions: Mapping[str, Sequence[Folds]]) -> DataSets | None:
    """How far the data sets agree, by the best run; None unless it left out one after the other."""
    (best,) = best_runs(comparison, 1)
    try:
        found = agreement_of(best, repetitions[best])
    except DataError:  # what it learnt from is not there any more
        return None
    return found if found and len(found.rows) > 1 else None


def _coverage(settings: Mapping[str, Mapping[str, Any]]) -> Picture | None:
    """What the training cases annotate, if all runs learnt from the same manifest."""
    data = {str(table.get("data", "")) for table in settings.values()}
    manifest = _manifest(data.pop()) if len(data) == 1 else None
    if manifest is None:
        return None
    rows = [row for row in coverage(manifest, "train").rows if row.cases]
    return coverage_picture(
        {row.data_set: row.annotated for row in rows}, {row.data_set: row.cases for row in rows}
    )


def _data_set(run: Path) -> str:
    """The name of the data set that a run learnt from, without the folders around it; folds have that of their set."""
    path = data_of(run) or Path()
    path = path.parent if path.name == MANIFEST_NAME else path
    return path.parent.name if re.fullmatch(r"fold_\d+", path.name) else path.name


def _manifest(data: str) -> Manifest | None:
    """The manifest of a run; None if it is not there any more, for a report must outlive the data."""
    file = manifest_file(data)
    return read_manifest(file) if data and file.is_file() else None


class _Place(NamedTuple):
    """A case, the manifest that describes it, and what a run says of it."""

    case: Case
    manifest: Manifest
    prediction: Path


class Cases:
    """The scans of the compared cases, as far as they can still be read: a report must outlive the data."""

    def __init__(self, runs: Mapping[str, Sequence[Path]]):
        # Run -> its folder, or those of its folds, with the manifest that each learnt from.
        known = {folder: str(data_of(folder) or "") for folders in runs.values() for folder in folders}
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
        return tells_sides(self._first(case_id).case.images[0])

    def pictures(self, case_id: str, comparison: Comparison) -> list[CasePicture]:
        """One picture for each run that has predicted the case, all in the same slices; Dice is that of the picture."""
        found = self._found(case_id)
        if not found:
            return []
        case, manifest, _ = self._first(case_id)
        image, labels = read_case_image(case, manifest), read_case_labels(case, manifest).data
        row = comparison.cases.index(case_id)
        titles = {run: self._title(run, place.prediction, comparison) for run, place in found.items()}
        dice = {
            titles[run]: {
                name: float(comparison.per_seed[run, name, "dice"][0, row])
                for name in comparison.classes
                if (run, name, "dice") in comparison.per_seed
            }
            for run in found
        }
        return list(
            case_pictures(
                case.id,
                image,
                labels,
                {titles[run]: prediction for run, prediction in self._predictions(case_id).items()},
                label_space=manifest.label_space,
                dice=dice,
                annotated=case.annotated,
                window=_window(case, manifest),
                oriented=self.oriented(case_id),
            )
        )

    def _title(self, run: str, prediction: Path, comparison: Comparison) -> str:
        """The run, and which of its seeds or folds is shown."""
        single = comparison.seeds[run] == 1 and len(self.runs[run]) == 1
        return run if single else f"{run}, {part_of(prediction.parents[1])}"

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
    return CT_WINDOW if manifest.data_set_of(case).intensity == "ct" else None
