"""`evaluate`: from label files to scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from labelwise import anatomy
from labelwise.cohort.manifest import Manifest, read_case_labels
from labelwise.cohort.parts import by_part, known_in, parts_cell, require_within
from labelwise.cohort.regions import as_one
from labelwise.console import ShowProgress, silent
from labelwise.engine import Outcome, run_jobs
from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.evaluate.agreement import calibration_error
from labelwise.evaluate.cases import (
    METRICS,
    VARIANTS,
    Score,
    Summary,
    Variant,
    evaluate_case,
    summarise,
    write_scores,
)
from labelwise.evaluate.further import parts
from labelwise.evaluate.scores import NOT_ANNOTATED
from labelwise.formats import Geometry, Layout, placed_on, read_image, read_labels
from labelwise.infer.card import add_scores
from labelwise.infer.record import NOTICED, PROBABILITIES, map_paths, told_beside
from labelwise.report.compare import compare
from labelwise.report.measures import SHOWN
from labelwise.run.pairing import PREDICTIONS, SCORES, Pair, find_pairs, in_space, region_values
from labelwise.run.patients import patients_of
from labelwise.run.provenance import check_predictions, record_scores
from labelwise.types import BACKGROUND, IGNORE, Array, LabelSpace, Part, Volume

__all__ = ["EvaluationResult", "evaluate"]

CALIBRATION = "calibration_error"
REGIONS = "region_"  # how the name of the table of regions begins


@dataclass(frozen=True)
class EvaluationResult:
    """Scores per case and class, and their summary; and those of the regions that the manifest names."""

    scores: tuple[Score, ...]
    summary: Summary
    file: Path
    parts: Mapping[str, str]  # case -> the parts of its scan to which scores of some classes are confined
    regions: tuple[Score, ...] = ()

    def to_text(self) -> str:
        """Means per class and metric, with their n; of further metrics too."""
        further = dict.fromkeys(score.metric for score in self.scores if score.metric not in METRICS)
        shown = [*SHOWN["default"], *further] if further else None
        name = self.file.parent.resolve().name
        tables = compare({name: self.scores}, shown).to_text()
        confined = [
            f"\n{case}: scored only where it is annotated: {', '.join(text.split(';'))}"
            for case, text in self.parts.items()
        ]
        of_regions = ""
        if self.regions:
            of_regions = f"\n\nregions\n{compare({name: self.regions}, shown).to_text()}"
            of_regions += f"\nregions: {_region_file(self.file)}"
        return f"{tables}{''.join(confined)}\nscores: {self.file}{of_regions}"

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        facts = {"file": str(self.file), "summary": self.summary.to_json(), "parts": dict(self.parts)}
        return facts | ({"regions": summarise(self.regions).to_json()} if self.regions else {})


def evaluate(
    predictions: Path | str,
    reference: Path | str,
    output: Path | str | None = None,
    *,
    split: str = "test",
    unit: str = "mm",
    variant: str = "default",
    classes: Mapping[str, int] | None = None,
    metrics: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> EvaluationResult:
    """Compare label files with references, per case and class; classes that are not annotated do not count.

    Classes are joined by name: a model may have learnt them in another order, or more of them. Label files that do
    not name their values (of other programs) are read by `classes`, else by the manifest's value tables.

    Regions of the manifest are scored as one in the cases that know them, into a table of their own beside the output,
    ``region_scores.csv``: no mean counts a voxel twice.

    Every score says in which split its case is, and whether the model was trained on its patient or chosen by him.

    Arguments
        predictions     folder of label files (NIfTI, NRRD, DICOM-SEG, RTSTRUCT), or of a run with a folder predictions/
        reference       a manifest, of which the annotated cases of `split` count; or a folder of label files with the
                        same names
        output          CSV file; default: scores.csv beside the predictions, or in the folder of the run
        unit            mm or voxels, for distances
        variant         default, or la_official (see `labelwise.evaluate.cases`)
        classes         class name -> value in label files that do not name their values
        metrics         further metrics: "lesions", "boundary_iou", those of other packages
                        (`labelwise.evaluate.further`); or "calibration_error", of the maps of ``predict --maps
                        probabilities``

    Errors
        ConfigError     an unknown unit, variant or metric; the variant has its metrics
        DataError       a prediction is missing, what its values mean is not known, its model does not know an
                        annotated class, or prediction and reference lie on different grids; every problem is listed,
                        and no file is written; label files of two models, or not of the model of their run
    """
    if unit not in ("mm", "voxels"):
        raise ConfigError(f"unknown unit '{unit}'", expected="mm or voxels", code="unknown-name")
    if variant not in VARIANTS:
        raise ConfigError(
            f"unknown variant '{variant}'{did_you_mean(variant, VARIANTS)}",
            expected=", ".join(VARIANTS),
            code="unknown-name",
        )
    further = _further(metrics, variant)
    folder = Path(predictions)
    if (folder / PREDICTIONS).is_dir():
        folder = folder / PREDICTIONS
    target = Path(output) if output else (folder.parent if folder.name == PREDICTIONS else folder) / SCORES
    if target.is_dir():
        raise ConfigError(
            "the scores are one CSV file", file=target, found="a folder", do=f"name a file: {target / SCORES}"
        )
    stated = {value: name for name, value in classes.items()} if classes else None
    manifest, space, pairs = find_pairs(folder, Path(reference), split, stated)
    files = {pair.case: pair.prediction.file for pair in pairs}
    model = check_predictions(files)
    trained = patients_of(folder.parent) if folder.name == PREDICTIONS else {}
    pairs = [replace(pair, seen=_seen(pair, trained)) for pair in pairs]
    job = partial(
        _score, manifest=manifest, label_space=space, in_mm=unit == "mm", variant=cast(Variant, variant),
        further=further, calibration=CALIBRATION in metrics,
    )  # fmt: skip
    outcomes: list[Outcome[Pair, list[Score]]] = []
    for outcome in run_jobs(job, pairs, engine=engine, workers=workers):
        outcomes.append(outcome)
        progress("evaluate", len(outcomes), len(pairs))
    if errors := [str(outcome.error) for outcome in outcomes if outcome.error]:
        raise DataError(f"{len(errors)} of {len(pairs)} cases cannot be scored\n" + "\n".join(errors))
    by_case = {outcome.item.case: outcome.result or [] for outcome in outcomes}
    names = manifest.label_space.region_names if manifest else ()
    every = [score for pair in pairs for score in by_case[pair.case]]
    scores = tuple(score for score in every if score.class_name not in names)
    regions = tuple(score for score in every if score.class_name in names)
    write_scores(target, scores)
    record_scores(target, files, split, model)
    if regions:
        write_scores(_region_file(target), regions)
    if model is not None and target == folder.parent / SCORES:  # of a run, by its own model
        add_scores(folder.parent / "model", scores, split)
    return EvaluationResult(scores, summarise(scores), target, _parts(pairs, manifest), regions)


def _region_file(scores: Path) -> Path:
    """Where the scores of regions stand, beside those of classes."""
    return scores.with_name(f"{REGIONS}{scores.name}")


def _parts(pairs: Sequence[Pair], manifest: Manifest | None) -> dict[str, str]:
    """Case -> where its classes are annotated, of those that are annotated in a part of their scan."""
    cases = {case.id: case for case in manifest.cases} if manifest else {}
    space = manifest.label_space if manifest else None
    scored = [cases[pair.case] for pair in pairs if pair.case in cases]
    return {case.id: parts_cell(case, space) for case in scored if space and case.parts}


def _further(metrics: Sequence[str], variant: str) -> tuple[str, ...]:
    """The metrics that are functions of two masks."""
    if metrics and variant != "default":
        raise ConfigError(f"the variant {variant} has its metrics", found=", ".join(metrics))
    further = tuple(name for name in dict.fromkeys(metrics) if name != CALIBRATION)
    known = (*parts.names(), CALIBRATION)
    for name in further:
        if name not in known:
            raise ConfigError(
                f"unknown metric '{name}'{did_you_mean(name, known)}",
                expected=", ".join(known),
                code="unknown-name",
            )
        parts.find(name)
    return further


def _score(
    pair: Pair,
    manifest: Manifest | None,
    label_space: LabelSpace,
    in_mm: bool,
    variant: Variant,
    further: Sequence[str],
    calibration: bool,
) -> list[Score]:
    prediction = read_labels(pair.prediction.file, pair.prediction.layout, pair.image)
    single: Manifest | None = None
    known: list[tuple[Sequence[str], Part | None]]
    if pair.reference is not None:
        stored = read_labels(pair.reference.file, pair.reference.layout)
        reference = Volume(in_space(stored.data, pair.reference.values, label_space), stored.affine)
        known = [(pair.annotated, None)]
    else:
        assert manifest is not None
        case = next(case for case in manifest.cases if case.id == pair.case)
        single = manifest.replace_cases([case])
        reference = read_case_labels(replace(case, parts=()), manifest)
        known = [(tuple(structures), part) for structures, part in by_part(case)]
        for confined in case.parts:
            require_within(case, confined, reference.shape)
    grid = Geometry(reference.shape, reference.affine)
    prediction = placed_on(prediction, grid)
    placed = Geometry(prediction.shape, prediction.affine)
    if not grid.matches(placed):
        raise DataError(
            "prediction and reference lie on different grids",
            case=pair.case,
            file=pair.prediction.file,
            found=placed,
            expected=grid,
            do="predict this scan again from the image that belongs to the reference",
            code="grids-differ",
        )
    spacing = reference.spacing_mm if in_mm else None
    found = in_space(prediction.data, pair.prediction.values, label_space)
    of_parts: list[list[Score]] = []
    for annotated, part in known:
        truth = known_in(reference.data, part)
        scores = evaluate_case(
            pair.case, truth, found, label_space=label_space, annotated=annotated, spacing_mm=spacing,
            variant=variant, group=pair.group, further=further,
        )  # fmt: skip
        if calibration:
            of_dice = [score for score in scores if score.metric == "dice"]
            scores += [_calibration(score, pair, truth, grid, label_space) for score in of_dice]
        of_parts.append(scores)
    # Each part gives the same rows, and scores the classes that are annotated there.
    rows = zip(*of_parts, strict=True)
    scores = [next((one for one in row if one.status != "not_annotated"), row[0]) for row in rows]
    for region in single.label_space.region_names if single else ():
        assert single is not None
        whole = as_one(single, region)
        truth = (
            np.zeros_like(reference.data) if whole is None else read_case_labels(whole.cases[0], whole).data
        )
        shown = region_values(pair.prediction, region, single.label_space)
        scores += evaluate_case(
            pair.case, truth, np.isin(prediction.data, shown).astype(np.uint8),
            label_space=LabelSpace((BACKGROUND, region)), annotated=() if whole is None else (region,),
            spacing_mm=spacing, variant=variant, group=pair.group, further=further,
        )  # fmt: skip
    return [replace(score, split=pair.split, seen=pair.seen) for score in scores]


def _calibration(
    score: Score, pair: Pair, reference: Array, grid: Geometry, label_space: LabelSpace
) -> Score:
    """How far the chances of a class are from how often it is there, where it is likely or there."""
    named = replace(score, metric=CALIBRATION, unit="", value=math.nan)
    if score.status == NOT_ANNOTATED:
        return named
    folder, values = pair.prediction.file.parent, pair.prediction.values.values()
    name = next(name for name in values if anatomy.same(name, score.class_name))
    (file,) = map_paths(folder, pair.case, PROBABILITIES, (name,))
    if not file.exists():
        raise DataError(
            "there is no map of the chances of this class",
            case=pair.case,
            file=file,
            do="repeat `labelwise predict` with --maps probabilities",
        )
    image = read_image([file], Layout())
    if not grid.matches(found := Geometry(image.shape, image.affine)):
        raise DataError(
            "map and reference lie on different grids", case=pair.case, file=file, found=found, expected=grid,
            do="predict this scan again from the image that belongs to the reference", code="grids-differ",
        )  # fmt: skip
    there = reference == label_space.index(score.class_name)
    counted = (reference != IGNORE) & (there | (image.data[0] >= NOTICED))
    return replace(named, value=calibration_error(image.data[0][counted], there[counted]))


def _seen(pair: Pair, trained: Mapping[str, str]) -> str:
    """How the model has seen the patient of a case: by what its run recorded, or by what stands beside its labels."""
    return trained.get(pair.group) or str(told_beside(pair.prediction.file).get("seen", ""))
