"""Scores of many cases: the table on disk, and the summary over cases and classes."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from labelwise.atomic import write_text
from labelwise.documents import cell, cells, decode
from labelwise.errors import DataError, did_you_mean

NOT_ANNOTATED = "not_annotated"
STATUSES = (
    "ok",
    "both_empty",
    "reference_empty",
    "prediction_empty",
    NOT_ANNOTATED,
    "reference_incomplete",
)
FAILURES = ("reference_empty", "prediction_empty")
PRESENT = ("ok", "prediction_empty")  # the reference has the structure
_SHARES = ("dice", "jaccard", "nsd", "boundary_iou", "lesion_recall", "lesion_precision", "lesion_f1",
           "panoptic_quality", "calibration_error")  # fmt: skip
_SIZES = ("hd95", "assd", "asd", "hd95_penalised", "assd_penalised", "slice_hd", "false_lesions", "reference_volume",
          "prediction_volume")  # fmt: skip
BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    **dict.fromkeys(_SIZES, (0.0, math.inf)),
}
"""Metric -> the lowest and the highest value that it can have; others can have any."""

COLUMNS = ("case", "class", "metric", "value", "unit", "variant", "status")
# Written too; a table without them is read as one case per patient, of which nothing more is known.
ORIGIN = ("group", "split", "seen")


@dataclass(frozen=True, slots=True)  # a comparison of many runs holds millions
class Score:
    """One metric of one class in one case."""

    case: str
    class_name: str
    metric: str
    value: float  # NaN where it is undefined; what is not annotated has the volume of its prediction alone
    status: str  # one of STATUSES
    unit: str = ""  # "mm", "ml", "voxels", "at 1 mm" (the tolerance of the NSD) or none
    variant: str = "default"
    group: str = ""  # patient or centre of the case; "" if the case stands for itself
    split: str = ""  # of the case in the manifest that it was scored with; "" without a manifest
    seen: str = (
        ""  # "train" or "validation" if the model has seen this patient there; "" if not, or not known
    )

    @property
    def patient(self) -> str:
        """Whom the case belongs to: cases of one patient are no independent samples."""
        return self.group or self.case


@dataclass(frozen=True)
class ClassSummary:
    """One metric of one class over the cases in which it is defined."""

    class_name: str
    metric: str
    unit: str
    variant: str
    mean: float  # NaN without a defined value
    sd: float  # between cases (n - 1); NaN for fewer than two
    n: int  # cases with a defined value
    failures: int  # cases in which reference or prediction, not both, is empty
    excluded: Mapping[str, int]  # cases without a value, by status


@dataclass(frozen=True)
class OverallSummary:
    """One metric over all classes that a reference has: the mean of their means, so that every class counts alike.

    It is not given where one of them has no value, for means over different structures cannot be compared.
    """

    metric: str
    unit: str  # without the tolerance of the NSD, which may differ between classes
    variant: str
    mean: float  # NaN if there is no such class, or one of them has no value
    num_classes: int  # classes that a reference has
    without: tuple[str, ...] = ()  # those of them that have no value


@dataclass(frozen=True)
class Summary:
    """Mean over cases first, then over classes."""

    classes: tuple[ClassSummary, ...]
    overall: tuple[OverallSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; null stands for an undefined number."""
        rows = asdict(self)
        return {name: [_without_nan(row) for row in group] for name, group in rows.items()}


def summarise(scores: Iterable[Score]) -> Summary:
    """Mean, spread and counts of each metric: over cases for each class, then over the classes.

    Values of different units or variants are never averaged together within a class; classes with different
    tolerances of the NSD share its overall mean.

    Errors
        DataError   one case has two values of the same metric, class, unit and variant
    """
    groups: dict[tuple[str, str, str, str], dict[str, Score]] = defaultdict(dict)
    present: set[str] = set()
    for score in scores:
        if score.status in PRESENT:
            present.add(score.class_name)
        cases = groups[score.class_name, score.metric, score.unit, score.variant]
        if score.case in cases:
            raise DataError(
                f"two values of {score.metric} for class '{score.class_name}'",
                case=score.case,
                do="summarise one run at a time",
            )
        cases[score.case] = score
    classes = tuple(_class_summary(*key, list(cases.values())) for key, cases in groups.items())
    return Summary(classes, _overall(classes, present))


