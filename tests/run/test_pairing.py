"""Predictions meet references by the names of their classes, never by bare integers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from labelwise import DataError, run
from labelwise.run.pairing import in_space
from labelwise.types import IGNORE, LabelSpace

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def finished(tiny_run, tmp_path) -> Path:
    """A copy of a finished run that may be spoilt."""
    return shutil.copytree(tiny_run, tmp_path / "first")


def rename(record: Path, old: str, new: str) -> None:
    record.write_text(record.read_text().replace(f'"{old}"', f'"{new}"'))


def test_a_manifest_with_another_order_of_classes_gives_the_same_scores(tiny_cohort, tiny_run, tmp_path):
    data = shutil.copytree(tiny_cohort, tmp_path / "data", ignore=shutil.ignore_patterns("store"))
    text = (data / "dataset.toml").read_text()
    turned = text.replace('"liver", "spleen", "kidneys"', '"kidneys", "liver", "spleen"', 1)
    assert turned != text
    (data / "dataset.toml").write_text(turned)
    found = run.evaluate(tiny_run, data, tmp_path / "scores.csv").scores
    expected = run.evaluate(tiny_run, tiny_cohort, tmp_path / "expected.csv").scores
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_an_annotated_class_that_the_model_does_not_know_is_refused(finished, tiny_cohort):
    rename(finished / "predictions" / "test_001.json", "spleen", "milt")
    with pytest.raises(DataError, match="does not know spleen") as caught:
        run.evaluate(finished, tiny_cohort)
    assert "case 'test_001'" in str(caught.value)


def test_predictions_without_a_record_follow_the_manifest(finished, tiny_cohort):
    before = (finished / "scores.csv").read_text()
    for record in finished.glob("predictions/*.json"):
        record.unlink()
    run.evaluate(finished, tiny_cohort)
    assert (finished / "scores.csv").read_text() == before


def test_models_with_different_classes_have_no_common_reference_folder(finished):
    rename(finished / "predictions" / "test_001.json", "spleen", "milt")
    with pytest.raises(DataError, match="models with different classes"):
        run.evaluate(finished, finished / "predictions")


def test_two_label_files_of_one_case_are_refused(finished, tiny_cohort):
    file = finished / "predictions" / "test_001.nii.gz"
    shutil.copy(file, file.with_name("test_001.nii"))
    with pytest.raises(DataError, match="two label files of one case"):
        run.evaluate(finished, tiny_cohort)


def test_label_files_that_nobody_asks_for_do_not_matter(finished, tiny_cohort):
    before = (finished / "scores.csv").read_text()
    (finished / "predictions" / "another.nii.gz").write_text("not read")
    run.evaluate(finished, tiny_cohort)
    assert (finished / "scores.csv").read_text() == before


def test_classes_are_joined_by_name_and_strange_values_stay_strange():
    space = LabelSpace(("background", "liver", "spleen"))
    labels = np.array([0, 1, 2, 3, 4, 300, -1], np.int16)
    found = in_space(labels, ("background", "kidneys", "spleen", "liver"), space)
    assert found.tolist() == [0, 0, 2, 1, IGNORE, IGNORE, IGNORE]
    assert in_space(labels, space.names, space) is labels
