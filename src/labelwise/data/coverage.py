"""What is annotated where: the first table to look at in a partially annotated cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from labelwise.data.manifest import Manifest


@dataclass(frozen=True)
class CoverageRow:
    """The cases of one source."""

    source: str
    cases: int
    unlabelled: int  # cases in which nothing is annotated
    annotated: Mapping[str, int]  # organ -> number of cases in which it is annotated


@dataclass(frozen=True)
class Coverage:
    """Numbers of annotated cases by source and class."""

    organs: tuple[str, ...]
    rows: tuple[CoverageRow, ...]

    @property
    def total(self) -> CoverageRow:
        """All sources together."""
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
        table = [["source", "cases", *self.organs, "unlabelled"]]
        for row in rows:
            counts = [row.cases, *(row.annotated[organ] for organ in self.organs), row.unlabelled]
            table.append([row.source, *map(str, counts)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table
        )


def coverage(manifest: Manifest, split: str | None = None) -> Coverage:
    """Count the cases in which each class is annotated, by source; in one split, or in all cases."""
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
