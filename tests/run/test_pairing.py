"""Predictions meet references by the names of their classes, never by bare integers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from labelwise import DataError, run
from labelwise.formats import read_labels, value_names, write_labels
from labelwise.run.pairing import in_space
from labelwise.types import IGNORE, LabelSpace, Volume

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def finished(tiny_run, tmp_path) -> Path:
    """A copy of a finished run that may be spoilt."""
    return shutil.copytree(tiny_run, tmp_path / "first")


def rename(record: Path, old: str, new: str) -> None:
    """Another name of a class, in the record and in the header of the label file."""
    file = record.with_suffix(".nii.gz")
    names = [new if name == old else name for name in value_names(file).values()]
    write_labels(file, read_labels(file), names=names)
    record.write_text(record.read_text().replace(f'"{old}"', f'"{new}"'))


def without_names(folder: Path) -> None:
    for record in folder.glob("*.json"):
        record.unlink()
    for file in folder.glob("*.nii.gz"):
        write_labels(file, read_labels(file))


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


def test_predictions_without_a_record_are_read_by_their_header_or_by_what_is_stated(finished, tiny_cohort):
    before = (finished / "scores.csv").read_text()
    for record in finished.glob("predictions/*.json"):
        record.unlink()
    run.evaluate(finished, tiny_cohort)
    assert (finished / "scores.csv").read_text() == before, "the header names the classes"
    names = value_names(next((finished / "predictions").glob("*.nii.gz")))
    without_names(finished / "predictions")
    with pytest.raises(DataError, match="data sets with different values"):
        run.evaluate(finished, tiny_cohort)
    run.evaluate(finished, tiny_cohort, classes={name: value for value, name in names.items() if value})
    assert (finished / "scores.csv").read_text() == before


def test_record_and_header_that_contradict_each_other_are_refused(finished, tiny_cohort):
    record = finished / "predictions" / "test_001.json"
    record.write_text(record.read_text().replace('"spleen"', '"milt"'))
    with pytest.raises(DataError, match=r"'spleen' in its header, 'milt' in test_001\.json"):
        run.evaluate(finished, tiny_cohort)


def test_a_reference_folder_is_read_by_the_names_in_its_files(finished, tmp_path):
    predictions = finished / "predictions"
    for number, file in enumerate(sorted(predictions.glob("*.nii.gz"))):
        labels, names = read_labels(file), [*value_names(file).values()]
        order = np.roll(np.arange(1, len(names)), number + 1)
        table = np.array([0, *order])
        turned = ["background", *names[1:]]
        for old, new in enumerate(order, start=1):
            turned[new] = names[old]
        write_labels(tmp_path / file.name, Volume(table[labels.data], labels.affine), names=turned)
    found = run.evaluate(predictions, tmp_path, tmp_path / "scores.csv").scores
    dice = [score.value for score in found if score.metric == "dice" and score.status == "ok"]
    assert dice
    assert set(dice) == {1.0}


def test_files_whose_values_mean_nothing_are_refused_until_somebody_says_it(finished, tmp_path):
    shutil.copytree(finished / "predictions", tmp_path / "plain")
    names = value_names(next((finished / "predictions").glob("*.nii.gz")))
    without_names(tmp_path / "plain")
    with pytest.raises(DataError, match="--classes"):
        run.evaluate(finished, tmp_path / "plain")
    stated = {name: value for value, name in names.items() if value}
    found = run.evaluate(finished, tmp_path / "plain", tmp_path / "s.csv", classes=stated).scores
    assert {score.value for score in found if score.metric == "dice" and score.status == "ok"} == {1.0}


@pytest.mark.parametrize("unnamed", ["the references", "the predictions", "one of the predictions"])
def test_stated_classes_are_for_the_files_that_do_not_name_their_values(finished, tmp_path, unnamed):
    """Named files may count otherwise: they are read by their names, and nothing contradicts anything."""
    turned, plain = tmp_path / "turned", shutil.copytree(finished / "predictions", tmp_path / "plain")
    turned.mkdir()
    files = sorted(plain.glob("*.nii.gz"))
    names = [*value_names(files[0]).values()]
    without_names(plain)
    order = [0, *range(len(names) - 1, 0, -1)]
    for file in files:
        labels = read_labels(file)
        write_labels(
            turned / file.name,
            Volume(np.array(order)[labels.data], labels.affine),
            names=[names[n] for n in order],
        )
    stated = {name: value for value, name in enumerate(names) if value}
    predictions, references = (turned, plain) if unnamed == "the references" else (plain, turned)
    if unnamed == "one of the predictions":
        for file in files[1:]:
            shutil.copy(turned / file.name, file)
    found = run.evaluate(predictions, references, tmp_path / "s.csv", classes=stated).scores
    assert {score.value for score in found if score.metric == "dice" and score.status == "ok"} == {1.0}
    with pytest.raises(DataError, match="--classes contradict the names"):
        run.evaluate(turned, turned, tmp_path / "s.csv", classes=stated)


@pytest.mark.parametrize("shift", [(0, 0, 0, 3.6), (0.008, 0, 0, 0), (0, 0, 0.005, 0)])
def test_grids_that_are_millimetres_apart_are_not_equal(finished, tiny_cohort, tmp_path, shift):
    file = sorted((finished / "predictions").glob("*.nii.gz"))[0]
    labels, names = read_labels(file), [*value_names(file).values()]
    affine = labels.affine.copy()
    affine[0] += np.array(shift) * (1 if shift[3] else 20)
    write_labels(file, Volume(labels.data, affine), names=names)
    with pytest.raises(DataError, match="different grids"):
        run.evaluate(finished, tiny_cohort)


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
    found = in_space(labels, dict(enumerate(("background", "kidneys", "spleen", "liver"))), space)
    assert found.tolist() == [0, 0, 2, 1, IGNORE, IGNORE, IGNORE]
    assert in_space(labels, dict(enumerate(space.names)), space) is labels
