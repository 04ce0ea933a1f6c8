"""DICOM trees become manifests: series are chosen, labels found, patients numbered and never named."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from labelwise import run
from labelwise.cohort.manifest import read_case_image, read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError, LabelwiseError
from labelwise.formats import read_geometry, read_image, write_labels
from labelwise.importers import detect, dicom
from labelwise.infer.scans import find_scans
from labelwise.types import Volume
from tiny_cohort import write_map, write_nifti

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import PERSON, dataset, save, write_series

from conftest import tiny_config

AFFINE = np.array([[-1.5, 0, 0, 90], [0, -1.5, 0, 80], [0, 0, 3.0, -300], [0, 0, 0, 1]])
SHAPE = (12, 10, 8)
SECRETS = (*["Zweistein", "Quirinella", "PID4711SECRET", "19010203", "Nowhere"], "other patient")


def write_scan(
    folder: Path, seed: int = 0, shape: tuple[int, int, int] = SHAPE, **tags: object
) -> list[Path]:
    """A series with a bright block (liver) in its middle, of a study of its own for each patient."""
    voxels = np.random.default_rng(seed).integers(-100, 0, shape).astype(np.int16)
    voxels[3:8, 3:8, 2:6] += 200
    person = str(tags.get("PatientID", PERSON["PatientID"]))
    study = f"1.2.{sum(map(ord, person))}"
    return write_series(
        folder, voxels, AFFINE, **{"StudyInstanceUID": study, "FrameOfReferenceUID": study + ".1"} | tags
    )


def block(path: Path) -> Volume:
    """Labels of the block: value 1, and 2 in its last two columns."""
    image = read_image([path])
    labels = (image.data[0] > 0).astype(np.uint8)
    labels[: SHAPE[0] // 2][labels[: SHAPE[0] // 2] > 0] = 2
    return Volume(labels, image.affine)


def draw(path: Path, scan: Path, names: tuple[str, ...] = ("background", "Liver", "Spleen")) -> None:
    write_labels(path, block(scan), like=scan, names=names)


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="labelwise")
    return lambda: caplog.text


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patients: one with labels as DICOM-SEG and a further series, one with an RTSTRUCT; a third without labels."""
    folder = tmp_path / "archive"
    write_scan(folder / "a" / "ct", 1)
    write_scan(folder / "a" / "thin", 2, (12, 10, 9))
    draw(folder / "a" / "seg" / "labels.dcm", folder / "a" / "ct")
    write_scan(folder / "b", 3, PatientID="other patient")
    draw(
        folder / "b" / "drawn.rtstruct.dcm",
        folder / "b" / "IM0001",
        ("background", "Liver", "unknown; thing"),
    )
    write_scan(folder / "c", 4, PatientID="third patient")
    write_scan(folder / "c", 5, (12, 10, 5), names="short{}", PatientID="third patient")
    (folder / "a" / ".DS_Store").write_bytes(b"junk")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._IM0001").write_bytes(b"\0" * 128 + b"DICM")
    return folder


def test_series_with_labels_and_the_longest_of_other_studies_become_cases(tree, warnings_of):
    assert detect(tree) == "dicom"
    manifest = dicom.scan(tree)
    assert [case.id for case in manifest.cases] == ["patient_001", "patient_002", "patient_003"]
    assert [case.images[0].relative_to(tree).as_posix() for case in manifest.cases] == [
        "a/ct",
        "b",
        "c/IM0001",
    ]
    assert [case.group for case in manifest.cases] == [f"dicom_patient_{n:03d}" for n in (1, 2, 3)]
    assert manifest.label_space.names == ("background", "liver", "spleen", "unknown thing")
    assert [sorted(case.annotated) for case in manifest.cases] == [
        ["liver", "spleen"],
        ["liver", "unknown thing"],
        [],
    ]
    assert "further series of a study are left out" in warnings_of()
    assert {case.data_set for case in manifest.cases} == {"dicom"}
    assert manifest.data_sets["dicom"].modality == "ct"


