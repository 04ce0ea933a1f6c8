"""A comparison for programs: CSV and JSON, with values as they were scored."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from labelwise.documents import cells
from labelwise.report.measures import or_none

if TYPE_CHECKING:
    from labelwise.report.comparison import Comparison

Record = dict[str, object]


def csv_text(comparison: Comparison) -> str:
    """One line for each run, row and metric, then one for each run and size of a structure (column `size`)."""
    rows, sizes = list(_rows(comparison)), list(_sizes(comparison))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    for record in (*rows, *sizes):
        writer.writerow(dict(zip(record, cells(map(_csv_field, record.values())), strict=True)))
    return text.getvalue()


def json_text(comparison: Comparison) -> str:
    """The rows of the CSV, and what the other tables and the sentences say; an undefined value is null."""
    told: dict[str, Any] = {
        "answer": comparison.answer(),
        "description": comparison.description(),
        "definitions": dict(comparison.definitions()),
        "variant": comparison.variant,
        "reference": comparison.reference,
        "seeds": dict(comparison.seeds),
        "cases": list(comparison.cases),
        "patients": list(comparison.patients),
        "cautions": list(comparison.cautions()),
        "splits": {run: list(splits) for run, splits in comparison.splits.items()},
        "ranks": {metric: [one._asdict() for one in ranks] for metric, ranks in comparison.ranks.items()},
        "values": list(_rows(comparison)),
        "sizes": list(_sizes(comparison)),
        "structures_found": [
            {"run": run, "class": name, **found._asdict()}
            for (run, name), found in comparison.presence.items()
        ],
        "volumes": [
            {"run": run, "class": name, "unit": comparison.volume_measure.unit}
            | {key: or_none(value) for key, value in found._asdict().items()}
            for (run, name), found in comparison.volumes.items()
        ],
    }
    return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(comparison: Comparison) -> Iterator[Record]:
    for (run, row, name), cell in comparison.cells.items():
        found = comparison.difference((run, row, name))
        unit = next(m.unit for m in comparison.measures if m.name == name)
        yield {
            "run": run,
            "class": row,
            "metric": name,
            "unit": "" if unit == "%" else unit,
            "mean": or_none(cell.mean),
            "sd": or_none(cell.sd),
            "n": cell.n,
            "seed_means": [or_none(value) for value in cell.seed_means],
            "seed_sd": or_none(cell.seed_sd),
            "low": or_none(cell.low),
            "high": or_none(cell.high),
            "patients": cell.patients,
            "best": (run, row, name) in comparison.best,
            "excluded": dict(cell.excluded),
            "difference": or_none(found.mean),
            "difference_low": or_none(found.low),
            "difference_high": or_none(found.high),
            "p": or_none(found.p),
            "p_holm": or_none(found.p_holm),
            "n_paired": found.n,
            "patients_paired": found.patients,
            "split": ",".join(comparison.splits[run]),
            "saw_test_patients": len(comparison.seen.get(run, ())),
            "size": "",
        }


def _sizes(comparison: Comparison) -> Iterator[Record]:
    """The first metric by the size of the structures; `n` counts the cases with a value."""
    if comparison.sizes is None:
        return
    m = comparison.measures[0]
    for one in comparison.sizes.strata:
        for run, cell in one.runs.items():
            yield {
                "run": run,
                "class": one.class_name,
                "size": f"{one.name}, {one.low:.6g} to {one.high:.6g} {comparison.sizes.unit}",
                "metric": m.name,
                "unit": "" if m.unit == "%" else m.unit,
                "mean": or_none(cell.mean),
                "n": cell.n,
                "low": or_none(cell.low),
                "high": or_none(cell.high),
                "patients": cell.patients,
                "split": ",".join(comparison.splits[run]),
                "saw_test_patients": len(comparison.seen.get(run, ())),
            }


def _csv_field(value: object) -> object:
    if isinstance(value, dict):
        return ";".join(f"{status}={n}" for status, n in value.items())
    if isinstance(value, list):
        return ";".join("" if item is None else repr(item) for item in value)
    return value