def write_scores(path: Path | str, scores: Iterable[Score]) -> None:
    """Write the scores as a CSV file, one row per case, class and metric, whole or not at all."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow((*COLUMNS, *ORIGIN))
    for s in scores:
        row = [s.case, s.class_name, s.metric, repr(float(s.value)), s.unit, s.variant, s.status]
        writer.writerow(cells([*row, s.group, s.split, s.seen]))
    write_text(path, table.getvalue())


def read_scores(path: Path | str, metrics: Collection[str] | None = None) -> list[Score]:
    """Read a table of `write_scores`; columns in any order, further columns are ignored.

    `metrics` keeps only the rows of these metrics; the others are not even checked.

    Errors
        DataError   no such file, no UTF-8, a missing column, a row with too few or too many cells, a value
                    that is neither finite nor nan, an unknown status, an empty name; row and column are named
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if missing := [name for name in COLUMNS if name not in header]:
            raise DataError(
                f"the score table has no column {', '.join(missing)}",
                file=f"{path}, row 1",
                found=",".join(header) or "an empty table",
                expected=",".join(COLUMNS),
            )
        places = [header.index(name) for name in COLUMNS]
        origin = {name: header.index(name) for name in ORIGIN if name in header}
        metric = header.index("metric")
        scores = []
        for row in reader:
            if len(row) != len(header):
                if not row:
                    continue
                case = row[places[0]] if len(row) > places[0] else None
                raise DataError(
                    "the row has too few or too many cells", case=case, file=f"{path}, row {reader.line_num}"
                )
            if metrics is None or row[metric] in metrics:
                cells = [_plain(row[place]) for place in places]
                known = {name: sys.intern(_plain(row[place])) for name, place in origin.items()}
                scores.append(_score(cells, known, path, reader.line_num))
        return scores
    except csv.Error as error:
        raise DataError(
            f"the score table cannot be read: {error}",
            file=f"{path}, row {reader.line_num}",
            code="unreadable",
        ) from error


def _class_summary(
    class_name: str, metric: str, unit: str, variant: str, scores: list[Score]
) -> ClassSummary:
    defined = [score for score in scores if math.isfinite(score.value) and score.status != NOT_ANNOTATED]
    values = np.array([score.value for score in defined])
    return ClassSummary(
        class_name,
        metric,
        unit,
        variant,
        mean=float(values.mean()) if values.size else math.nan,
        sd=float(values.std(ddof=1)) if values.size > 1 else math.nan,
        n=values.size,
        failures=sum(score.status in FAILURES for score in scores),
        excluded=dict(
            Counter(s.status for s in scores if not math.isfinite(s.value) or s.status == NOT_ANNOTATED)
        ),
    )


def _overall(classes: Iterable[ClassSummary], present: Collection[str]) -> tuple[OverallSummary, ...]:
    rows: dict[tuple[str, str, str], list[ClassSummary]] = defaultdict(list)
    for row in classes:
        unit = "" if row.metric == "nsd" else row.unit
        rows[row.metric, unit, row.variant] += [row] if row.class_name in present else []
    summaries = []
    for key, counted in rows.items():
        without = tuple(row.class_name for row in counted if not row.n)
        mean = float(np.mean([row.mean for row in counted])) if counted and not without else math.nan
        summaries.append(OverallSummary(*key, mean=mean, num_classes=len(counted), without=without))
    return tuple(summaries)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _plain(text: Any) -> Any:
    return cell(text) if isinstance(text, str) else text


def _read_text(path: Path) -> str:
    try:
        return decode(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            "there is no such score table", file=path, do="run the evaluation first", code="not-found"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("the score table is not UTF-8 text", file=path) from error


def _score(cells: Sequence[str], origin: Mapping[str, str], path: Path, number: int) -> Score:
    """One row, its cells in the order of COLUMNS, and what is known of its case; equal words are kept once."""
    case, class_name, metric, value, unit, variant, status = cells

    def refuse(column: str, what: str, found: str, expected: str) -> NoReturn:
        place = f"{path}, row {number}, column '{column}'"
        raise DataError(what, case=case or None, file=place, found=repr(found), expected=expected)

    for column, name in (("case", case), ("class", class_name), ("metric", metric)):
        if not name:
            refuse(column, f"the {column} is empty", name, "a name")
    if status not in STATUSES:
        refuse("status", f"unknown status{did_you_mean(status, STATUSES)}", status, ", ".join(STATUSES))
    try:
        number_read = float(value)
    except ValueError:
        refuse("value", "the value is not a number", value, "a number or nan")
    if math.isinf(number_read):
        refuse("value", "the value is infinite", value, "a number or nan")
    low, high = BOUNDS.get(metric, (-math.inf, math.inf))
    if not math.isnan(number_read) and not low <= number_read <= high:
        refuse("value", f"there is no {metric} of this value", value, f"{low:g} to {high:g}")
    words = map(sys.intern, (case, class_name, metric, status, unit, variant))
    case, class_name, metric, status, unit, variant = words
    return Score(case, class_name, metric, number_read, status, unit, variant, **origin)
