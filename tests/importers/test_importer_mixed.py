"""DICOM series and scans of other formats in one folder: whatever lies where, each is a case, or named."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from labelwise import run
from labelwise.cohort.manifest import read_case_image, read_case_labels
from labelwise.errors import ConfigError
from labelwise.formats import read_image, write_image, write_labels
from labelwise.importers import detect
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
sys.path.append(str(Path(__file__).parents[1] / "run"))
from clinic import AFFINE, SHAPE, box, label_map, write_scan
from dicom_files import MR, write_series

VALUES = {"liver": 1, "spleen": 2}
STATED = {"classes": VALUES, "modality": "ct"}
ELSEWHERE = np.diag((-2.0, -2.0, 3.0, 1.0)) + np.array([[0, 0, 0, 40.0]] * 3 + [[0.0] * 4])


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, logger="labelwise")
    return caplog


def series(folder: Path, seed: int = 7, **tags: str) -> Volume:
    """A series on a grid of its own, as it is read."""
    voxels = np.random.default_rng(seed).integers(-1000, 900, SHAPE).astype(np.int16)
    write_series(folder, voxels, ELSEWHERE, **tags)
    return read_image([folder])


def write_map(path: Path, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, Volume(label_map(VALUES), affine))
    return path


def metaimage(path: Path) -> None:
    scan = SimpleITK.ReadImage(str(write_scan(path.with_suffix(".nii.gz"))))
    SimpleITK.WriteImage(scan, str(path))
    path.with_suffix(".nii.gz").unlink()


BESIDE: dict[str, Callable[[Path], object]] = {
    "flat": lambda folder: write_scan(folder / "a.nii.gz"),
    "many": lambda folder: [write_scan(folder / f"a{number}.nii.gz", number) for number in range(30)],
    "deep": lambda folder: write_scan(folder / "x" / "y" / "a.nii.gz"),
    "usual": lambda folder: write_scan(folder / "images" / "a.nii.gz"),
    "nrrd": lambda folder: metaimage(folder / "a.nrrd"),
    "mha": lambda folder: metaimage(folder / "a.mha"),
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("loose", [False, True])
def test_both_kinds_are_cases_wherever_they_lie(tmp_path, kind, loose, heard):
    data = tmp_path / "data"
    expected = series(data if loose else data / "p1" / "series")
    BESIDE[kind](data)
    assert detect(data) == "mixed"
    manifest = run.import_data({"ward": data}, tmp_path / "m", modality="ct")
    assert set(manifest.data_sets) == {"ward", "ward_files"}
    of_dicom = [case for case in manifest.cases if case.data_set == "ward"]
    assert [case.id for case in of_dicom] == ["patient_001"]
    assert np.array_equal(read_case_image(of_dicom[0], manifest).data, expected.data)
    assert len(manifest.cases) - 1 == (30 if kind == "many" else 1)
    assert "passed over" not in heard.text


@pytest.mark.parametrize("of", ["series", "file", "both", "neither"])
def test_a_label_map_belongs_to_what_it_was_drawn_on(tmp_path, of, heard):
    data = tmp_path / "data"
    place = series(data / "series").affine
    write_scan(data / "images" / "a.nii.gz")
    if of in ("file", "both"):
        write_map(data / "labels" / "a.nii.gz")
    if of in ("series", "both"):
        write_map(data / "labels" / "drawn.nii.gz", place)
    if of == "neither":
        write_map(data / "labels" / "lost.nii.gz")
    if of == "neither":
        with pytest.raises(Exception, match="no label file has the name of an image"):
            run.import_data([data], tmp_path / "m", **STATED)
        return
    manifest = run.import_data([data], tmp_path / "m", **STATED)
    found = {case.id: case.labels and case.labels.name for case in manifest.cases}
    assert found == {
        "patient_001": "drawn.nii.gz" if of != "file" else None,
        "a": "a.nii.gz" if of != "series" else None,
    }
    for case in manifest.cases:
        if case.labels:
            assert np.array_equal(read_case_labels(case, manifest).data == 2, box("spleen"))
    assert "left out" not in heard.text


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_that_holds_a_series_once_more_is_no_second_scan(tmp_path, turned, heard):
    data = tmp_path / "data"
    copy = series(data / "p1" / "dicom")
    if turned:  # as a converter may store the same voxels
        order = np.diag((-1.0, 1, 1, 1))
        order[0, 3] = SHAPE[0] - 1
        copy = Volume(copy.data[:, ::-1].copy(), copy.affine @ order)
    write_image(data / "p1" / "converted.nii.gz", copy)
    write_map(data / "p1" / "liver_mask.nii.gz", read_image([data / "p1" / "dicom"]).affine)
    manifest = run.import_data([data], tmp_path / "m", **STATED)
    assert [(case.id, case.labels is not None) for case in manifest.cases] == [("patient_001", True)]
    assert "p1/converted.nii.gz" in heard.text


def test_another_scan_on_the_same_grid_is_a_case(tmp_path):
    data = tmp_path / "data"
    first = series(data / "series")
    write_image(data / "late.nii.gz", Volume(first.data + 1, first.affine))
    assert len(run.import_data([data], tmp_path / "m", modality="ct").cases) == 2


def test_dicom_that_cannot_be_used_is_named_and_costs_no_other_scan(tmp_path, heard):
    data = tmp_path / "data"
    series(data / "pet", Modality="PT")
    write_scan(data / "a.nii.gz")
    manifest = run.import_data([data], tmp_path / "m", modality="ct")
    assert [case.id for case in manifest.cases] == ["a"]
    assert "no DICOM series below this folder can be used" in heard.text


def test_dicom_says_itself_what_it_is_and_files_are_what_the_user_says(tmp_path):
    data = tmp_path / "data"
    series(data / "mr", Modality="MR", SOPClassUID=MR)
    write_scan(data / "a.nii.gz")
    with pytest.raises(ConfigError, match="state the modality"):
        run.import_data([data], tmp_path / "m")
    manifest = run.import_data([data], tmp_path / "m", modality="ct")
    assert {case.id: manifest.data_set_of(case).modality for case in manifest.cases} == {
        "patient_001": "mr",
        "a": "ct",
    }


def test_one_importer_may_be_asked_for_and_names_what_it_passes_over(tmp_path, heard):
    data = tmp_path / "data"
    series(data / "series")
    write_scan(data / "a.nii.gz")
    manifest = run.import_data([data], tmp_path / "m", importer="dicom")
    assert [case.id for case in manifest.cases] == ["patient_001"]
    assert "passed over" in heard.text
    assert "a.nii.gz" in heard.text


def test_a_mixed_folder_may_be_the_one_that_tests(tmp_path):
    data = tmp_path / "data"
    place = series(data / "series").affine
    write_scan(data / "images" / "a.nii.gz")
    write_map(data / "labels" / "a.nii.gz")
    write_map(data / "labels" / "drawn.nii.gz", place)
    write_scan(tmp_path / "other" / "images" / "b.nii.gz")
    write_map(tmp_path / "other" / "labels" / "b.nii.gz")
    data_sets = {"ward": data, "other": tmp_path / "other"}
    manifest = run.import_data(data_sets, tmp_path / "m", test_data_set="ward", **STATED)
    assert {case.id: case.split for case in manifest.cases} == {
        "patient_001": "test",
        "a": "test",
        "b": "train",
    }
