"""One thing that is wrong with a cohort, in words that a person and a program can use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from labelwise.errors import LabelwiseError
from labelwise.types import Case

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """Something wrong with the cohort; plain strings, so that it can be written as JSON.

    An error is what training would stumble over, or what would make its scores wrong; a warning is what a person
    should have seen. The code is stable: programs may rely on it.
    """

    severity: Severity
    code: str
    case: str  # id, or empty if it concerns the cohort
    file: str  # path, or empty
    what: str
    remedy: str

    def __str__(self) -> str:
        lines = [f"{self.severity}: " + (f"case '{self.case}': " if self.case else "") + self.what]
        lines += [f"  file      {self.file}"] if self.file else []
        lines += [f"  do        {self.remedy}"] if self.remedy else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, str]:
        """The problem as a JSON object."""
        return asdict(self)


def of_image(severity: Severity, code: str, case: Case, what: str, remedy: str) -> Problem:
    """A problem of the (first) image of a case."""
    return Problem(severity, code, case.id, str(case.images[0]), what, remedy)


def of_labels(severity: Severity, code: str, case: Case, what: str, remedy: str) -> Problem:
    """A problem of the label file of a case."""
    return Problem(severity, code, case.id, str(case.labels or case.images[0]), what, remedy)


def of_cohort(severity: Severity, code: str, what: str, remedy: str) -> Problem:
    """A problem that no single case has."""
    return Problem(severity, code, "", "", what, remedy)


def from_error(case: Case, error: LabelwiseError, code: str = "unreadable") -> Problem:
    """What reading a case refused to do."""
    details = [f"found {error.found}" if error.found is not None else ""]
    details += [f"expected {error.expected}" if error.expected is not None else ""]
    what = "; ".join([error.what, *filter(None, details)])
    file = error.file if error.file is not None else case.images[0]
    remedy = error.do or "repair or replace the file, or remove the case"
    return Problem("error", code, case.id, str(file), what, remedy)


def some(names: Iterable[str]) -> str:
    """The first five of a list, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
