"""The report of the check: one table that stays short, files that hold everything, and a picture of the coverage."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

from matplotlib import image as pictures

from labelwise import run
from labelwise.cohort.coverage import CaseCoverage, Coverage
from labelwise.quality.problem import Problem
from labelwise.report.coverage import STATES, coverage_matrix
from labelwise.run.check import CheckReport


def problem(number: int, severity: str = "warning", code: str = "unusual-spacing") -> Problem:
    return Problem(
        severity, code, f"case_{number:03d}", f"/scans/case_{number:03d}.nii.gz", "too thick", "look"
    )


def report_of(*problems: Problem) -> CheckReport:
    return CheckReport(problems, Coverage((), ()), CaseCoverage((), ()))


def test_three_hundred_cases_with_one_problem_are_one_row():
    text = report_of(*(problem(number) for number in range(300)), problem(7, "error", "unreadable")).to_text(
        110
    )
    assert len(text.splitlines()) < 20
    assert "300: case_000, case_001," in text
    assert "and 297" in text.replace("\n", " ")
    assert text.index("unreadable") < text.index("unusual-spacing")
    assert text.endswith("1 error, 300 warnings")
    assert max(len(line) for line in text.splitlines() if "/scans" not in line) <= 110


def test_the_facts_hold_every_problem_with_its_code():
    facts = report_of(*(problem(number) for number in range(300))).facts()
    assert (facts["errors"], facts["warnings"], len(facts["problems"])) == (0, 300, 300)
    assert set(facts["problems"][0]) == {"severity", "code", "case", "file", "what", "remedy"}


def test_a_folder_receives_all_problems_the_matrix_and_its_picture(tiny_cohort: Path, tmp_path: Path):
    report = run.check(tiny_cohort, tmp_path / "report", workers=1)
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        "check.json", "coverage.csv", "coverage.png", "coverage.svg",
    ]  # fmt: skip
    assert json.loads((tmp_path / "report" / "check.json").read_text()) == json.loads(
        json.dumps(report.facts())
    )
    text = (tmp_path / "report" / "coverage.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == len(report.matrix.cases) * len(report.matrix.structures)
    assert pictures.imread(tmp_path / "report" / "coverage.png").shape[2] == 4


def test_a_fixed_cohort_is_checked_again_without_a_repairable_problem(tiny_cohort: Path, tmp_path: Path):
    report = run.check(tiny_cohort, fix=tmp_path / "fixed", workers=1)
    assert report.repairs == ()
    assert run.check(tmp_path / "fixed", workers=1).problems == report.problems


# the picture


def matrix(cases: int) -> dict[str, dict[str, list[str]]]:
    return {
        "lits": {f"lits_{n}": ["present", "not annotated", "not annotated"] for n in range(cases)},
        "more": {f"more_{n}": ["absent", "present", "present"] for n in range(cases)},
        "none": {f"none_{n}": ["unlabelled"] * 3 for n in range(cases)},
    }


def test_few_cases_are_named_and_many_are_counted():
    structures = ("liver", "spleen", "left kidney")
    few = coverage_matrix(structures, matrix(4), ("svg",))["svg"].decode()
    many = coverage_matrix(structures, matrix(300), ("svg",))["svg"].decode()
    for text in (*structures, "lits (4)", "more_3", "annotated, absent", "unlabelled case"):
        assert text in few
    assert "more_3" not in many
    assert "lits (300)" in many
    assert len(many) < 200_000
    assert "labels cannot be read" not in few  # only what occurs is explained


def test_equal_cohorts_give_equal_pictures():
    assert coverage_matrix(("liver",), {"a": {"b": ["absent"]}}) == coverage_matrix(
        ("liver",), {"a": {"b": ["absent"]}}
    )


def test_states_differ_in_lightness_too():
    def lightness(colour: str) -> float:
        red, green, blue = (int(part, 16) for part in re.findall("..", colour[1:]))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = sorted(lightness(colour) for colour, _ in STATES.values())
    assert min(b - a for a, b in pairwise(shades)) > 20
