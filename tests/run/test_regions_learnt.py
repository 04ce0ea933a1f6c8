"""Regions from the import to the scores: a liver that some scans know as one, and others as two classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny_config
from labelwise import run
from labelwise.cohort.manifest import Manifest, read_case_labels, read_manifest, write_manifest
from labelwise.errors import DataError
from labelwise.evaluate.scores import NOT_ANNOTATED, read_scores
from labelwise.formats import read_labels, write_labels
from labelwise.metrics import dice
from labelwise.types import LabelSpace, Volume

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def data(tiny_cohort: Path, tmp_path: Path) -> Path:
    """The cohort with a region of two organs, which one site knows as one."""
    folder = Path(shutil.copytree(tiny_cohort, tmp_path / "data", ignore=shutil.ignore_patterns("store")))
    manifest = read_manifest(folder)
    space = LabelSpace(manifest.label_space.names, (("upper abdomen", ("liver", "spleen")),))
    north = manifest.data_sets["north"]
    values = {
        value: name if name == "background" else "upper abdomen" for value, name in north.values.items()
    }
    cases = [
        replace(case, annotated=frozenset({"upper abdomen"})) if case.data_set == "north" else case
        for case in manifest.cases
    ]
    data_sets = {**manifest.data_sets, "north": replace(north, values=values)}
    write_manifest(Manifest(space, data_sets, tuple(cases)), folder)
    return folder


def test_a_model_learns_from_a_region_and_is_scored_on_it(command, data, tmp_path):
    out, manifest = tmp_path / "run", read_manifest(data)
    complete = manifest.split("test")[-1].id  # someone must tell the classes of the region apart
    cases = [replace(case, split="train") if case.id == complete else case for case in manifest.cases]
    write_manifest(manifest.replace_cases(cases), data)
    run.train(tiny_config(data, "supervised"), out)
    assert not run.predict(out, data, out / "predictions", device="cpu").failed
    answer = command("evaluate", out, data)
    assert answer.code == 0, answer.err
    assert "upper abdomen" in answer.out
    classes = {score.class_name for score in read_scores(out / "scores.csv")}
    assert "upper abdomen" not in classes, "no mean counts a voxel twice"
    manifest = read_manifest(data)
    found = {(s.case, s.metric): s for s in read_scores(out / "region_scores.csv")}
    assert {name for name, _ in found} == {case.id for case in manifest.split("test")}
    for case in manifest.split("test"):
        score = found[case.id, "dice"]
        if not {"liver", "spleen"} <= case.annotated:
            assert score.status == NOT_ANNOTATED
            continue
        truth = np.isin(read_case_labels(case, manifest).data, [1, 2])
        predicted = np.isin(read_labels(out / "predictions" / f"{case.id}.nii.gz").data, [1, 2])
        assert score.value == pytest.approx(dice(predicted, truth), nan_ok=True)
    summary = json.loads(command("evaluate", out, data, "--json").out)["regions"]["classes"]
    assert {row["class_name"] for row in summary} == {"upper abdomen"}


def test_what_is_annotated_as_a_region_is_what_a_complete_label_leaves_of_it(data, tiny_cohort, tiny_run):
    """A prediction that tells the classes apart is scored where the reference does not."""
    manifest = read_manifest(data)
    test = next(case for case in manifest.split("test") if {"liver", "spleen"} <= case.annotated)
    cases = [replace(c, split="test" if c.id == test.id else "") for c in manifest.cases]
    whole = [replace(c, annotated=frozenset({"upper abdomen"})) if c.id == test.id else c for c in cases]
    scores = {}
    for name, chosen in (("apart", cases), ("whole", whole)):
        write_manifest(manifest.replace_cases(chosen), data)
        scores[name] = run.evaluate(tiny_run / "predictions", data, data / f"{name}.csv")
    assert repr(scores["whole"].regions) == repr(scores["apart"].regions)
    assert {s.status for s in scores["whole"].scores} == {NOT_ANNOTATED}


def test_a_prediction_that_knows_a_part_of_a_region_only_is_refused(data, tmp_path):
    manifest = read_manifest(data)
    test = manifest.split("test")[0]
    one = replace(test, annotated=frozenset({"upper abdomen"}))
    cases = [one if case.id == test.id else replace(case, split="") for case in manifest.cases]
    write_manifest(manifest.replace_cases(cases), data)
    labels = read_labels(test.labels)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    drawn = Volume((labels.data > 0).astype(np.uint8), labels.affine)
    write_labels(predictions / f"{test.id}.nii.gz", drawn, names=("background", "liver"))
    with pytest.raises(DataError, match="does not know upper abdomen"):
        run.evaluate(predictions, data)
    write_labels(predictions / f"{test.id}.nii.gz", drawn, names=("background", "upper abdomen"))
    (score,) = [s for s in run.evaluate(predictions, data).regions if s.metric == "dice"]
    assert score.status == "ok"


def test_regions_are_named_at_import(command, tiny_cohort, tmp_path):
    folder = tmp_path / "scans"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    manifest = read_manifest(tiny_cohort)
    case = next(case for case in manifest.cases if case.labels)
    shutil.copy(case.images[0], folder / "images" / "a.nii.gz")
    labels = read_labels(case.labels)
    write_labels(folder / "labels" / "a.nii.gz", Volume(labels.data.clip(max=2), labels.affine))
    ask = ("import", folder, "-o", tmp_path / "data", "--classes", "edema=1,core=2", "--modality", "mr")
    answer = command(*ask, "--region", "whole tumour=edema,core")
    assert answer.code == 0, answer.err
    assert "whole tumour = edema, core" in answer.out
    assert read_manifest(tmp_path / "data").label_space.classes_of("whole tumour") == {"edema", "core"}
    answer = command(*ask[:3], tmp_path / "other", *ask[4:], "--region", "a=edema,b", "--region", "b=a,core")
    assert answer.code != 0
    assert "regions go round in a circle: a > b > a" in answer.err
    assert not (tmp_path / "other").exists()


def test_a_corrected_file_shows_classes_and_no_region_any_more(data, tmp_path, caplog):
    """Else the region would be learnt as absent: the new file has no value for it."""
    before = next(case for case in read_manifest(data).cases if case.data_set == "north" and case.annotated)
    drawn = np.zeros(read_labels(before.labels).data.shape, np.uint8)
    drawn[3:6, 3:6, 3:6] = 1
    file = tmp_path / f"{before.id}.nii.gz"
    write_labels(file, Volume(drawn, read_labels(before.labels).affine), names=("background", "kidneys"))
    run.correct(data, [file])
    after = next(case for case in read_manifest(data).cases if case.id == before.id)
    assert before.annotated == {"upper abdomen"}
    assert after.annotated == {"kidneys"}
    assert (
        f"regions are not annotated any more, for corrected files show classes: 1 ({before.id}" in caplog.text
    )
