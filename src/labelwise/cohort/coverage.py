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
CASE_COLUMNS = ("case", "data_set", "split", "class", "annotated", "present", "voxels")


@dataclass(frozen=True)
class CoverageRow:
    """The cases of one data set."""

    data_set: str
    cases: int
    unlabelled: int  # cases in which nothing is annotated
    annotated: Mapping[str, int]  # structure -> number of cases in which it is annotated


@dataclass(frozen=True)
class Coverage:
    """Numbers of annotated cases by data set and class."""

    structures: tuple[str, ...]
    rows: tuple[CoverageRow, ...]

    @property
    def total(self) -> CoverageRow:
        """All data sets together."""
        return CoverageRow(
            "total",
            sum(row.cases for row in self.rows),
            sum(row.unlabelled for row in self.rows),
            {structure: sum(row.annotated[structure] for row in self.rows) for structure in self.structures},
        )

    def to_json(self) -> dict[str, object]:
        """The table as a JSON object."""
        return asdict(self)

    def text(self) -> str:
        """The table in columns of equal width, the total in the last row if there are several data sets."""
        rows = [*self.rows, self.total] if len(self.rows) > 1 else self.rows
        table = [["data set", "cases", *self.structures, "unlabelled"]]
        for row in rows:
            counts = [row.cases, *(row.annotated[structure] for structure in self.structures), row.unlabelled]
            table.append([row.data_set, *map(str, counts)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table
        )


def coverage(manifest: Manifest, split: str | None = None) -> Coverage:
    """Count the cases in which each class or region is annotated, by data set; in one split, or in all cases."""
    structures = _structures(manifest)
    rows = []
    for data_set in manifest.data_sets:
        cases = [case for case in manifest.cases if case.data_set == data_set and split in (None, case.split)]
        if not cases:
            continue
        counts = {structure: sum(structure in case.annotated for case in cases) for structure in structures}
        rows.append(CoverageRow(data_set, len(cases), sum(not case.annotated for case in cases), counts))
    return Coverage(structures, tuple(rows))


def _structures(manifest: Manifest) -> tuple[str, ...]:
    """The classes, and the regions that some case annotates as one."""
    annotated = frozenset[str]().union(*(case.annotated for case in manifest.cases))
    space = manifest.label_space
    return (*space.structures, *(name for name in space.region_names if name in annotated))


def annotation_cost(manifest: Manifest) -> int:
    """Number of structure masks that the training cases have: pairs of a case and a structure annotated in it."""
    return sum(len(case.annotated) for case in manifest.split("train"))


def never_annotated(manifest: Manifest) -> tuple[str, ...]:
    """The structures that no training case annotates, so that nothing can learn them."""
    known = frozenset[str]().union(*(case.annotated for case in manifest.split("train")))
    return tuple(structure for structure in manifest.label_space.structures if structure not in known)


def never_taken(manifest: Manifest) -> tuple[int, ...]:
    """The images of a scan, counted from 1, that every training case lacks, so that nothing can learn from them."""
    lacking = [{number + 1 for number in case.missing} for case in manifest.split("train")]
    return tuple(sorted(set.intersection(*lacking))) if lacking else ()


@dataclass(frozen=True)
class CoveredCase:
    """What is annotated in one case, and what of it is there."""

    case: str
    data_set: str
    split: str
    annotated: frozenset[str]
    voxels: Mapping[str, int]  # of annotated structures; empty if the labels could not be read

    def state(self, structure: str) -> State:
        """What the case says about a structure."""
        if not self.annotated:
            return "unlabelled"
        if structure not in self.annotated:
            return "not annotated"
        if structure not in self.voxels:
            return "unreadable"
        return "present" if self.voxels[structure] else "absent"


@dataclass(frozen=True)
class CaseCoverage:
    """The matrix of cases and classes; cases in the order of the manifest."""

    structures: tuple[str, ...]
    cases: tuple[CoveredCase, ...]

    def by_data_set(self) -> dict[str, list[CoveredCase]]:
        """Cases by data set, data sets in the order of their first case."""
        data_sets: dict[str, list[CoveredCase]] = {}
        for case in self.cases:
            data_sets.setdefault(case.data_set, []).append(case)
        return data_sets

    def csv(self) -> str:
        """One row for each case and class; `present` and `voxels` are empty where nobody looked."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CASE_COLUMNS)
        writer.writerows(map(cells, self._rows()))
        return text.getvalue()

    def _rows(self) -> Iterator[tuple[str | int, ...]]:
        for case in self.cases:
            for structure in self.structures:
                state = case.state(structure)
                annotated = "no" if state in ("not annotated", "unlabelled") else "yes"
                present = {"present": "yes", "absent": "no"}.get(state, "")
                voxels = case.voxels[structure] if present else ""
                yield case.case, case.data_set, case.split, structure, annotated, present, voxels


def case_coverage(manifest: Manifest, voxels: Mapping[str, Mapping[str, int]]) -> CaseCoverage:
    """The matrix of a cohort, from the voxels of each annotated structure by case id."""
    cases = (
        CoveredCase(case.id, case.data_set, case.split, case.annotated, voxels.get(case.id, {}))
        for case in manifest.cases
    )
    return CaseCoverage(_structures(manifest), tuple(cases))