def test_labels_are_read_with_the_right_indices_after_a_round_trip(tree, tmp_path):
    write_manifest(dicom.scan(tree), tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    for case, second in zip(manifest.cases[:2], ("spleen", "unknown thing"), strict=True):
        labels, image = read_case_labels(case, manifest), read_case_image(case, manifest)
        expected = block(case.images[0])
        np.testing.assert_array_equal(image.affine, labels.affine)
        np.testing.assert_array_equal(labels.data == 1, expected.data == 1)
        found = labels.data == manifest.label_space.index(second)
        np.testing.assert_array_equal(found, expected.data == 2)


def test_series_may_be_listed_named_by_number_and_by_key_or_all_taken(tree):
    with pytest.raises(ConfigError, match="1: CT, 12 x 10 x 8 voxels") as caught:
        dicom.scan(tree, series="list")
    assert "5: CT, 12 x 10 x 5" in str(caught.value)
    key = str(caught.value).split("5: CT")[1].split("key ")[1].split(",")[0]
    for chosen in (5, "5", [5], key):
        manifest = dicom.scan(tree, series=chosen, classes={"liver": 1})
        assert [case.images[0].name for case in manifest.cases] == ["short1"]
    assert len(dicom.scan(tree, series="all").cases) == 5
    assert [case.id for case in dicom.scan(tree, series="1,2").cases] == ["patient_001_1", "patient_001_2"]
    with pytest.raises(ConfigError, match="there is no series '17'"):
        dicom.scan(tree, series=17)


def test_only_the_wanted_structures_become_classes(tree):
    manifest = dicom.scan(tree, structures="liver")
    assert manifest.label_space.structures == ("liver",)
    assert [sorted(case.annotated) for case in manifest.cases] == [["liver"], ["liver"], []]


def test_ct_and_mr_become_two_data_sets_and_other_modalities_are_left_out(tmp_path, warnings_of):
    for name, modality in (("a", "CT"), ("b", "MR"), ("c", "PT")):
        write_scan(tmp_path / name, PatientID=name, Modality=modality)
    manifest = dicom.scan(tmp_path, classes={"liver": 1})
    assert {name: data_set.modality for name, data_set in manifest.data_sets.items()} == {
        "dicom": "ct",
        "dicom_mr": "mr",
    }
    assert "series that are neither CT nor MR are left out: 1 (3: PT)" in warnings_of()
    assert len(dicom.scan(tmp_path, classes={"liver": 1}, modality="other").cases) == 3


def test_nifti_label_maps_beside_belong_to_the_series_on_whose_grid_they_lie(tmp_path, warnings_of):
    for number, name in enumerate(("one", "two")):
        write_scan(tmp_path / name, number, PatientID=name)
        labels = block(tmp_path / name)
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", labels.data, labels.affine)
    write_map(tmp_path / "labels" / "other_grid.nii.gz", 1)
    manifest = dicom.scan(tmp_path, classes={"liver": 1, "spleen": 2})
    assert [case.labels.name for case in manifest.cases] == ["one.nii.gz", "two.nii.gz"]
    assert read_case_labels(manifest.cases[1], manifest).data.max() == 2
    assert "do not belong to exactly one series" in warnings_of()


def test_a_series_that_cannot_be_read_is_reported_and_costs_no_other(tmp_path, warnings_of):
    write_scan(tmp_path / "whole")
    write_scan(tmp_path / "gap", PatientID="other patient")[3].unlink()
    assert len(dicom.scan(tmp_path, classes={"liver": 1}).cases) == 1
    assert "cannot be read are left out: 1 (1: 1 slice is missing between" in warnings_of()
    with pytest.raises(DataError, match="series 1 cannot be read: 1 slice is missing"):
        dicom.scan(tmp_path, classes={"liver": 1}, series=1)


def test_patients_without_identifiers_are_told_apart_by_folder(tmp_path):
    nothing = dict.fromkeys(("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "PatientID"))
    for name in "ab":
        write_scan(tmp_path / name / "scan", ord(name), **nothing)
    manifest = dicom.scan(tmp_path, classes={"liver": 1})
    assert [case.group for case in manifest.cases] == ["dicom_patient_001", "dicom_patient_002"]
    images = [read_case_image(case, manifest).data for case in manifest.cases]
    assert not np.array_equal(*images)


@pytest.mark.parametrize(
    "options", [{"modality": "xray"}, {"series": ""}, {"series": [0]}, {"series": {"a": 1}}]
)
def test_wrong_options_are_refused(tree, options):
    with pytest.raises(ConfigError):
        dicom.scan(tree, **options)


def test_dicom_without_images_is_no_series(tmp_path):
    save(tmp_path / "report", dataset({"Modality": "SR"}))
    with pytest.raises(DataError, match="no DICOM series"):
        dicom.scan(tmp_path)


# scans to predict


def test_of_each_study_the_longest_series_is_predicted(tree):
    scans = find_scans(tree, intensity="ct")
    assert {scan.id: scan.images[0].relative_to(tree).as_posix() for scan in scans} == {
        "a_thin": "a/thin",
        "b": "b",
        "c": "c/IM0001",
    }
    (scan,) = find_scans(tree / "a" / "ct", intensity="ct")
    assert (scan.id, scan.images) == ("ct", (tree / "a" / "ct",))
    (scan,) = find_scans(tree / "c" / "short1", intensity="ct")
    assert scan.id == "short1"


def test_series_of_another_modality_are_no_scans(tree):
    with pytest.raises(DataError, match="no DICOM series here is a scan of modality mr"):
        find_scans(tree, intensity="mr")


def test_series_of_equal_length_are_all_predicted(tmp_path):
    for seed, name in enumerate(("soft", "bone")):
        write_scan(tmp_path, seed, names=name + "{}")
    scans = find_scans(tmp_path, intensity="ct")
    assert [scan.images[0].name for scan in scans] == ["bone1", "soft1"]
    assert [scan.id for scan in scans] == [f"{tmp_path.name}_1", f"{tmp_path.name}_2"]


# privacy


def test_no_word_about_the_patient_leaves_the_dicom_files_and_nothing_the_machine(
    tmp_path, tiny_run, caplog, capfd, one_process, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    calls: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: calls.append(address))
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_scan(scans / "a", 1, SeriesDescription="Zweistein follow-up")
    draw(scans / "a" / "labels.dcm", scans / "a" / "IM0001")
    write_scan(scans / "b", 2, PatientID="other patient")
    damaged = write_scan(scans / "b", 3, (12, 10, 5), names="short{}", PatientID="other patient")
    damaged[0].write_bytes(damaged[0].read_bytes()[:900])
    messages = []
    run.import_data([scans], out / "data", importer="dicom")
    report = run.check(out / "data", workers=1)
    messages += [report.to_text(), str(report.facts())]
    config = tiny_config(out / "data", prepare__spacing_mm=[3.0, 3.0, 3.0], prepare__store=str(out / "store"))
    run.prepare(config, workers=1)
    trained = run.train(config, out / "run")
    run.predict(trained.folder, out / "data", out / "own", split="train", device="cpu")
    run.evaluate(out / "own", out / "data", trained.folder / "scores.csv", split="train", workers=1)
    run.report([trained.folder], out / "report.html")
    result = run.predict(tiny_run, scans, out / "predictions", device="cpu")
    messages += [result.to_text(), str(result.facts())]
    assert len(result.written) == 2
    assert read_geometry(result.written["a"]).matches(read_geometry(scans / "a" / "IM0001"))
    for wrong in (lambda: dicom.scan(scans, series="list"), lambda: find_scans(scans, intensity="mr")):
        with pytest.raises(LabelwiseError) as caught:
            wrong()
        messages.append(str(caught.value))
    messages += [caplog.text, *capfd.readouterr()]
    for file in (file for file in out.rglob("*") if file.is_file()):
        messages += [str(file), file.read_bytes().decode("latin-1")]
    for word in SECRETS:
        assert not any(word in message for message in messages), word
    assert calls == []


@pytest.mark.parametrize("ending", [".seg.dcm", ".rtstruct.dcm", ".seg.nrrd", ".nii.gz"])
def test_own_predictions_of_a_series_are_imported_again_without_an_option(tmp_path, ending):
    """As `predict` writes them, in a folder beside the series or among its patients: classes come from the file."""
    write_scan(tmp_path / "data" / "anna" / "ct", 1)
    write_scan(tmp_path / "data" / "berta" / "ct", 2, PatientID="other patient")
    scan = tmp_path / "data" / "anna" / "ct"
    (tmp_path / "data" / "predictions").mkdir()
    draw(tmp_path / "data" / "predictions" / f"anna_ct{ending}", scan)
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", importer="dicom")
    assert set(manifest.label_space.structures) == {"liver", "spleen"}
    assert [sorted(case.annotated) for case in manifest.cases] == [["liver", "spleen"], []]
    assert {manifest.data_set_of(case).modality for case in manifest.cases} == {"ct"}
    labels = read_case_labels(manifest.cases[0], manifest)
    drawn = block(scan)
    for value, name in ((1, "liver"), (2, "spleen")):
        found = labels.data == manifest.label_space.index(name)
        np.testing.assert_array_equal(found, drawn.data == value)
