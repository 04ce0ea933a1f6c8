"""Scans and labels that are wrong: refused with case and file, and nothing half-written stays behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conftest import tiny_config
from labelwise import ConfigError, DataError, load_config, read_manifest, run, write_manifest

CASE = "north_000"
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def cohort(tiny_cohort, tmp_path) -> Path:
    """A copy that may be spoilt, not prepared yet."""
    return shutil.copytree(tiny_cohort, tmp_path / "data", ignore=shutil.ignore_patterns("store"))


def rewrite(file: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    scan = nibabel.load(file)
    voxels, affine = change(np.asanyarray(scan.dataobj), scan.affine.copy())
    nibabel.save(nibabel.Nifti1Image(voxels, affine), file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def make_singular(file: Path) -> None:
    scan = nibabel.load(file)
    scan.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    scan.header.set_qform(None, code=0)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(scan.dataobj), None, scan.header), file)


def with_nan(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    voxels = voxels.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    return voxels, affine


def with_value_9(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    voxels = voxels.copy()
    voxels[:2, 0, 0] = 9
    return voxels, affine


def shifted(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[0, 3] += 50
    return voxels, affine


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated image": ("images", cut, "cannot be read"),
    "missing image": ("images", Path.unlink, ""),
    "singular affine": ("images", make_singular, "affine is singular"),
    "NaN voxels": ("images", lambda file: rewrite(file, with_nan), "1 NaN"),
    "all air": (
        "images",
        lambda file: rewrite(file, lambda v, a: (np.where(v > 0, v * 0 - 990, v * 0 - 1000), a)),
        "no body in this CT",
    ),
    "not a scan": ("images", lambda file: file.write_text("hello"), "NIfTI"),
    "truncated label": ("labels", cut, "cannot be read"),
    "missing label": ("labels", Path.unlink, ""),
    "label of another shape": (
        "labels",
        lambda file: rewrite(file, lambda v, a: (np.concatenate([v, v]), a)),
        "shape",
    ),
    "label of another affine": ("labels", lambda file: rewrite(file, shifted), "different places"),
    "unknown label value": ("labels", lambda file: rewrite(file, with_value_9), "value 9"),
    "label with fractions": (
        "labels",
        lambda file: rewrite(file, lambda v, a: (v * 0.5, a)),
        "whole numbers",
    ),
}


@pytest.mark.parametrize("level", [-1000, 0, 40, 255])
@pytest.mark.parametrize("modality", ["ct", "mr", "normalised"])  # the last as older manifests have it
@pytest.mark.parametrize("crop", ["body", "nonzero", "none"])
def test_training_refuses_a_scan_without_contrast_whatever_its_rule(cohort, tmp_path, level, modality, crop):
    if crop == "body" and modality != "ct":
        pytest.skip("bodies are found in CT")
    table = cohort / "dataset.toml"
    table.write_text(table.read_text().replace('"ct"', f'"{modality}"'))
    rewrite(cohort / "images" / f"{CASE}.nii.gz", lambda v, a: (v * 0 + level, a))
    with pytest.raises(DataError, match=rf"case '{CASE}'") as caught:
        run.train(tiny_config(cohort, prepare__crop=crop), tmp_path / "run")
    assert f"{CASE}.nii.gz" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "empty", [("liver",), ("liver", "kidneys"), ("liver", "spleen", "kidneys", "pancreas")]
)
def test_structures_that_no_training_case_shows_are_said_and_refused_if_they_are_all(
    cohort, tmp_path, caplog, empty
):
    manifest = read_manifest(cohort)
    for case in manifest.split("train"):
        if case.labels:
            values = [value for value, name in manifest.data_set_of(case).values.items() if name in empty]
            rewrite(case.labels, lambda v, a, values=values: (np.where(np.isin(v, values), 0, v), a))
    config = tiny_config(cohort)
    if len(empty) == 4:
        with pytest.raises(DataError, match="no training case shows a voxel of any structure"):
            run.train(config, tmp_path / "run")
        assert not (tmp_path / "run" / "model").exists()
        return
    run.train(config, tmp_path / "run")
    assert "absent from every training case" in caplog.text
    assert ", ".join(empty) in caplog.text


@pytest.mark.parametrize("fault", FAULTS)
def test_training_refuses_a_scan_that_is_wrong(cohort, tmp_path, fault):
    folder, spoil, words = FAULTS[fault]
    file = cohort / folder / f"{CASE}.nii.gz"
    spoil(file)
    with pytest.raises(DataError) as caught:
        run.train(tiny_config(cohort, prepare__crop="body"), tmp_path / "run")
    text = str(caught.value)
    assert f"case '{CASE}'" in text
    assert str(file) in text
    assert words in text
    assert not (tmp_path / "run").exists()
    assert not [path for path in cohort.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "all air"])
def test_check_lists_a_scan_that_is_wrong(cohort, fault):
    folder, spoil, words = FAULTS[fault]
    file = cohort / folder / f"{CASE}.nii.gz"
    spoil(file)
    report = run.check(cohort)
    assert report.num_errors >= 1
    problem = next(problem for problem in report.problems if problem.case == CASE)
    assert (problem.severity, problem.file) == ("error", str(file))
    assert words in problem.what
    assert CASE in report.to_text()
    assert str(file) in report.to_text()


def test_the_other_scans_are_kept_and_a_repaired_one_is_made_up_for(cohort, tmp_path):
    file = cohort / "images" / f"{CASE}.nii.gz"
    shutil.copy(file, tmp_path)
    cut(file)
    config = tiny_config(cohort)
    prepared = run.prepare(config)
    assert set(prepared.failures) == {CASE}
    assert len(prepared.written) == 5
    shutil.copy(tmp_path / file.name, file)
    assert run.prepare(config).written == (CASE,)


def test_a_scan_smaller_than_the_patch_is_no_problem(cohort, tmp_path):
    for folder in ("images", "labels"):
        rewrite(cohort / folder / f"{CASE}.nii.gz", lambda v, a: (v[8:14, 8:15, 6:11], a))
    result = run.train(tiny_config(cohort, "mean_teacher", train__steps=[2]), tmp_path / "run")
    assert result.steps == 2


# what the manifest says


def relabelled(folder: Path, annotated: dict[str, frozenset[str]]) -> None:
    """Say of training cases what is annotated in them; nothing for those that are not named."""
    manifest = read_manifest(folder)
    cases = [
        replace(case, annotated=annotated.get(case.id, frozenset())) if case.split == "train" else case
        for case in manifest.cases
    ]
    write_manifest(manifest.replace_cases(cases), folder)


@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_a_run_without_any_annotation_is_refused(cohort, tmp_path, method):
    relabelled(cohort, {})
    with pytest.raises(DataError, match="no training case annotates liver, spleen, kidneys, pancreas"):
        run.train(tiny_config(cohort, method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_no_training_case_annotates_is_named(cohort, tmp_path):
    relabelled(cohort, {CASE: frozenset({"liver", "pancreas"}), "south_000": frozenset({"kidneys"})})
    with pytest.raises(DataError, match="no training case annotates spleen, so it cannot be learnt"):
        run.train(tiny_config(cohort), tmp_path / "run")


def test_a_manifest_without_training_cases_is_refused(cohort, tmp_path):
    manifest = read_manifest(cohort)
    write_manifest(manifest.replace_cases(replace(case, split="test") for case in manifest.cases), cohort)
    with pytest.raises(DataError, match="no case is in the split 'train'"):
        run.train(tiny_config(cohort), tmp_path / "run")


def test_unlabelled_cases_do_not_disturb_a_supervised_run(cohort, tmp_path, caplog):
    caplog.set_level("INFO", "labelwise")
    run.train(tiny_config(cohort), tmp_path / "run")
    assert "1 of 3 training cases are not annotated; supervised does not learn from them" in caplog.messages


def test_a_method_for_open_labels_wants_something_open(cohort, tmp_path):
    manifest = read_manifest(cohort)
    everything = [case for case in manifest.cases if case.data_set == "reference"]
    write_manifest(manifest.replace_cases(replace(case, split="train") for case in everything), cohort)
    with pytest.raises(DataError, match="completely annotated"):
        run.train(tiny_config(cohort, "mean_teacher"), tmp_path / "run")


def test_cases_of_other_modalities_are_refused(cohort, tmp_path):
    manifest = read_manifest(cohort)
    cases = [replace(case, images=case.images * 2) if case.id == CASE else case for case in manifest.cases]
    write_manifest(manifest.replace_cases(cases), cohort)
    with pytest.raises(DataError, match="same modalities") as caught:
        run.train(tiny_config(cohort, train__steps=[6]), tmp_path / "run")
    assert caught.value.case


def test_best_weights_without_a_validation_are_refused_before_the_training(cohort, tmp_path):
    manifest = read_manifest(cohort)
    write_manifest(manifest.replace_cases(case for case in manifest.cases if case.split == "train"), cohort)
    with pytest.raises(ConfigError, match="needs a validation"):
        run.train(tiny_config(cohort, select="best"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert run.train(tiny_config(cohort), tmp_path / "run").best_score is None


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("annotated", "livver", "did you mean 'liver'?"),
        ("data_set", "norht", "did you mean 'north'?"),
        ("split", "training", "did you mean 'train'?"),
        ("annotated", "spleen", "cannot show spleen"),
    ],
)
def test_a_wrong_cell_of_the_manifest_is_named(cohort, tmp_path, column, cell, words):
    lines = (cohort / "manifest.csv").read_text().splitlines()
    place = lines[0].split(",").index(column)
    cells = lines[1].split(",")
    cells[place] = cell
    (cohort / "manifest.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    with pytest.raises(DataError) as caught:
        run.train(tiny_config(cohort), tmp_path / "run")
    assert words in str(caught.value)
    assert f"manifest.csv, row 2, column '{column}'" in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no such table"):
        run.check(tmp_path / "empty")
    with pytest.raises(DataError, match="the folder is empty"):
        run.import_data([tmp_path / "empty"], tmp_path / "data")
    with pytest.raises(ConfigError, match="nothing to import"):
        run.import_data([], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_two_folders_of_one_name_want_names(tmp_path):
    for centre in ("a", "b"):
        (tmp_path / centre / "scans").mkdir(parents=True)
    with pytest.raises(ConfigError, match="two data sets have the same folder name"):
        run.import_data([tmp_path / "a" / "scans", tmp_path / "b" / "scans"], tmp_path / "data")


def test_an_unknown_structure_of_an_import_is_refused(tiny_cohort, tmp_path):
    classes = {"liver": 1, "spleen": 2, "kidneys": 3, "pancreas": 4}
    options = {"importer": "folders", "classes": classes, "modality": "ct"}
    with pytest.raises(ConfigError, match="did you mean 'liver'"):
        run.import_data([tiny_cohort], tmp_path / "data", annotated=["livver"], **options)
    assert not (tmp_path / "data").exists()


# the store


def test_damaged_notes_of_the_store_are_made_anew(cohort):
    config = tiny_config(cohort)
    store = run.prepare(config).store.folder
    (store / "hashes.json").write_text("{")
    assert run.prepare(config).written == ()


@pytest.mark.parametrize("name", ["plan.json", "index.json"])
def test_a_damaged_store_is_named(cohort, tmp_path, name):
    config = tiny_config(cohort)
    store = run.prepare(config).store.folder
    (store / name).write_text("{")
    with pytest.raises(DataError, match=name):
        run.train(config, tmp_path / "run")


def test_a_damaged_prepared_scan_is_prepared_again(cohort, tmp_path):
    config = tiny_config(cohort)
    prepared = run.prepare(config)
    cut(prepared.store.case_folder(prepared.keys[CASE]) / "image.b2nd")
    assert run.prepare(config).written == (CASE,)
    assert run.train(config, tmp_path / "run").steps == 4


def test_the_store_lies_where_the_settings_say(cohort, tmp_path):
    prepared = run.prepare(tiny_config(cohort, prepare__store=str(tmp_path / "elsewhere")))
    assert prepared.store.folder.parent == tmp_path / "elsewhere"
    other = run.prepare(tiny_config(cohort, prepare__store=str(tmp_path / "elsewhere"), prepare__crop="none"))
    assert other.store.folder != prepared.store.folder


def test_prepare_without_data_is_refused():
    with pytest.raises(ConfigError, match="no data named"):
        run.prepare(load_config())
