"""Scores belong to the predictions and the model that they were made from, and to no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny_config
from labelwise import DataError, ResourceError, read_manifest, run, write_manifest
from labelwise.formats import read_labels, write_labels
from labelwise.formats.tensors import load_tensors, save_tensors
from labelwise.lock import only_writer
from labelwise.types import Volume

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def finished(tiny_run, tmp_path) -> Path:
    """A copy of a finished run that may be spoilt."""
    return shutil.copytree(tiny_run, tmp_path / "first")


def other_labels(folder: Path) -> None:
    """Another label file, as a prediction with other settings gives."""
    file = folder / "predictions" / "test_001.nii.gz"
    labels = read_labels(file)
    write_labels(file, Volume(np.where(labels.data == 0, 1, 0).astype(np.uint8), labels.affine))


def other_settings(folder: Path) -> None:
    """One of several label files was predicted with other settings: a `predict --overwrite` that was killed."""
    file = folder / "predictions" / "test_001.json"
    record = json.loads(file.read_text())
    record["inference"]["overlap"] = 0.75
    file.write_text(json.dumps(record))


def other_record(folder: Path) -> None:
    """One of several label files is of another model."""
    file = folder / "predictions" / "test_001.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"model": "0123456789abcdef"}))


def other_model(folder: Path) -> None:
    """The model of the run was replaced, as by `train --set select=best` on a finished run."""
    file = folder / "model" / "weights.safetensors"
    tensors, header = load_tensors(file)
    save_tensors(file, {name: tensor + 1 for name, tensor in tensors.items()}, header)


def other_patch_size(folder: Path) -> None:
    """The description of the model says something else by now."""
    file = folder / "model" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": [16, 16, 16]}))


@pytest.mark.parametrize("change", [other_labels, other_model, other_patch_size])
def test_scores_of_what_is_no_more_are_used_by_no_comparison(finished, tmp_path, change):
    table = run.compare([finished]).to_text()
    change(finished)
    for use in (lambda: run.compare([finished]), lambda: run.report([finished], tmp_path / "report.html")):
        with pytest.raises(DataError, match=r"earlier predictions|not of the model") as caught:
            use()
        assert "labelwise evaluate" in str(caught.value)
    assert not (tmp_path / "report.html").exists()
    shutil.rmtree(finished / "predictions")
    if change is other_labels:
        assert run.compare([finished]).to_text() == table, "predictions that were removed contradict nothing"


@pytest.mark.parametrize("change", [other_record, other_settings, other_model, other_patch_size])
def test_labels_of_two_models_or_settings_are_not_scored_together(finished, tiny_cohort, change):
    before = (finished / "scores.csv").read_bytes()
    change(finished)
    with pytest.raises(DataError, match=r"two models|two kinds|not of the model") as caught:
        run.evaluate(finished, tiny_cohort)
    assert "--overwrite" in str(caught.value)
    assert (finished / "scores.csv").read_bytes() == before


def test_after_a_new_evaluation_all_is_well(finished, tiny_cohort):
    before = run.compare([finished]).to_text()
    other_labels(finished)
    run.evaluate(finished, tiny_cohort)
    assert run.compare([finished]).to_text() != before
    assert json.loads((finished / "scores.json").read_text())["split"] == "test"


def test_a_training_that_begins_anew_waits_for_a_prediction_into_its_folder(tiny_cohort, finished):
    with only_writer(finished / "predictions"), pytest.raises(ResourceError, match="another program"):
        run.train(tiny_config(tiny_cohort), finished, overwrite=True)
    assert (finished / "scores.csv").exists()
    assert (finished / "model" / "model.json").exists()


def test_a_run_is_not_continued_with_other_validation_cases(tiny_cohort, finished):
    manifest = read_manifest(tiny_cohort)
    swap = {"validation": "test", "test": "validation"}
    swapped = manifest.replace_cases(
        type(case)(**{**vars(case), "split": swap.get(case.split, case.split)}) for case in manifest.cases
    )
    write_manifest(swapped, finished / "data")
    config = tiny_config(finished / "data", prepare__store=str(tiny_cohort / "store"))
    with pytest.raises(Exception, match="validation") as caught:
        run.train(config, finished)
    assert type(caught.value).__name__ == "CheckpointError"
