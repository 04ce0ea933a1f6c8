"""What `check` knows of a scan, `predict` says: in its output, in the record of the case, and in the last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from labelwise import DataError, Model, ScanWarning, load_model, run
from labelwise.cohort.manifest import read_case_image, read_manifest, write_manifest
from labelwise.formats import write_image
from labelwise.types import Array, Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import MR, write_series

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def scan(tiny_cohort) -> Volume:
    manifest = read_manifest(tiny_cohort)
    return read_case_image(manifest.split("test")[0], manifest)


CHANGES = {
    "intercept_lost": (lambda hu: hu + 1024, "no-air"),
    "unit_range": (lambda hu: (hu + 160) / 400, "rescaled-intensities"),
    "bytes": (lambda hu: ((hu.clip(-160, 240) + 160) / 400 * 255).round(), "rescaled-intensities"),
    "window": (lambda hu: hu.clip(-160, 240), "no-air"),
    "slope_twice": (lambda hu: (hu + 1000) * 2 - 2000, "air-not-at-minus-1000"),
    "percent": (lambda hu: hu / 100, "rescaled-intensities"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_that_is_not_in_hu_is_named(tiny_run, scan, tmp_path, change, command):
    transform, code = CHANGES[change]
    write_image(
        tmp_path / "in" / f"{change}.nii.gz", Volume(transform(scan.data).astype(np.float32), scan.affine)
    )
    answer = command("predict", tiny_run, tmp_path / "in", "-o", tmp_path / "out", "--json")
    facts = json.loads(answer.out)
    assert list(facts["warnings"]) == [change]
    record = json.loads((tmp_path / "out" / f"{change}.json").read_text())
    assert code in [warning["code"] for warning in record["warnings"]]
    again = run.predict(tiny_run, tmp_path / "in", tmp_path / "out")
    assert again.warned, "a finished scan is not forgotten"
    assert again.to_text().splitlines()[-1].endswith("1 scan segmented, 0 failed, 1 segmented with warnings")


def test_a_scan_like_those_of_the_training_passes_without_a_word(tiny_run, scan, tmp_path):
    write_image(tmp_path / "in" / "fine.nii.gz", scan)
    result = run.predict(tiny_run, tmp_path / "in", tmp_path / "out")
    assert not result.warned
    assert "warnings" not in json.loads((tmp_path / "out" / "fine.json").read_text())
    assert result.to_text().endswith("1 scan segmented, 0 failed")


@pytest.mark.parametrize("value", [-1000, 0, 40])
def test_a_scan_without_contents_is_refused(tiny_run, scan, tmp_path, value):
    write_image(tmp_path / "in" / "empty.nii.gz", Volume(np.full_like(scan.data, value), scan.affine))
    write_image(tmp_path / "in" / "fine.nii.gz", scan)
    result = run.predict(tiny_run, tmp_path / "in", tmp_path / "out")
    assert list(result.written) == ["fine"]
    assert "empty" in result.failed
    assert not (tmp_path / "out" / "empty.nii.gz").exists()


@pytest.mark.parametrize(
    ("factor", "code"),
    [
        ((4, 1, 1), "spacing-unlike-training"),
        ((1, 1, 0.2), "spacing-unlike-training"),
    ],
)
def test_voxel_size_and_field_of_view_are_compared_with_the_training(tiny_run, scan, tmp_path, factor, code):
    write_image(tmp_path / "in" / "odd.nii.gz", Volume(scan.data, scan.affine @ np.diag((*factor, 1.0))))
    run.predict(tiny_run, tmp_path / "in", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "odd.json").read_text())
    assert any(warning["code"].startswith(code) for warning in record["warnings"])


def test_a_scan_of_the_whole_body_is_unlike_a_training_of_parts(tiny_run, scan, tmp_path):
    write_image(tmp_path / "in" / "long.nii.gz", Volume(np.tile(scan.data, (1, 1, 1, 4)), scan.affine))
    result = run.predict(tiny_run, tmp_path / "in", tmp_path / "out")
    assert any("field of view" in what for what in result.warned["long"])


def test_a_series_of_another_modality_is_refused(tiny_run, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 900, (24, 24, 24)).astype(np.int16)
    tags = {"Modality": "MR", "SOPClassUID": MR, "SeriesInstanceUID": generate_uid()}
    write_series(tmp_path / "series", voxels, np.diag((-9.0, -9.0, 14.0, 1)), **tags)
    file = next((tmp_path / "series").iterdir())
    result = run.predict(tiny_run, file, tmp_path / "out")
    assert "the series is of modality MR" in next(iter(result.failed.values()))


def test_a_ct_that_is_called_mr_is_found_by_check(tiny_cohort, tmp_path):
    manifest = read_manifest(tiny_cohort)
    write_manifest(manifest.replace_cases(manifest.cases[:1]), tmp_path / "m")
    text = (tmp_path / "m" / "dataset.toml").read_text()
    (tmp_path / "m" / "dataset.toml").write_text(text.replace('modality = "ct"', 'modality = "mr"'))
    assert "looks-like-ct" in {problem.code for problem in run.check(tmp_path / "m").problems}


# the same in memory


@pytest.fixture(scope="module")
def model(tiny_run) -> Model:
    return load_model(tiny_run, "cpu")


def ask(model: Model, volume: Volume, form: str, folder: Path) -> Array:
    """The labels of a scan that is given as a file, as a Volume or as an array."""
    if form == "file":
        write_image(folder / "scan.nii.gz", volume)
        return model.predict(folder / "scan.nii.gz").data
    if form == "volume":
        return model.predict(volume).data
    return model.predict(volume.data, affine=volume.affine).data


FORMS = ("file", "volume", "array")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_in_memory_warns_of_what_the_command_warns_of(tiny_run, model, scan, tmp_path, change, form):
    transform, _ = CHANGES[change]
    changed = Volume(transform(scan.data).astype(np.float32), scan.affine)
    write_image(tmp_path / "in" / "scan.nii.gz", changed)
    expected = run.predict(tiny_run, tmp_path / "in", tmp_path / "out").warned["scan"]
    with pytest.warns(ScanWarning) as told:
        ask(model, changed, form, tmp_path)
    said = [str(warning.message) for warning in told]
    assert len(said) == len(expected)
    assert all(any(what in sentence for sentence in said) for what in expected)
    assert {Path(warning.filename).name for warning in told} == {Path(__file__).name}, (
        "said where it was called"
    )
    with pytest.warns(ScanWarning):
        model.predict_scores(changed)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_memory_is_silent_about_a_scan_like_those_of_its_training(model, scan, tmp_path, form):
    assert ask(model, scan, form, tmp_path).shape == scan.shape  # a warning would be an error here


@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_memory_refuses_an_empty_scan(model, scan, tmp_path, form):
    with pytest.raises(DataError, match="empty"):
        ask(model, Volume(np.full_like(scan.data, -1000), scan.affine), form, tmp_path)


def test_a_model_in_memory_refuses_a_series_of_another_modality(model, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 900, (24, 24, 24)).astype(np.int16)
    tags = {"Modality": "MR", "SOPClassUID": MR, "SeriesInstanceUID": generate_uid()}
    write_series(tmp_path / "series", voxels, np.diag((-9.0, -9.0, 14.0, 1)), **tags)
    with pytest.raises(DataError, match="modality MR"):
        model.predict(tmp_path / "series")


def test_of_an_array_whose_spacing_was_said_no_header_is_suspected(model, scan):
    with pytest.warns(ScanWarning) as told:
        model.predict(scan.data, spacing_mm=(1, 1, 1))
    assert any("voxel size" in str(warning.message) for warning in told)
    assert not any("this header says nothing" in str(warning.message) for warning in told)
