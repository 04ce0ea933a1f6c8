"""What is annotated where: the first table to look at in a partially annotated cohort."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from labelwise.cohort.manifest import Manifest
from labelwise.documents import cells

State = Literal["present", "absent", "unreadable", "not annotated", "unlabelled"]
CASE_COLUMNS = ("case", "source", "split", "class", "annotated", "present", "voxels")


@dataclass(frozen=True)
class CoverageRow:
    """The cases of one source."""

    source: str
    cases: int
    unlabelled: int  # cases in which nothing is annotated
    annotated: Mapping[str, int]  # organ -> number of cases in which it is annotated


@dataclass(frozen=True)
class Coverage:
    """Numbers of annotated cases by data set and class."""

    organs: tuple[str, ...]
    rows: tuple[CoverageRow, ...]

    @property
    def total(self) -> CoverageRow:
        """All data sets together."""
        return CoverageRow(
            "total",
            sum(row.cases for row in self.rows),
            sum(row.unlabelled for row in self.rows),
            {organ: sum(row.annotated[organ] for row in self.rows) for organ in self.organs},
        )

    def to_json(self) -> dict[str, object]:
        """The table as a JSON object."""
        return asdict(self)

    def text(self) -> str:
        """The table in columns of equal width, the total in the last row if there are several sources."""
        rows = [*self.rows, self.total] if len(self.rows) > 1 else self.rows
        table = [["data set", "cases", *self.organs, "unlabelled"]]
        for row in rows:
            counts = [row.cases, *(row.annotated[organ] for organ in self.organs), row.unlabelled]
            table.append([row.source, *map(str, counts)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table
        )


def coverage(manifest: Manifest, split: str | None = None) -> Coverage:
    """Count the cases in which each class is annotated, by data set; in one split, or in all cases."""
    organs = manifest.label_space.organs
    rows = []
    for source in manifest.sources:
        cases = [case for case in manifest.cases if case.source == source and split in (None, case.split)]
        if not cases:
            continue
        counts = {organ: sum(organ in case.annotated for case in cases) for organ in organs}
        rows.append(CoverageRow(source, len(cases), sum(not case.annotated for case in cases), counts))
    return Coverage(organs, tuple(rows))


def annotation_cost(manifest: Manifest) -> int:
    """Number of organ masks that the training cases have: pairs of a case and an organ annotated in it."""
    return sum(len(case.annotated) for case in manifest.split("train"))


def never_annotated(manifest: Manifest) -> tuple[str, ...]:
    """The organs that no training case annotates, so that nothing can learn them."""
    known = frozenset[str]().union(*(case.annotated for case in manifest.split("train")))
    return tuple(organ for organ in manifest.label_space.organs if organ not in known)


@dataclass(frozen=True)
class CoveredCase:
    """What is annotated in one case, and what of it is there."""

    case: str
    source: str
    split: str
    annotated: frozenset[str]
    voxels: Mapping[str, int]  # of annotated organs; empty if the labels could not be read

    def state(self, organ: str) -> State:
        """What the case says about an organ."""
        if not self.annotated:
            return "unlabelled"
        if organ not in self.annotated:
            return "not annotated"
        if organ not in self.voxels:
            return "unreadable"
        return "present" if self.voxels[organ] else "absent"


@dataclass(frozen=True)
class CaseCoverage:
    """The matrix of cases and classes; cases in the order of the manifest."""

    organs: tuple[str, ...]
    cases: tuple[CoveredCase, ...]

    def by_source(self) -> dict[str, list[CoveredCase]]:
        """Cases by data set, data sets in the order of their first case."""
        sources: dict[str, list[CoveredCase]] = {}
        for case in self.cases:
            sources.setdefault(case.source, []).append(case)
        return sources

    def csv(self) -> str:
        """One row for each case and class; `present` and `voxels` are empty where nobody looked."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CASE_COLUMNS)
        writer.writerows(map(cells, self._rows()))
        return text.getvalue()

    def _rows(self) -> Iterator[tuple[str | int, ...]]:
        for case in self.cases:
            for organ in self.organs:
                state = case.state(organ)
                annotated = "no" if state in ("not annotated", "unlabelled") else "yes"
                present = {"present": "yes", "absent": "no"}.get(state, "")
                voxels = case.voxels[organ] if present else ""
                yield case.case, case.source, case.split, organ, annotated, present, voxels


def case_coverage(manifest: Manifest, voxels: Mapping[str, Mapping[str, int]]) -> CaseCoverage:
    """The matrix of a cohort, from the voxels of each annotated organ by case id."""
    cases = (
        CoveredCase(case.id, case.source, case.split, case.annotated, voxels.get(case.id, {}))
        for case in manifest.cases
    )
    return CaseCoverage(manifest.label_space.organs, tuple(cases))
