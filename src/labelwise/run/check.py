"""`check`: every problem of a cohort, what is annotated where, and repaired copies of what can be repaired."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.atomic import atomic_path, write_json, write_text
from labelwise.cohort.coverage import CaseCoverage, Coverage, coverage
from labelwise.cohort.manifest import read_manifest
from labelwise.console import ShowProgress, silent
from labelwise.quality import check as checking
from labelwise.quality.problem import Problem
from labelwise.quality.repair import Repair, repair
from labelwise.report.coverage import coverage_matrix

__all__ = ["CheckReport", "check"]

FILES = ("check.json", "coverage.csv", "coverage.png", "coverage.svg")
_FIRST_NAMES = 3  # cases that a row names; the others are counted
_NARROWEST, _WIDEST = 80, 140  # characters of a line
_WIDTHS = (8, 24)  # severity, cases


@dataclass(frozen=True)
class CheckReport:
    """Every problem of a cohort, which data set annotates what, and what was repaired."""

    problems: tuple[Problem, ...]  # those that are left
    coverage: Coverage
    matrix: CaseCoverage
    repairs: tuple[Repair, ...] = ()

    @property
    def num_errors(self) -> int:
        """Problems that training would stumble over."""
        return sum(problem.severity == "error" for problem in self.problems)

    def to_text(self, width: int | None = None) -> str:
        """The coverage by data set, then one table of problems, errors first; equal problems share a row."""
        width = width or min(max(shutil.get_terminal_size((120, 24)).columns, _NARROWEST), _WIDEST)
        parts = [self.coverage.text()]
        if self.problems:
            parts.append(problem_table(self.problems, width))
        if self.repairs:
            parts.append("\n".join(f"repaired: {repair}" for repair in self.repairs))
        errors, warnings = self.num_errors, len(self.problems) - self.num_errors
        parts.append(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}")
        return "\n\n".join(parts)

    def facts(self) -> dict[str, Any]:
        """The same as plain values, every problem by itself."""
        return {
            "errors": self.num_errors,
            "warnings": len(self.problems) - self.num_errors,
            "problems": [problem.to_json() for problem in self.problems],
            "repairs": [repair.to_json() for repair in self.repairs],
            "coverage": self.coverage.to_json(),
        }

    def write(self, folder: Path | str) -> None:
        """Write check.json, coverage.csv, coverage.png and coverage.svg.

        Errors
            ResourceError   the folder cannot be written
        """
        folder = Path(folder)
        write_json(folder / FILES[0], self.facts())
        write_text(folder / FILES[1], self.matrix.csv())
        states = {
            data_set: {
                case.case: [case.state(structure) for structure in self.matrix.structures] for case in cases
            }
            for data_set, cases in self.matrix.by_data_set().items()
        }
        for kind, picture in coverage_matrix(self.matrix.structures, states).items():
            with atomic_path(folder / f"coverage.{kind}") as temporary:
                temporary.write_bytes(picture)


def check(
    data: Path | str,
    output: Path | str | None = None,
    *,
    fix: Path | str | None = None,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> CheckReport:
    """Read every case of a manifest once and list every problem, with severity and remedy.

    Arguments
        output      folder for check.json, coverage.csv and the picture of the coverage
        fix         folder for repaired copies and a manifest that refers to them, see `labelwise.quality.repair`;
                    the report then lists what was repaired, and the problems that are left

    Errors
        DataError       the manifest itself is wrong
        ConfigError     `fix` is the folder of the manifest, or holds another manifest
    """
    manifest = read_manifest(data)
    findings = checking.inspect_cohort(manifest, workers=workers, engine=engine, progress=progress)
    problems: tuple[Problem, ...] = findings.problems
    repairs: tuple[Repair, ...] = ()
    if fix is not None:
        mended = repair(
            manifest, findings, fix, workers=workers, engine=engine,
            progress=progress,
        )  # fmt: skip
        problems, repairs = mended.left, mended.repairs
    report = CheckReport(problems, coverage(manifest), findings.coverage, repairs)
    if output is not None:
        report.write(output)
    return report


def problem_table(problems: Iterable[Problem], width: int) -> str:
    """Columns severity, cases, problem, remedy; problems of one code share a row that names the first cases."""
    rows: dict[tuple[str, str], list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: problem.severity):
        # Problems without a case are few, and each is another.
        rows.setdefault((problem.code, "" if problem.case else problem.what), []).append(problem)
    rest = width - sum(_WIDTHS) - 6
    widths = (*_WIDTHS, rest - rest * 2 // 5, rest * 2 // 5)
    lines = [_line(("severity", "cases", "problem", "remedy"), widths).rstrip(), "-" * width]
    for members in rows.values():
        first = members[0]
        example = f", e.g. {first.what}" if len(members) > 1 else f": {first.what}"
        cells = (first.severity, _cases(members), f"{first.code}{example}", first.remedy)
        wrapped = [_wrapped(cell, size) for cell, size in zip(cells, widths, strict=True)]
        for number in range(max(map(len, wrapped))):
            parts = [cell[number] if number < len(cell) else "" for cell in wrapped]
            lines.append(_line(parts, widths).rstrip())
        files = dict.fromkeys(problem.file for problem in members[:_FIRST_NAMES] if problem.file)
        lines += [f"{'':<{_WIDTHS[0]}}  {file}" for file in files]
        lines.append("")
    return "\n".join(lines[:-1])


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _cases(members: Sequence[Problem]) -> str:
    names = list(dict.fromkeys(problem.case for problem in members))
    if names == [""]:
        return "(cohort)"
    more = f" and {len(names) - _FIRST_NAMES} more" if len(names) > _FIRST_NAMES else ""
    count = f"{len(names)}: " if len(names) > 1 else ""
    return count + ", ".join(names[:_FIRST_NAMES]) + more


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
