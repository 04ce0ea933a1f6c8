"""A report outlives what it was made of: data that moved, scans that were deleted, settings cut short."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from labelwise import run
from labelwise.errors import DataError
from labelwise.evaluate.scores import read_scores

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def finished(tiny_run, tiny_cohort, tmp_path) -> Path:
    """A copy of a finished run, with data of its own."""
    data = shutil.copytree(tiny_cohort, tmp_path / "data", ignore=shutil.ignore_patterns("store"))
    folder = shutil.copytree(tiny_run, tmp_path / "first")
    text = (folder / "run.toml").read_text().splitlines()
    (folder / "run.toml").write_text("\n".join([f"data = '{data}'", *text[1:]]))
    return folder


def pictures(folder: Path) -> int:
    page = run.report([folder], folder / "page.html").read_text(encoding="utf-8")
    return page.count("<img ")


def test_the_cases_are_shown(finished):
    assert pictures(finished) == 2


def test_a_case_whose_scan_was_deleted_is_not_shown(finished, tmp_path):
    (tmp_path / "data" / "images" / "test_001.nii.gz").unlink()
    assert pictures(finished) == 1


def test_a_folder_that_holds_no_manifest_any_more_shows_nothing(finished, tmp_path):
    (tmp_path / "data" / "manifest.csv").unlink()
    assert pictures(finished) == 0


def test_settings_that_were_shortened_are_told_as_far_as_they_were_kept(finished):
    (finished / "run.toml").write_text("seed = 3\n")
    page = run.report([finished], finished / "page.html").read_text(encoding="utf-8")
    assert "<dt>seed</dt><dd>3</dd>" in page
    assert "<dt>train." not in page


def test_scores_name_the_patient_of_each_case(finished):
    assert {(score.case, score.group) for score in read_scores(finished / "scores.csv")} == {
        ("test_000", "test_000"),
        ("test_001", "test_001"),
    }


def test_a_run_records_whom_it_has_seen_and_is_marked_where_it_is_tested_on_them(finished):
    record = json.loads((finished / "patients.json").read_text())
    assert set(record) == {"train", "validation", "scans"}
    assert not run.compare([finished]).seen
    record["train"].append("test_001")
    (finished / "patients.json").write_text(json.dumps(record))
    assert run.compare([finished]).seen == {"first": ("test_001",)}
    assert "first (has seen test patients)" in run.report([finished], finished / "page.html").read_text()
    (finished / "patients.json").write_text("[1]")
    with pytest.raises(DataError, match="damaged"):
        run.compare([finished])


@pytest.mark.parametrize(
    ("name", "sign"),
    [("markdown", "| run |"), ("latex", r"\toprule"), ("csv", "run,class,metric"), ("json", "{")],
)
def test_compare_writes_tables_for_papers_and_programs(command, finished, tmp_path, name, sign):
    answer = command("compare", finished, "--format", name, "-o", tmp_path / "table")
    assert answer.code == 0, answer.err
    assert sign in (tmp_path / "table").read_text(encoding="utf-8")
    assert "unknown format" in command("compare", finished, "--format", "latx").err
